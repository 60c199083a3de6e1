"""Contents of reports, as far as a test wants them."""

from typing import Any

import msgspec

from producer.proof.verdict import Verdict
from producer.report.contents import Contents, Pictures, Proof
from producer.results.merge import FinishedTask, merge_results
from producer.results.results import MissingTask, Results
from shared.plan import Choice, Variant
from shared.plan_file import Plan
from tests.plans import plan_of
from tests.verdicts import verdict_of


def merged(example: Any, missing: list[MissingTask] | None = None) -> Results:
    """Results of all pairs but the missing ones."""
    gone = {(task.layer, task.bits) for task in missing or []}
    finished = [pair for pair in example.finished() if (pair.task.layer, pair.task.bits) not in gone]
    return results_of(example, finished, missing)


def results_of(
    example: Any, finished: list[FinishedTask], missing: list[MissingTask] | None = None
) -> Results:
    """Results of these pairs."""
    return merge_results(
        finished,
        run=example.run,
        sensitivity=example.sensitivity,
        card=example.card,
        missing=missing or [],
    )


def contents_of(results: Results, **more: Any) -> Contents:
    """What a folder with this sensitivity run holds."""
    return Contents(run=results.run, sensitivities=(results,), **{"hosts": results.hosts} | more)


def made_plan(results: Results, **changes: Any) -> Plan:
    """A plan that gives the layers of a run bits from 2 to 8, and leaves the first as it is."""
    widths = (2, 3, 4, 5, 6, 8)
    layers = {
        layer.path: Choice(bits=widths[number % 6], group_size=64)
        for number, layer in enumerate(results.layers)
        if number
    }
    return plan_of(results.run, results.fingerprint, layers, **changes)


def made_proof(plan: Plan, verdict: Verdict | None = None, pictures: tuple[Pictures, ...] = ()) -> Proof:
    """A proof of a plan; the plan is shipped."""
    told = verdict or verdict_of([30, 22, 15])
    size = {"stored_bytes": plan.stored_bytes}
    told = msgspec.structs.replace(
        told, variants=tuple(msgspec.structs.replace(one, **size) for one in told.variants)
    )
    return Proof(
        verdict=told,
        plan=plan,
        shipped=plan,
        variants=tuple(Variant(name=one.name, layers=plan.layers) for one in told.variants),
        errors={one.name: 0.02 * (1 + number) for number, one in enumerate(told.variants)},
        pictures=pictures,
        finished_at="2026-01-02T03:04:05Z",
    )

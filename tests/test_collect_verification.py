"""A verification as the collector sees it grow, from shards that workers left; no model runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from redis import Redis

from producer.collect import Collector
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.verification_request import VerificationRequest
from producer.kinds.registry import parts_of
from producer.ledger import Ledger
from producer.proof.enqueue import VerificationOptions, enqueue_verification
from producer.proof.verdict import Verdict, decode_verdict
from shared.errors import InputError, RunMismatchError
from shared.plan import decode_variants
from shared.plan_file import Plan, PromptSets, numbered, read_plan
from shared.stores.relay_store import RelayStore
from tests.planned import card, plan_of, weights_of
from tests.tasks import SETTINGS, record_of
from tests.verification_shards import verification_shard

CARD = card()
WEIGHTS = weights_of(CARD)
RUN = RunFile(settings=SETTINGS, prompts=("first",), store_id="relay", store=None)
TEXTS = [f"prompt {number}" for number in range(200)]
SETS = PromptSets(
    scores=numbered(TEXTS, range(4), 0),
    choosing=numbered(TEXTS, range(4, 8), 0),
    proof=numbered(TEXTS, range(20, 44), 0),
)


def a_plan(**changes: Any) -> Plan:
    return plan_of(CARD, **{"prompts": SETS} | changes)


class Verified:
    """A folder of a run whose model is known, and workers that leave what a test wants."""

    def __init__(self, root: Path, redis: Redis) -> None:
        self.folder, self.store = CalibFolder(root), RelayStore(redis)
        self.fleet = Fleet(connection=redis, store=self.store, store_url=None)
        self.folder.write_run(RUN)
        self.folder.write_model(CARD)
        self.collector = Collector(Ledger(self.folder, redis, self.store), complain=self.complain)

    def complain(self, problem: str) -> None:
        raise AssertionError(problem)

    def enqueue(self, *plans: Plan, **options: Any) -> VerificationRequest:
        values = {"rivals": "uniform"} | options
        given = plans or (a_plan(),)
        weights = {plan.weights_id: WEIGHTS for plan in given}
        request, _ = enqueue_verification(
            self.folder, given, weights, VerificationOptions(**values), self.fleet
        )
        return request

    def draw(self, request: VerificationRequest, quality: Callable[[int, str], float]) -> int:
        """Leave what workers make of all wanted prompts; return how many prompts are wanted after that."""
        known = self.kept(request)
        for task in self.request(request).tasks():
            if task.id not in known:
                psnr = [quality(task.image_index, name) for name in request.names[1:]]
                shard = verification_shard(
                    task.image_index,
                    psnr,
                    steps=request.settings.num_steps,
                    floor_db=90 if task.floor else None,
                    shown=task.shown > 0,
                )
                data = shard.to_bytes()
                assert self.store.put(record_of(task, data), data) == "stored"
        self.collector.collect()
        return self.request(request).wanted

    def kept(self, request: VerificationRequest) -> dict[str, Any]:
        return self.folder.verifications.open(request.settings.id).records.read()

    def request(self, request: VerificationRequest) -> VerificationRequest:
        return self.folder.verifications.open(request.settings.id).require_request()

    def verdict(self, request: VerificationRequest) -> tuple[Verdict, Plan, str]:
        self.collector.write_results(self.collector.collect())
        root = self.folder.verifications.open(request.settings.id).root
        return (
            decode_verdict((root / "verification.json").read_bytes()),
            read_plan(root / "winner.json"),
            self.folder.report_path.read_text(),
        )


@pytest.fixture
def verified(tmp_path: Path, redis: Redis) -> Verified:
    return Verified(tmp_path / "calib", redis)


def quality(**means: float) -> Callable[[int, str], float]:
    """PSNR in dB by the first word of a variant's name; it differs a little by prompt and variant."""

    def of(image: int, name: str) -> float:
        return means[name.partition(" ")[0]] + 0.1 * ((7 * image + 3 * len(name) + image * len(name)) % 10)

    return of


def test_a_clear_gain_takes_one_look_and_the_winner_can_be_exported(verified: Verified) -> None:
    request = verified.enqueue()
    assert request.wanted == 8
    assert [task.image_index for task in request.tasks()] == list(range(20, 28))
    assert [task.floor for task in request.tasks()] == [True] + 7 * [False]
    assert [task.shown > 0 for task in request.tasks()] == 4 * [True] + 4 * [False]
    variants = decode_variants(verified.store.blob(request.settings.variants_sha256))
    assert [variant.name for variant in variants] == list(request.names)
    assert request.names[:2] == ("original", "plan")
    assert all(name.startswith("uniform") for name in request.names[2:])
    assert max(request.stored_bytes[1:]) == a_plan().budget_bytes
    assert variants[0].layers == {} and variants[1].layers == a_plan().layers
    assert verified.draw(request, quality(plan=30, uniform=22)) == 8
    verdict, winner, page = verified.verdict(request)
    assert verdict.complete and (verdict.winner, verdict.prompts, verdict.most) == ("plan", 8, 24)
    assert winner == a_plan()
    assert page.count('<figure><div class="frame') == 4 * 3, "original, plan and the best uniform model"
    assert page.count('<div class="prompt"') == 4
    assert not verified.store.has_blob(request.settings.variants_sha256), "nobody needs it any more"


def test_a_small_gain_takes_more_looks_and_a_wiped_redis_gets_the_variants_again(verified: Verified) -> None:
    request = verified.enqueue()
    small = quality(plan=22.2, uniform=22)
    assert verified.draw(request, small) == 16
    verified.fleet.connection.flushall()
    (state,) = [one for one in verified.collector.collect() if "verification" in one.title]
    assert (state.done, state.total, state.enqueued) == (8, 16, 8)
    assert verified.store.has_blob(request.settings.variants_sha256)
    # Enqueued again, nothing is lost; prompts end at what the plan has.
    assert verified.enqueue().wanted == 16
    looks = [16]
    while looks[-1] < 24:
        looks.append(verified.draw(request, small))
    assert looks == [16, 24]
    assert verified.draw(request, small) == 24
    verdict, _, _ = verified.verdict(request)
    assert verdict.complete and verdict.prompts == 24 and verdict.level == 0.0032


def test_the_plan_of_a_uniform_winner_is_that_of_the_uniform_model(verified: Verified) -> None:
    request = verified.enqueue()
    verified.draw(request, quality(plan=22, uniform=30))
    verdict, winner, page = verified.verdict(request)
    assert verdict.winner.startswith("uniform ")
    assert "<h1>Ship uniform" in page
    variants = {
        variant.name: variant.layers
        for variant in decode_variants(
            (verified.folder.verifications.open(request.settings.id).root / "variants.json").read_bytes()
        )
    }
    assert winner.layers == variants[verdict.winner]
    assert winner.stored_bytes == request.stored_bytes[request.names.index(verdict.winner)]
    assert verdict.winner in winner.target
    assert {*winner.layers, *winner.kept} == {*a_plan().layers, *a_plan().kept}
    lines = [line for part in parts_of(verified.folder) if (line := part.conclusion())]
    assert len(lines) == 1 and lines[0].startswith(f"{verdict.winner} wins on 8 prompts: ")
    assert "noise floor 90.0 dB" in lines[0]


def test_of_several_plans_the_best_is_chosen_first_and_then_proved(verified: Verified) -> None:
    layers = dict(list(a_plan().layers.items())[:-1])
    plans = (a_plan(), a_plan(layers=layers), a_plan(score=0.5))
    choice = verified.enqueue(*plans)
    assert choice.purpose == "choosing"
    assert choice.names == ("original", *(f"plan {plan.id}" for plan in plans))
    assert [task.image_index for task in choice.tasks()] == [4, 5, 6, 7]
    best = choice.names[2]
    assert len([part for part in parts_of(verified.folder) if "verification" in part.title]) == 0
    verified.draw(choice, lambda image, name: 25.0 if name == best else 24.0)
    (proof,) = [
        request
        for one in verified.folder.verifications.all()
        if (request := one.require_request()).purpose == "proof" and request.wanted
    ]
    assert proof.plan_id == plans[1].id and proof.wanted == 8
    verified.draw(proof, quality(plan=30, uniform=22))
    verdict, winner, _ = verified.verdict(proof)
    assert verdict.winner == "plan" and winner.id == plans[1].id
    root = verified.folder.verifications.open(choice.settings.id).root
    assert decode_verdict((root / "verification.json").read_bytes()).winner == best


def test_other_settings_are_another_verification_and_draw_with_them(verified: Verified) -> None:
    one = verified.enqueue()
    other = verified.enqueue(num_steps=2, cfg_weight=3.0, image_size=32, max_prompts=8)
    assert one.settings.id != other.settings.id
    assert one.run == SETTINGS
    (task, *_) = other.tasks()
    drawn = (task.run.num_steps, task.run.cfg_weight, task.run.image_size)
    assert drawn == (2, 3.0, 32) == (
        task.verification.num_steps, task.verification.cfg_weight, task.verification.image_size
    )  # fmt: skip
    assert len(other.prompts) == 8
    # Both draw the same variants: the first to be complete leaves them to the other.
    assert one.settings.variants_sha256 == other.settings.variants_sha256
    verified.draw(other, quality(plan=30, uniform=22))
    assert verified.store.has_blob(one.settings.variants_sha256)
    verified.draw(one, quality(plan=30, uniform=22))
    assert not verified.store.has_blob(one.settings.variants_sha256)


def test_a_shard_of_other_variants_or_steps_is_dropped(verified: Verified) -> None:
    request = verified.enqueue()
    lines: list[str] = []
    verified.collector.complain = lines.append
    task = request.tasks()[0]
    psnr = [30.0] * (len(request.names) - 1)
    sizes = np.array([3] + [0] * len(psnr))
    for line, changes in (
        ("3 steps, not", {"steps": 3}),
        ("of another image", {"image": 21}),
        ("no PNG", {"image_png": np.frombuffer(b"GIF", np.uint8), "image_png_size": sizes}),
    ):
        data = verification_shard(**{"image": 20, "psnr_db": psnr} | changes).to_bytes()
        assert verified.store.put(record_of(task, data), data) == "stored"
        verified.collector.collect()
        assert line in lines.pop()
        assert not lines


@pytest.mark.parametrize(
    ("plans", "options", "error", "message"),
    [
        ([{"score": n / 8} for n in range(4)], {}, InputError, "4 plans are too many"),
        ([{"run": replace(SETTINGS, seed=1)}], {}, RunMismatchError, "was made for run"),
        ([{"fingerprint": "0" * 64}], {}, RunMismatchError, "was made for run"),
        ([{"prompts": PromptSets()}], {}, InputError, "no prompts for the proof"),
        ([{}, {"prompts": replace(SETS, proof=SETS.proof[:9])}], {}, InputError, "have different prompts"),
        ([{}, {"prompts": replace(SETS, scores=numbered(TEXTS, [99, 4], 0))}], {}, InputError, "'prompt 4'"),
        ([{}, {"budget_bytes": 2 * a_plan().budget_bytes}], {}, InputError, "chosen for its size"),
        ([{}, {"prompts": replace(SETS, choosing=())}], {}, InputError, "have different prompts"),
        ([{}], {"image_size": 40}, InputError, "no multiple of 16"),
        ([{}], {"image_size": 256}, InputError, "draws at most 128 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(
    verified: Verified, plans: Sequence[Any], options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        verified.enqueue(*(a_plan(**changes) for changes in plans), **options)
    assert not verified.folder.verifications.all()


def test_the_command_says_what_it_needs(tmp_path: Path, redis_url: str) -> None:
    from producer.cli import main

    arguments = ["enqueue-verification", "--calib-dir", str(tmp_path), "--redis-url", redis_url]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "--plan" in result.output
    result = CliRunner().invoke(main, [*arguments, "--plan", "plan.json"])
    assert result.exit_code == 2 and "holds no run" in result.output

"""What plans gain on the demo model: `python -m benchmarks.plan [--prompts 64]`.

Levels of 16 images, plans at the sizes of uniform 4, 3 and 2 bits in groups of 64, their rivals, and all of
them drawn on prompts that no plan has seen. Gains are differences in PSNR of final latents against the
original's, prompt by prompt, with 95% intervals (Student's t over prompts).

All weights are those that mlx.nn.QuantizedLinear multiplies with, as dense matrices: on a CPU that is many
times faster, and prompts can share a pass. How far that is from a worker's verification is measured, too.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
from scipy import stats

from benchmarks.report import Report, print_report
from benchmarks.sensitivity import spearman
from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import ConfirmRequest, LevelsRequest, WeightsRequest
from producer.folder.run_file import RunFile
from producer.kinds.confirm import ConfirmPart
from producer.kinds.kept import KeptPart
from producer.kinds.levels import LevelsPart
from producer.kinds.weights import WeightsPart, read_weights
from producer.plan.planner import PlanOptions, make_plans
from producer.plan.prediction import ANOTHER_PICTURE, Prediction, predict
from producer.plan.prompt_sets import PromptFile
from producer.plan.rivals import Rivals, rivals_of
from producer.plan.targets import like
from producer.prompts import default_prompts, read_prompts
from producer.settings import run_settings
from shared.identity import digest_of
from shared.jobs.history import utc_now
from shared.kinds.confirm import ConfirmSettings, ConfirmShard
from shared.kinds.kind import Task
from shared.kinds.levels import LevelsSettings
from shared.kinds.verification import VerificationSettings, VerificationTask
from shared.metrics import Floats, psnr_db
from shared.model_card import ModelCard
from shared.plan import Choice, Variant, encode_variants, variants_digest
from shared.plan_file import ORIGINAL, Plan, PlanPrompt, numbered
from shared.runs import RunSettings
from shared.stores.records import Record
from worker.engine.batches import guided_velocity
from worker.engine.calibrate import model_card
from worker.engine.layers import get_weight
from worker.engine.quantize import fake_quantize, swapped
from worker.engine.verification import verify
from worker.families.registry import load_family
from worker.kinds.lent import EngineSlot, Lent
from worker.kinds.registry import run_task
from worker.service.machine import versions

BITS = (2, 3, 4, 5, 6, 8)
CANDIDATES = tuple(Choice(bits=bits, group_size=size) for bits in BITS for size in (32, 64, 128))
PLAIN = tuple(Choice(bits=bits, group_size=64) for bits in (2, 3, 4))
TARGETS = {4: (8.0, 7.5), 3: (8.0, 7.5), 2: (5.5, 5.0)}
"""By bits of the uniform model of the same size: the wanted mean gain over it, and its lower bound, in dB."""
EMBEDDER = "context_embedder"
"""Most of its inputs are zeros in the demo model, which flatters plans: they take its bits away."""
PASS = 16
"""Prompts that share a pass."""
FEW = 8
"""Prompts that random plans are drawn on: they are so far off that more would say nothing new."""

SMALL = 1 / 16
"""Of a variant's change, to see its first order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The demo model, and a calibration folder for it."""

    family: Any
    run: RunSettings
    card: ModelCard
    folder: CalibFolder
    lent: Lent
    blobs: dict[str, bytes]
    file: PromptFile

    @classmethod
    def load(cls, root: Path, num_steps: int) -> "Demo":
        path = default_prompts("demo")
        prompts = read_prompts(path, 1)
        run = run_settings(
            model="demo",
            prompts=prompts,
            num_steps=num_steps,
            cfg_weight=None,
            image_size=None,
            seed=0,
            use_t5=None,
            checkpoint=None,
        )
        family = load_family(run)
        card = model_card("demo", family)
        folder = CalibFolder(root)
        folder.write_run(RunFile(settings=run, prompts=tuple(prompts), store_id="relay", store=None))
        folder.write_model(card)
        blobs: dict[str, bytes] = {}
        lent = Lent(
            family=family,
            check=lambda progress: None,
            samples=lambda _: (_ for _ in ()).throw(AssertionError("no samples are needed")),
            blob=blobs.__getitem__,
            memory_share=2**33,
            engine_slot=EngineSlot(),
        )
        return cls(
            family=family, run=run, card=card, folder=folder, lent=lent, blobs=blobs, file=PromptFile(path)
        )

    def work(self, part: KeptPart) -> None:
        """Run the tasks of a part that are not done, as a fleet would, and keep their shards."""
        done = part.collected().records
        for task in part.tasks():
            if task.id in done:
                continue
            started = time.perf_counter()
            shard = run_task(task, self.lent)
            part.keep(self._record(task, shard, time.perf_counter() - started), shard)

    def _record(self, task: Task, shard: bytes, seconds: float) -> Record:
        return Record(
            task=task,
            sha256=hashlib.sha256(shard).hexdigest(),
            size=len(shard),
            fingerprint=self.card.fingerprint,
            versions=versions(),
            host="here",
            worker="here",
            seconds=seconds,
            finished_at=utc_now(),
        )

    def measure_levels(self, images: int) -> str:
        """Measure weight errors and levels; return the id of the weight errors."""
        weights_id = digest_of(CANDIDATES)[:12]
        weights = self.folder.weights.open(weights_id)
        weights.write_request(WeightsRequest(candidates=CANDIDATES))
        self.work(WeightsPart(self.folder, weights))
        settings = LevelsSettings(run_id=self.run.id, candidates=PLAIN)
        levels = self.folder.levels.open(settings.id)
        prompts = numbered(self.file.read(), range(images), self.run.seed)
        levels.write_request(LevelsRequest(settings=settings, prompts=prompts, weights_id=weights_id))
        self.work(LevelsPart(self.folder, levels))
        return weights_id

    def plan(self, prompts: int, bits: int, keep: Sequence[str] = ()) -> Plan:
        """Make the plan of the size of a uniform model."""
        options = PlanOptions(
            source=LevelsSettings(run_id=self.run.id, candidates=PLAIN).id,
            targets=[like(f"uniform:{bits}")],
            keep=keep,
            prompts=self.file,
            proof=prompts,
        )
        return make_plans(self.folder, options)[0]

    def predict(self, variants: Sequence[Variant], prompts: tuple[PlanPrompt, ...]) -> list[Prediction]:
        """Predict the errors of variants, as the kind `confirm` does."""
        data = encode_variants(tuple(variants))
        digest = variants_digest(data)
        self.blobs[digest] = data
        settings = ConfirmSettings(run_id=self.run.id, variants_sha256=digest)
        subfolder = self.folder.confirms.open(settings.id)
        names = tuple(variant.name for variant in variants)
        subfolder.write_request(ConfirmRequest(settings=settings, prompts=prompts, names=names, plans=()))
        part = ConfirmPart(self.folder, subfolder)
        self.work(part)
        paths = [subfolder.shard_path(task.id) for task in part.tasks()]
        return predict([ConfirmShard.from_bytes(path.read_bytes()) for path in paths], names)


@contextmanager
def dense(transformer: Any, variant: Variant, share: float = 1.0) -> Iterator[None]:
    """Within this context the transformer has the variant's weights, or a share of their change."""
    with ExitStack() as stack:
        for layer, choice in variant.layers.items():
            weight = get_weight(transformer, layer)
            quantized, _ = fake_quantize(weight, bits=choice.bits, group_size=choice.group_size)
            if share != 1:
                quantized = weight + share * (quantized - weight)
            stack.enter_context(swapped(transformer, layer, quantized))
        yield


class Drawing:
    """Draws the same prompts with one variant after another."""

    def __init__(self, demo: Demo, prompts: Sequence[PlanPrompt], num_steps: int) -> None:
        self._demo, self._cfg = demo, demo.run.cfg_weight
        family = demo.family
        family.hold("text_encoder", "transformer")
        self._sigmas = family.sigmas(num_steps)
        encoded = [family.encode(image.prompt, self._cfg) for image in prompts]
        firsts = [family.first_latent(image.seed, self._sigmas, demo.run.latent_size) for image in prompts]
        self._passes = []
        for start in range(0, len(prompts), PASS):
            several = encoded[start : start + PASS]
            conditioning = {name: mx.concatenate([one[name] for one in several]) for name in several[0]}
            self._passes.append((mx.concatenate(firsts[start : start + PASS]), conditioning))
        self._original = self._draw(ORIGINAL)
        spans = self._original.reshape(len(prompts), -1)
        self._peak = spans.max(axis=1) - spans.min(axis=1)
        self._norm = (spans**2).sum(axis=1)

    def errors(self, variant: Variant) -> tuple[Floats, Floats]:
        """PSNR in dB and relative squared error of final latents, (n,)."""
        difference = self._draw(variant) - self._original
        squared = (difference.reshape(len(difference), -1) ** 2).sum(axis=1)
        return psnr_db(squared, self._original[0].size, self._peak), squared / self._norm

    def first_order_errors(self, variant: Variant) -> Floats:
        """Relative squared error of final latents (n,) if it grew in proportion to the change of the weights.

        By a central difference: a small share of the change, there and back, has no part of second order.
        """
        difference = self._draw(variant, SMALL) - self._draw(variant, -SMALL)
        squared: Floats = (difference.reshape(len(difference), -1) ** 2).sum(axis=1)
        return squared / (2 * SMALL) ** 2 / self._norm

    def _draw(self, variant: Variant, share: float = 1.0) -> Floats:
        family, sigmas = self._demo.family, self._sigmas
        final = []
        with dense(family.transformer, variant, share):
            for first, conditioning in self._passes:
                x_t = first
                for i in range(len(sigmas) - 1):
                    x = mx.repeat(x_t, 2, axis=0)
                    velocity = family.velocity(x, mx.broadcast_to(sigmas[i], [len(x)]), conditioning)
                    x_t = x_t + guided_velocity(velocity, self._cfg) * (sigmas[i + 1] - sigmas[i])
                    mx.eval(x_t)
                final.append(np.array(x_t, np.float64))
        return np.concatenate(final)


def renamed(variant: Variant, bits: int) -> Variant:
    """The same under a name that is used once."""
    return Variant(name=f"{variant.name} @{bits}", layers=variant.layers)


def add_gain(report: Report, name: str, gain: Floats, mean: float | None, low: float | None) -> None:
    """Report a gain with its interval; hold mean and lower bound against what is wanted."""
    ends = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    spread = f"median {np.median(gain):.2f}, 10th {np.quantile(gain, 0.1):.2f}, worst {gain.min():.2f}"
    text = f"{gain.mean():.2f} dB ({ends.low:.2f} to {ends.high:.2f}), {spread}, {len(gain)} prompts"
    report.facts[name] = text
    click.echo(f"{name}: {text}", err=True)
    if mean is not None:
        report.at_least(f"{name}: mean", float(gain.mean()), mean)
    if low is not None:
        report.at_least(f"{name}: lower bound", float(ends.low), low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """All models of one size."""

    bits: int
    plan: Plan
    kept: Plan
    """With the context embedder at the uniform model's bits."""
    rivals: Rivals

    def variants(self) -> dict[str, Variant]:
        """By a name that only one has in all sizes."""
        found = (self.plan.variant, *self.rivals.variants())
        named = [renamed(variant, self.bits) for variant in found]
        named.append(Variant(name=f"{EMBEDDER} kept @{self.bits}", layers=self.kept.layers))
        return {variant.name: variant for variant in named}


def measure_plans(
    root: Path,
    *,
    prompts: int,
    levels: int,
    predictions: int,
    num_steps: int,
    other_steps: int,
    other_prompts: int,
) -> Report:
    """Make the plans, draw everything, and hold the gains against what is wanted."""
    report = Report(title="plans on the demo model")
    demo = Demo.load(root, num_steps)
    weights = read_weights(demo.folder, demo.measure_levels(levels))
    report.facts["levels: images"] = levels
    sizes = []
    for bits in TARGETS:
        plan = demo.plan(prompts, bits)
        kept = demo.plan(prompts, bits, keep=[f"{EMBEDDER}={bits}/64"])
        sizes.append(Size(bits=bits, plan=plan, kept=kept, rivals=rivals_of(plan, demo.card, weights)))
    sets = sizes[0].plan.prompts
    report.facts |= {"prompts": len(sets.proof), "steps": num_steps, "cfg": demo.run.cfg_weight}
    choosing, proof = Drawing(demo, sets.choosing, num_steps), Drawing(demo, sets.proof, num_steps)
    few = Drawing(demo, sets.proof[:FEW], num_steps)
    errors: dict[str, Floats] = {}
    for size in sizes:
        errors |= _draw_size(report, size, choosing, proof, few)
    if other_steps:
        _other_steps(report, Drawing(demo, sets.proof[:other_prompts], other_steps), sizes, other_steps)
    if predictions:
        variants = [one for size in sizes for name, one in size.variants().items() if name in errors]
        predicted = {one.name: one for one in demo.predict(variants, sets.prediction[:predictions])}
        own = Drawing(demo, sets.prediction[:predictions], num_steps)
        for size in sizes:
            _first_order(report, f"{size.bits} bits", own, size.plan.variant)
            name = f"plan @{size.bits}"
            _predicted(report, f"{size.bits} bits", predicted[name], errors[name])
        _ranks(report, errors, predicted)
    _hold_against_a_worker(report, demo, sizes[1].plan, num_steps)
    return report


def _draw_size(
    report: Report, size: Size, choosing: Drawing, proof: Drawing, few: Drawing
) -> dict[str, Floats]:
    """Report the gains of one plan; return the relative squared errors of all variants by name."""
    bits, text = size.bits, f"{size.bits} bits"
    best = max(size.rivals.uniform, key=lambda variant: choosing.errors(variant)[0].mean())
    psnr: dict[str, Floats] = {}
    error: dict[str, Floats] = {}
    uniform = {variant.name for variant in size.rivals.uniform} - {best.name, f"uniform {bits}/64"}
    for name, variant in size.variants().items():
        if name.partition(" @")[0] in uniform:
            continue
        drawing = few if name.startswith("random") else proof
        psnr[name], error[name] = drawing.errors(variant)
    own = psnr[f"plan @{bits}"]
    report.facts[f"{text}: PSNR of the plan"] = f"{own.mean():.2f} dB, {size.plan.stored_bytes} bytes"
    plain, mean, low = psnr[f"uniform {bits}/64 @{bits}"], *TARGETS[bits]
    add_gain(report, f"{text}: over plain uniform", own - plain, mean, low)
    add_gain(report, f"{text}: over the best, {best.name}", own - psnr[f"{best.name} @{bits}"], None, 0)
    for variant in size.rivals.others:
        rival = psnr[f"{variant.name} @{bits}"]
        add_gain(report, f"{text}: over {variant.name}", own[: len(rival)] - rival, None, 0)
    without = psnr[f"{EMBEDDER} kept @{bits}"]
    add_gain(report, f"{text}: over plain uniform, {EMBEDDER} kept at its bits", without - plain, mean, low)
    return error


def _predicted(report: Report, size: str, prediction: Prediction, error: Floats) -> None:
    predicted, measured = prediction.median_squared_error**0.5, float(np.median(error)) ** 0.5
    report.facts[f"{size}: median error predicted, measured"] = f"{predicted:.4f}, {measured:.4f}"
    share = float(np.mean(error > ANOTHER_PICTURE * prediction.median_squared_error))
    report.facts[f"{size}: prompts with another picture"] = share
    report.at_most(f"{size}: median predicted error is off by", abs(predicted / measured - 1), 0.1)


def _first_order(report: Report, size: str, drawing: Drawing, variant: Variant) -> None:
    """On the prediction's own prompts: what is drawn, and what first order without probes would say."""
    drawn, first = drawing.errors(variant)[1], drawing.first_order_errors(variant)
    text = ", ".join(f"{np.median(errors) ** 0.5:.4f}" for errors in (drawn, first))
    report.facts[f"{size}: median error on the prediction's prompts, drawn and to first order"] = text


def _ranks(report: Report, errors: Mapping[str, Floats], predicted: Mapping[str, Prediction]) -> None:
    """Predicted and measured errors of all that was drawn, random plans included."""
    report.facts["variants ranked"] = len(errors)
    measured = np.array([np.median(error[:FEW]) for error in errors.values()])
    told = np.array([predicted[name].median_squared_error for name in errors])
    report.at_least("rank correlation of predicted and measured", spearman(told, measured), 0.95)


def _other_steps(report: Report, drawing: Drawing, sizes: Sequence[Size], steps: int) -> None:
    for size in sizes:
        plain = Variant(name="plain", layers=(size.rivals.plain or ORIGINAL).layers)
        gain = drawing.errors(size.plan.variant)[0] - drawing.errors(plain)[0]
        add_gain(report, f"{size.bits} bits, {steps} steps: over plain uniform", gain, None, 0)


def _hold_against_a_worker(report: Report, demo: Demo, plan: Plan, num_steps: int) -> None:
    """The same variant by the kind `verification`, with quantized layers."""
    image = plan.prompts.proof[0]
    variants = (ORIGINAL, plan.variant)
    settings = VerificationSettings(
        run_id=demo.run.id,
        variants_sha256=variants_digest(encode_variants(variants)),
        num_steps=num_steps,
        cfg_weight=demo.run.cfg_weight,
        image_size=demo.run.image_size,
    )
    task = VerificationTask(
        run=demo.run,
        store_id="relay",
        verification=settings,
        image_index=image.image_index,
        prompt=image.prompt,
        seed=image.seed,
        floor=True,
    )
    shard = verify(task, variants, demo.family, demo.lent.check)
    by_worker = psnr_db(shard.squared_error, shard.output_size, shard.peak)[1]
    here = Drawing(demo, [image], num_steps).errors(plan.variant)[0][0]
    report.at_most("difference from a worker's verification, dB", abs(float(by_worker - here)), 0.05)
    report.facts["noise floor, dB"] = float(psnr_db(shard.floor_squared_error, shard.output_size, shard.peak))


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--prompts", default=64, show_default=True, help="Prompts of the proof.")
@click.option("--levels", default=16, show_default=True, help="Images that the levels are measured on.")
@click.option("--predictions", default=32, show_default=True, help="Images of the prediction; 0 for none.")
@click.option("--steps", default=20, show_default=True, help="Denoising steps.")
@click.option("--other-steps", default=30, show_default=True, help="Another number of steps; 0 for none.")
@click.option("--other-prompts", default=16, show_default=True, help="Prompts drawn with those.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps levels and predictions, and goes on from those that are there.",
)
def main(
    prompts: int,
    levels: int,
    predictions: int,
    steps: int,
    other_steps: int,
    other_prompts: int,
    folder: Path | None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        report = measure_plans(
            folder or Path(temporary),
            prompts=prompts,
            levels=levels,
            predictions=predictions,
            num_steps=steps,
            other_steps=other_steps,
            other_prompts=other_prompts,
        )
    print_report(report)


if __name__ == "__main__":
    main()

"""Plans from levels beside plans from exact scores: `python -m benchmarks.exact_scores`.

A level gives the score of each candidate of a layer by its size ||dW||^2 alone. An exact score is the squared
effect of that very dW on the final latent, to first order: <G, dW>^2 is that effect in expectation over the
probe, and averaged over many probes it becomes exact. So the judge is a plan by the same solver, from the
products of all candidates of all layers with many probes. Their images are those of the levels, and others
that no other set of prompts holds.

The loss is a difference in PSNR of final latents, paired, on the prompts of the proof.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
from scipy import stats

from benchmarks.plan import CANDIDATES, TARGETS, Demo, Drawing
from benchmarks.report import Report, print_report
from producer.kinds.weights import read_weights
from producer.plan.offers import make_offers
from producer.plan.prompt_sets import CHOOSING, PREDICTION
from producer.plan.solver import Limit, solve
from producer.plan.targets import like
from shared.kinds.weights import WeightsShard
from shared.metrics import Floats
from shared.plan import Variant
from shared.plan_file import PlanPrompt, numbered
from worker.engine.attention import few_heads_at_a_time
from worker.engine.backward_trajectory import StepPuller, probe_of
from worker.engine.packed_candidates import PackedCandidates, is_measurable
from worker.engine.trajectory import Trajectory, denoise

MOST_LOST = 0.6
"""In dB: so much worse may a plan from levels be than one from exact scores."""
HEADS = 4
"""Of the demo model: they all go back together."""


class Products:
    """<G, dW> of all candidates of all layers, from one probe after the other."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        transformer = demo.family.transformer
        packed = PackedCandidates(transformer, keep=False)
        self._delta = {
            (row, column): packed.difference(layer.path, choice)
            for row, layer in enumerate(demo.family.layers)
            for column, choice in enumerate(CANDIDATES)
            if is_measurable(transformer, layer.path, choice)
        }
        mx.eval(list(self._delta.values()))

    def of(self, image: PlanPrompt, probe_seed: int, steps: int) -> Floats:
        """Return <G, dW>^2 / ||x_N||^2 (L, C) of one probe of one image."""
        family, run = self._demo.family, self._demo.run
        trajectory = denoise(
            family,
            image.prompt,
            seed=image.seed,
            num_steps=steps,
            cfg_weight=run.cfg_weight,
            latent_size=run.latent_size,
        )
        final = np.array(trajectory.x[-1], np.float64)
        gradients = self._gradients(trajectory, probe_of(probe_seed, image.image_index, final.shape))
        found = np.zeros((len(family.layers), len(CANDIDATES)))
        for (row, column), delta in self._delta.items():
            by_output = (gradients[family.layers[row].path] * delta).sum(axis=-1)
            found[row, column] = np.array(by_output, np.float64).sum()
        squared: Floats = found**2 / (final**2).sum()
        return squared

    def _gradients(self, trajectory: Trajectory, cotangent: mx.array) -> dict[str, mx.array]:
        """Return by layer the gradient of <r, x_N>, summed over all steps: the demo model's fit in memory."""
        family = self._demo.family
        total = {layer.path: mx.zeros(layer.shape) for layer in family.layers}

        def add(layer: str, gradient: mx.array) -> None:
            total[layer] = total[layer] + gradient
            mx.eval(total[layer])

        with few_heads_at_a_time(family.transformer, HEADS):
            puller = StepPuller(family, trajectory, self._demo.run.cfg_weight)
            for step in reversed(range(len(trajectory.x) - 1)):
                cotangent = puller.pull(trajectory, step, cotangent, add)
        return total


def measure_products(
    demo: Demo, images: Sequence[PlanPrompt], probes: int, steps: int, kept: Path, minutes: float
) -> Floats:
    """Return squared products (n, L, C), one probe of an image after the other, until the time is up."""
    found: list[Floats] = list(np.load(kept)) if kept.is_file() else []
    wanted = [(image, 1 + turn) for turn in range(probes) for image in images]
    products, end = Products(demo), time.monotonic() + 60 * minutes
    demo.family.hold("text_encoder", "transformer")
    for image, probe_seed in wanted[len(found) :]:
        if time.monotonic() > end:
            break
        found.append(products.of(image, probe_seed, steps))
        np.save(kept, np.stack(found))
    return np.stack(found)


def exact_scores(squares: Floats) -> Floats:
    """Return scores (L, C) of squared products (n, L, C): each image's over their sum, then averaged."""
    mean: Floats = (squares / squares.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    return mean


def plan_from(demo: Demo, weights: WeightsShard, scores: Floats, bits: int) -> Variant:
    """Return the plan of the size of a uniform model, by the planner's own offers and solver."""
    offers = make_offers(demo.card, weights, [], CANDIDATES)
    by_row = offers.by_row(np.column_stack([scores, np.zeros(len(scores))]))
    budget = like(f"uniform:{bits}").budget(offers, by_row)
    limit = Limit(size=offers.stored_bytes.astype(np.float64), most=budget - offers.other_bytes)
    return offers.variant(f"exact @{bits}", solve(by_row, offers.allowed, limit).chosen)


def compare(
    root: Path, *, levels: int, images: int, probes: int, minutes: float, prompts: int, steps: int
) -> Report:
    """Make both plans of each size, draw them, and hold what the levels lose against what they may."""
    report = Report(title="plans from levels, and from exact scores")
    demo = Demo.load(root, steps)
    weights = read_weights(demo.folder, demo.measure_levels(levels))
    plans = {bits: demo.plan(prompts, bits).variant for bits in TARGETS}
    proof = demo.plan(prompts, 4).prompts.proof
    unused = levels + CHOOSING + PREDICTION + prompts
    of_scores = numbered(demo.file.read(), [*range(levels), *range(unused, unused + images)], demo.run.seed)
    squares = measure_products(demo, of_scores, probes, steps, root / "exact_products.npy", minutes)
    report.facts |= {
        "levels: images": levels,
        "exact scores: products of each candidate": len(squares),
        "exact scores: images": min(len(squares), len(of_scores)),
        "layers, candidates": f"{squares.shape[1]}, {squares.shape[2]}",
        "proof: prompts": len(proof),
    }
    for bits, plan in plans.items():
        name = f"{bits} bits: lost against half of the products, judged by the other half"
        report.facts[name] = lost_to_first_order(demo, weights, squares, plan, bits)
    drawing = Drawing(demo, proof, steps)
    for bits, plan in plans.items():
        exact = drawing.errors(plan_from(demo, weights, exact_scores(squares), bits))[0]
        add_loss(report, f"{bits} bits: lost by levels of {levels} images", exact - drawing.errors(plan)[0])
    return report


def lost_to_first_order(demo: Demo, weights: WeightsShard, squares: Floats, plan: Variant, bits: int) -> str:
    """Say what a plan loses against one from half of the products, in dB, by the scores of the other half."""
    halves = exact_scores(squares[::2]), exact_scores(squares[1::2])
    lost = [
        10 * np.log10(_total(demo, judge, plan) / _total(demo, judge, plan_from(demo, weights, scores, bits)))
        for scores, judge in (halves, halves[::-1])
    ]
    return f"{lost[0]:.2f} and {lost[1]:.2f} dB"


def _total(demo: Demo, scores: Floats, plan: Variant) -> float:
    """Return the sum of a plan's scores."""
    rows = {layer.path: row for row, layer in enumerate(demo.card.layers)}
    return float(sum(scores[rows[path], CANDIDATES.index(choice)] for path, choice in plan.layers.items()))


def add_loss(report: Report, name: str, loss: Floats) -> None:
    """Report a paired loss with its interval, and hold its mean against the most that may be lost."""
    ends = stats.ttest_1samp(loss, 0).confidence_interval(0.95)
    report.facts[name] = f"{loss.mean():.2f} dB ({ends.low:.2f} to {ends.high:.2f}), {len(loss)} prompts"
    click.echo(f"{name}: {report.facts[name]}", err=True)
    report.at_most(f"{name}, mean", float(loss.mean()), MOST_LOST)


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--levels", default=16, show_default=True, help="Images that the levels are measured on.")
@click.option("--images", default=80, show_default=True, help="More images for the exact scores.")
@click.option("--probes", default=4, show_default=True, help="Probes of each of those images.")
@click.option("--minutes", default=60.0, show_default=True, help="Time for the exact scores at most.")
@click.option("--prompts", default=64, show_default=True, help="Prompts of the proof.")
@click.option("--steps", default=20, show_default=True, help="Denoising steps.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps levels and products, and goes on from those that are there.",
)
def main(folder: Path | None, **sizes: Any) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        report = compare(folder or Path(temporary), **sizes)
    print_report(report)


if __name__ == "__main__":
    main()

"""Plain, exact and sketch on the same model, samples and candidates, in one process.

    python -m benchmarks.sensitivity [--depth 12 --hidden 128 --samples 8 --probes 12 --spread 0.5]

plain   a full forward pass for every candidate, in the same micro-batches, weights quantized once
exact   worker.engine.exact.ExactEngine: from the block where the layer matters on
sketch  worker.engine.sketch.SketchEngine: backward passes for all layers and bit widths at once

Plain takes turns with the two others, candidate by candidate and sample by sample, and their time is
counted in plain candidates measured next to them: what else the machine does slows both. Weights are
random; `spread` is how much layers differ in scale (the standard deviation of its logarithm), since
among layers that are all alike there are no ten most sensitive.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
import mlx.core as mx
import numpy as np

from benchmarks.random_mmdit import as_family, draw_samples, random_pipeline, sd3_config
from benchmarks.report import Report, print_report
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from worker.engine.batches import batch_forward, guided_velocity, split_samples
from worker.engine.exact import ExactEngine
from worker.engine.quantize import quantize_layer, swapped
from worker.engine.sketch import SketchEngine
from worker.families.diffusionkit.layers import linear_layers

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZE, CFG_WEIGHT = 64, 5.0

T = TypeVar("T")


class Clock:
    """Wall seconds of what is called through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


class Plain:
    """The plain way: the whole model for every candidate."""

    def __init__(self, pipeline: Any, samples: SampleSet, micro_batch: int) -> None:
        self._family, self._mmdit, self._samples = as_family(pipeline), pipeline.mmdit, samples
        self._batches = split_samples(samples, micro_batch)
        self._reference = self._velocities()

    def measure(self, layer: str, bits: int) -> Array:
        """Squared error (n,)."""
        candidate = quantize_layer(self._mmdit, layer, bits=bits, group_size=GROUP_SIZE)
        with swapped(self._mmdit, layer, candidate.weight):
            velocities = self._velocities()
        squares: Array = ((velocities - self._reference) ** 2).reshape(len(self._samples), -1).sum(axis=1)
        return squares

    def _velocities(self) -> Array:
        velocities = np.empty(self._samples.x.shape, np.float64)
        for batch in self._batches:
            forward = batch_forward(self._family, self._samples, batch, rows=2, dtype=mx.float32)
            velocities[batch.rows] = np.array(guided_velocity(forward(), CFG_WEIGHT))
        return velocities


def spread_over_trajectories(pipeline: Any, *, samples: int, latent: int, text_tokens: int) -> SampleSet:
    """`samples` steps of a few images, drawn by DiffusionKit's own sampler."""
    return draw_samples(
        pipeline,
        num_images=max(1, samples // 4),
        num_steps=4,
        cfg_weight=CFG_WEIGHT,
        latent_size=(latent, latent),
        text_tokens=text_tokens,
    )


def ranks(values: Array) -> Array:
    """Ranks of distinct values."""
    order: Array = np.argsort(np.argsort(values))
    return order.astype(np.float64)


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of all values of two arrays."""
    return float(np.corrcoef(ranks(a.ravel()), ranks(b.ravel()))[0, 1])


def top_in_common(a: Array, b: Array, count: int = 10) -> float:
    """Share of the `count` largest that two arrays have in common."""
    return len(set(np.argsort(-a)[:count].tolist()) & set(np.argsort(-b)[:count].tolist())) / count


def compare_engines(
    *, depth: int, hidden: int, latent: int, text_tokens: int, samples: int, probes: int, spread: float
) -> Report:
    """Run all three and hold them against the targets."""
    config = sd3_config(depth=depth, hidden=hidden, heads=max(1, hidden // 64))
    pipeline = random_pipeline(config, spread=spread)
    sample_set = spread_over_trajectories(pipeline, samples=samples, latent=latent, text_tokens=text_tokens)
    layers = [layer.path for layer in linear_layers(pipeline.mmdit)]
    engine = ExactEngine(as_family(pipeline), sample_set, CFG_WEIGHT, GROUP_SIZE)
    plain_way = Plain(pipeline, sample_set, engine.micro_batch)
    plain, exact, costs = _plain_and_exact(plain_way, engine, layers)
    sketched, sketch_cost = _sketch(pipeline, sample_set, plain_way, layers[0], probes)
    plain_cost, exact_cost = len(layers) * len(BITS), sum(costs)
    report = Report(title="sensitivity: plain, exact, sketch")
    report.facts |= {
        "blocks": depth,
        "hidden": hidden,
        "spread": spread,
        "layers": len(layers),
        "bits": list(BITS),
        "samples": len(sample_set),
        "probes a sample": probes,
        "samples a pass": engine.micro_batch,
        "tokens": latent * latent // 4 + text_tokens,
        "plain: full passes over the samples": plain_cost,
        "exact: as long as so many full passes": exact_cost,
        "sketch: as long as so many full passes": sketch_cost,
    }
    report.at_least("exact, times faster than plain", plain_cost / exact_cost, 1.8)
    expected, found = plain.sum(axis=-1), exact.sum(axis=-1)
    alive = (expected > 0).all(axis=1)
    difference = np.abs(found - expected)[alive] / expected[alive]
    report.at_most("exact against plain, largest relative difference", float(difference.max()), 1e-5)
    report.at_least("sketch, times faster than exact", exact_cost / sketch_cost, 15)
    _agreement(report, found[alive], sketched.sum(axis=-1)[alive])
    return report


def _plain_and_exact(
    plain_way: Plain, engine: ExactEngine, layers: list[str]
) -> tuple[Array, Array, list[float]]:
    """Squared errors (L, B, n) both ways, and what exact took for each layer, in plain candidates."""
    plain, exact, costs = [], [], []
    for layer in layers:
        plain_clock, exact_clock = Clock(), Clock()
        for bits in BITS:
            plain.append(plain_clock(plain_way.measure, layer, bits))
            exact.append(exact_clock(engine.measure, layer, bits).squared_error)
        costs.append(len(BITS) * exact_clock.seconds / plain_clock.seconds)
    shape = (len(layers), len(BITS), -1)
    return np.array(plain).reshape(shape), np.array(exact).reshape(shape), costs


def _sketch(
    pipeline: Any, samples: SampleSet, plain_way: Plain, layer: str, probes: int
) -> tuple[Array, float]:
    """Estimated squared errors (L, B, n), and what they took, in plain candidates."""
    engine = SketchEngine(as_family(pipeline), samples, CFG_WEIGHT, GROUP_SIZE, BITS)
    estimates, cost = [], 0.0
    for sample in range(len(samples)):
        plain_clock, sketch_clock = Clock(), Clock()
        plain_clock(plain_way.measure, layer, 4)
        shard = sketch_clock(engine.measure, sample, 0, probes)
        plain_clock(plain_way.measure, layer, 4)
        cost += 2 * sketch_clock.seconds / plain_clock.seconds
        estimates.append((shard.products**2).mean(axis=-1))
    return np.stack(estimates, axis=-1), cost


def _agreement(report: Report, exact: Array, sketch: Array) -> None:
    """Of summed squared errors (L, B)."""
    report.at_least("sketch against exact, Spearman over all pairs", spearman(exact, sketch), 0.98)
    for column, bits in enumerate(BITS):
        value = spearman(exact[:, column], sketch[:, column])
        report.at_least(f"sketch against exact, Spearman at {bits} bits", value, 0.98)
    for column, bits in enumerate(BITS):
        value = top_in_common(exact[:, column], sketch[:, column])
        report.facts[f"ten most sensitive in common at {bits} bits"] = value
    # Layers ranked as the report ranks them, by their error at 4 bits.
    four = BITS.index(4)
    value = top_in_common(exact[:, four], sketch[:, four])
    report.at_least("ten most sensitive layers in common", value, 0.9)
    off = np.sqrt(sketch[:, four] / exact[:, four]) - 1
    report.facts["sketch at 4 bits: relative error off by (root mean square)"] = float(
        np.sqrt((off**2).mean())
    )


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--depth", default=12, show_default=True, help="Blocks of the model.")
@click.option("--hidden", default=128, show_default=True, help="Width of the model.")
@click.option("--latent", default=16, show_default=True, help="Height and width of the latent.")
@click.option("--text-tokens", default=24, show_default=True, help="Tokens of the conditioning.")
@click.option("--samples", default=8, show_default=True, help="Samples to measure on, a multiple of 4.")
@click.option("--probes", default=12, show_default=True, help="Probes a sample of the sketch.")
@click.option("--spread", default=0.5, show_default=True, help="How much layers differ in scale.")
def main(**options: Any) -> None:
    print_report(compare_engines(**options))


if __name__ == "__main__":
    main()

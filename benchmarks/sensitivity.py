"""Plain, exact and sketch on the same model, samples and candidates, in one process.

    python -m benchmarks.sensitivity [--depth 12 --hidden 128 --latent 16 --samples 12 --probes 8]

plain   a full forward pass for every candidate, in the same micro-batches, weights quantized once
exact   worker.engine.exact.ExactEngine: from the step where the layer matters on
sketch  worker.engine.sketch.SketchEngine: backward passes for all layers and bit widths at once

Plain and exact take turns layer by layer, so that whatever else the machine does slows both.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
import mlx.core as mx
import numpy as np

from benchmarks.random_mmdit import draw_samples, random_pipeline, sd3_config
from benchmarks.report import Report, print_report
from shared.npz import Array
from shared.sample_set import SampleSet
from worker.engine.batches import batch_inputs, guided_velocity, split_samples
from worker.engine.exact import ExactEngine
from worker.engine.quantize import quantize_layer, swapped
from worker.engine.sketch import SketchEngine
from worker.engine.steps import forward_steps, run_steps
from worker.model.layers import linear_layers

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
        self._mmdit, self._samples = pipeline.mmdit, samples
        self._steps = forward_steps(self._mmdit)
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
            inputs = batch_inputs(self._samples, batch, rows=2, dtype=mx.float32)
            (velocity,) = run_steps(self._mmdit, self._steps, (), inputs)
            velocities[batch.rows] = np.array(guided_velocity(velocity, CFG_WEIGHT))
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
    *, depth: int, hidden: int, latent: int, text_tokens: int, samples: int, probes: int, every: int
) -> Report:
    """Run all three and hold them against the targets."""
    pipeline = random_pipeline(sd3_config(depth=depth, hidden=hidden, heads=max(1, hidden // 64)))
    sample_set = spread_over_trajectories(pipeline, samples=samples, latent=latent, text_tokens=text_tokens)
    layers = [layer.path for layer in linear_layers(pipeline.mmdit)]
    exact_clock, plain_clock, sketch_clock = Clock(), Clock(), Clock()
    exact_engine = ExactEngine(pipeline, sample_set, CFG_WEIGHT, GROUP_SIZE)
    plain_way = plain_clock(Plain, pipeline, sample_set, exact_engine.micro_batch)
    exact, plain, plain_layers = [], [], layers[::every]
    exact_of_plain = Clock()
    for layer in layers:
        before = exact_clock.seconds
        exact.append([exact_clock(exact_engine.measure, layer, bits).squared_error for bits in BITS])
        if layer in plain_layers:
            exact_of_plain.seconds += exact_clock.seconds - before
            plain.append([plain_clock(plain_way.measure, layer, bits) for bits in BITS])

    def sketch() -> Array:
        engine = SketchEngine(pipeline, sample_set, CFG_WEIGHT, GROUP_SIZE, BITS)
        shards = [engine.measure(sample, 0, probes) for sample in range(len(sample_set))]
        estimates: Array = np.stack([(shard.products**2).mean(axis=-1) for shard in shards], axis=-1)
        return estimates

    exact_errors, sketched = np.array(exact), sketch_clock(sketch)
    plain_errors = np.array(plain)
    expected = plain_errors.sum(axis=-1)
    found = exact_errors[::every].sum(axis=-1)
    alive = exact_errors.sum(axis=(1, 2)) > 0
    e, s = exact_errors.sum(axis=-1)[alive], sketched.sum(axis=-1)[alive]
    report = Report(title="sensitivity: plain, exact, sketch")
    report.facts |= {
        "blocks": depth,
        "hidden": hidden,
        "layers": len(layers),
        "bits": list(BITS),
        "samples": len(sample_set),
        "probes a sample": probes,
        "samples a pass": exact_engine.micro_batch,
        "tokens": latent * latent // 4 + text_tokens,
        "plain: layers measured": len(plain_layers),
        "plain: seconds": plain_clock.seconds,
        "exact: seconds": exact_clock.seconds,
        "sketch: seconds": sketch_clock.seconds,
    }
    report.at_least("exact, times faster than plain", plain_clock.seconds / exact_of_plain.seconds, 1.8)
    nonzero = expected > 0
    difference = np.abs(found - expected)[nonzero] / expected[nonzero]
    report.at_most("exact against plain, largest relative difference", float(difference.max()), 1e-5)
    report.at_least("sketch, times faster than exact", exact_clock.seconds / sketch_clock.seconds, 15)
    report.at_least("sketch against exact, Spearman over all pairs", spearman(e, s), 0.98)
    for column, bits in enumerate(BITS):
        report.at_least(
            f"sketch against exact, Spearman at {bits} bits", spearman(e[:, column], s[:, column]), 0.98
        )
    # Layers ranked as a report ranks them, by their error at 4 bits.
    four = BITS.index(4)
    report.at_least("ten most sensitive layers in common", top_in_common(e[:, four], s[:, four]), 0.9)
    for column, bits in enumerate(BITS):
        report.facts[f"ten most sensitive in common at {bits} bits"] = top_in_common(
            e[:, column], s[:, column]
        )
    return report


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--depth", default=12, show_default=True, help="Blocks of the model.")
@click.option("--hidden", default=128, show_default=True, help="Width of the model.")
@click.option("--latent", default=16, show_default=True, help="Height and width of the latent.")
@click.option("--text-tokens", default=24, show_default=True, help="Tokens of the conditioning.")
@click.option("--samples", default=12, show_default=True, help="Samples to measure on, a multiple of 4.")
@click.option("--probes", default=8, show_default=True, help="Probes a sample of the sketch.")
@click.option("--every", default=1, show_default=True, help="Measure every n-th layer the plain way.")
def main(**options: int) -> None:
    print_report(compare_engines(**options))


if __name__ == "__main__":
    main()

"""What the exact engine says of a float16 model in float32 and in float16, beside brute force in float32.

    python -m benchmarks.precision [--dtype float16 --depth 24 --hidden 64 --limit 3.5]

A narrow SD3 of random weights, cfg 7.5: scores of three layers, the noise floor, and seconds of a pass. Then
the sketch on one block of SD3's true width: memory it was told, and memory it took.
"""

import time
from dataclasses import replace
from typing import Any

import click
import mlx.core as mx
import numpy as np

from benchmarks.random_mmdit import as_family, draw_samples, plain_denoiser, random_pipeline, sd3_config
from benchmarks.report import Report, print_report
from shared.layout.npz import Array
from worker.engine.exact import ExactEngine
from worker.engine.layers import get_weight, set_weight
from worker.engine.memory import memory_of_weights
from worker.engine.noise import change_last_bit
from worker.engine.quantize import quantize_layer
from worker.engine.sketch import SketchEngine
from worker.families.diffusionkit.layers import linear_layers

GROUP_SIZE, CFG_WEIGHT, BITS = 32, 7.5, (2, 4, 6, 8)
BLOCK = "multimodal_transformer_blocks.{}.{}_transformer_block.{}"
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16}


def _pipeline(dtype: mx.Dtype, depth: int, hidden: int) -> Any:
    """Weights of variance 1 / inputs: MLX's own are a third of that, and then one layer hardly matters."""
    pipeline = random_pipeline(replace(sd3_config(depth=depth, hidden=hidden), dtype=dtype))
    for layer in linear_layers(pipeline.mmdit):
        set_weight(pipeline.mmdit, layer.path, 3**0.5 * get_weight(pipeline.mmdit, layer.path))
    return pipeline


def _stored_as(pipeline: Any, dtype: mx.Dtype) -> Any:
    pipeline.mmdit.set_dtype(dtype)
    pipeline.activation_dtype = dtype
    return pipeline


def _brute_force(pipeline: Any, samples: Any, layer: str = "", weight: mx.array | None = None) -> Array:
    """(n, ...) velocities of DiffusionKit's own denoiser, with all weights widened for good."""
    if weight is not None:
        set_weight(pipeline.mmdit, layer, weight)
    _stored_as(pipeline, mx.float32)
    found = []
    for image in range(len(samples.image_index)):
        rows = np.flatnonzero(samples.image == image)
        text, pooled = (array[image] for array in samples.conditioning.values())
        sigmas = mx.array(samples.sigma[rows])
        denoise = plain_denoiser(pipeline, sigmas, text, pooled, cfg_weight=CFG_WEIGHT)
        for step, row in enumerate(rows):
            found.append(np.array(denoise(mx.array(samples.x[[row]]), step, exactly=True)))
    return np.concatenate(found).astype(np.float64)


def _scores(report: Report, dtype: mx.Dtype, depth: int, hidden: int) -> None:
    size = dtype, depth, hidden
    pipeline = _pipeline(*size)
    samples = draw_samples(pipeline, num_images=2, num_steps=2, cfg_weight=CFG_WEIGHT)
    mmdit = _stored_as(pipeline, dtype).mmdit

    def judged(*swap: Any) -> Array:
        return _brute_force(_stored_as(_pipeline(*size), dtype), samples, *swap)

    v_ref = judged()
    engines = {
        name: ExactEngine(as_family(pipeline), samples, CFG_WEIGHT, GROUP_SIZE, compute=name)
        for name in ("float32", "model")
    }
    worst = 0.0
    for number, stream, kind in (
        (depth // 8, "text", "attn.k_proj"),
        (depth // 4, "text", "mlp.fc1"),
        (17 * depth // 24, "image", "attn.k_proj"),
    ):
        layer = BLOCK.format(number, stream, kind)
        for bits in BITS:
            candidate = quantize_layer(mmdit, layer, bits=bits, group_size=GROUP_SIZE).weight
            judge = _relative((judged(layer, candidate) - v_ref) ** 2, v_ref**2)
            shards = {name: engine.measure(layer, bits) for name, engine in engines.items()}
            found = {n: _relative(s.squared_error, s.squared_reference) for n, s in shards.items()}
            floor = {n: _relative(s.noise_squared_error, s.squared_reference) for n, s in shards.items()}
            worst = max(worst, abs(found["float32"] / judge - 1))
            report.facts[f"block {number} {stream} {kind.split('.')[1]}, {bits} bits"] = (
                f"float32 {found['float32']:.5f}, model {found['model']:.5f}, brute force {judge:.5f}; "
                f"floors {floor['float32']:.1e}, {floor['model']:.1e}"
            )
        last_bit = change_last_bit(get_weight(mmdit, layer))
        changed = _relative((judged(layer, last_bit) - v_ref) ** 2, v_ref**2)
        report.facts[f"block {number} {stream} {kind.split('.')[1]}, last bit as stored, in float32"] = (
            f"{changed:.6f}"
        )
    report.at_most("engine in float32 against brute force, largest relative difference", worst, 1e-4)
    for name, engine in engines.items():
        start = time.perf_counter()
        engine.measure("context_embedder", 4)
        engine.measure("context_embedder", 2)
        report.facts[f"two candidates of context_embedder in {name}: seconds"] = time.perf_counter() - start


def _relative(error: Array, reference: Array) -> float:
    return float(np.sqrt(error.sum() / reference.sum()))


def _sketch(report: Report, width: int, limit_gb: float, probes: tuple[int, ...]) -> None:
    pipeline = random_pipeline(sd3_config(depth=1, hidden=width, heads=width // 64))
    samples = draw_samples(pipeline, num_images=1, num_steps=1, latent_size=(32, 32), text_tokens=77)
    mx.clear_cache()
    limit = int(limit_gb * 1e9)
    report.facts["sketch: weights of the block, GB"] = memory_of_weights(pipeline.mmdit) / 1e9
    for count in probes:
        engine = SketchEngine(as_family(pipeline), samples, 4.0, 64, (2, 4, 8), limit)
        mx.reset_peak_memory()
        start = time.perf_counter()
        engine.measure(0, 0, count)
        report.facts[f"sketch, {count} probes: seconds"] = time.perf_counter() - start
        at_once = getattr(engine, "at_once", None)
        report.facts[f"sketch, {count} probes: back together"] = at_once
        report.at_most(f"sketch, {count} probes: peak, GB", mx.get_peak_memory() / 1e9, limit_gb)
        del engine


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float16", show_default=True)
@click.option("--depth", default=24, show_default=True, help="Blocks of the narrow model.")
@click.option("--hidden", default=64, show_default=True, help="Width of the narrow model.")
@click.option("--width", default=1536, show_default=True, help="Width of the sketch's one block.")
@click.option("--limit", default=3.5, show_default=True, help="GB that the sketch is told.")
@click.option("--probes", default="1,8", show_default=True, help="Probes of the sketch, by comma.")
def main(dtype: str, depth: int, hidden: int, width: int, limit: float, probes: str) -> None:
    report = Report(title="precision and memory of the engines")
    if depth:
        _scores(report, DTYPES[dtype], depth, hidden)
    if width:
        _sketch(report, width, limit, tuple(int(count) for count in probes.split(",")))
    print_report(report)


if __name__ == "__main__":
    main()

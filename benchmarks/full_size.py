"""The transformer of SD3 medium at full size, with random weights: seconds and memory of both engines.

    python -m benchmarks.full_size [--latent 16 --probes 2 --blocks 0,12,23]

Needs 8 GB for the weights in float32 and some more for passes. Measures a full forward pass, exact
candidates in a few blocks, and one sketch of one sample; how long all layers take is extrapolated.
"""

import time
from typing import Any

import click
import mlx.core as mx

from benchmarks.random_mmdit import as_family, draw_samples, random_pipeline
from benchmarks.report import Report, print_report
from worker.engine.exact import ExactEngine
from worker.engine.limits import default_memory_limit
from worker.engine.sketch import SketchEngine
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx.config import MMDiTConfig

BITS = (2, 3, 4, 5, 6, 8)
CFG_WEIGHT, GROUP_SIZE = 5.0, 64
GIB = 2**30


def measure_full_size(*, latent: int, text_tokens: int, probes: int, blocks: list[int]) -> Report:
    """One sample of a random SD3 medium."""
    config = MMDiTConfig(max_latent_resolution=96, dtype=mx.float32, low_memory_mode=False)
    pipeline = random_pipeline(config)
    mmdit = pipeline.mmdit
    layers = [layer.path for layer in linear_layers(mmdit)]
    samples = draw_samples(
        pipeline,
        num_images=1,
        num_steps=1,
        cfg_weight=CFG_WEIGHT,
        latent_size=(latent, latent),
        text_tokens=text_tokens,
    )
    report = Report(title="SD3 medium at full size, random weights, one sample")
    report.facts |= {"layers": len(layers), "latent": latent, "text tokens": text_tokens}
    report.facts |= {"weights, GiB": mx.get_active_memory() / GIB}
    family = as_family(pipeline)
    engine = ExactEngine(family, samples, CFG_WEIGHT, GROUP_SIZE)
    # The first measurement also makes the reference and the noise floor.
    engine.measure("t_embedder.mlp.layers.2", 4)
    mx.reset_peak_memory()
    forward = _seconds(engine, "t_embedder.mlp.layers.0", 4)
    report.facts["candidate from the start (a full pass): seconds"] = forward
    for block in blocks:
        path = f"multimodal_transformer_blocks.{block}.image_transformer_block."
        _seconds(engine, f"{path}attn.q_proj", 4)
        report.facts[f"block {block}, attn.k_proj: seconds"] = _seconds(engine, f"{path}attn.k_proj", 4)
    report.facts["exact: peak memory, GiB"] = mx.get_peak_memory() / GIB
    list_path, depth = "multimodal_transformer_blocks.", len(mmdit.multimodal_transformer_blocks)
    blocks_before = [
        int(layer.split(".")[1]) if layer.startswith(list_path) else depth * layer.startswith("final_layer.")
        for layer in layers
    ]
    passes = sum(1 - before / depth for before in blocks_before) * len(BITS)
    report.facts["exact, 6 bit widths: full passes a sample (counted)"] = passes
    report.facts["plain, 6 bit widths: full passes a sample (counted)"] = len(layers) * len(BITS)
    del engine
    mx.clear_cache()
    mx.reset_peak_memory()
    sketch = SketchEngine(family, samples, CFG_WEIGHT, GROUP_SIZE, BITS, default_memory_limit())
    start = time.perf_counter()
    sketch.measure(0, 0, probes)
    seconds = time.perf_counter() - start
    report.facts |= {
        "probes": probes,
        "sketch of all layers, 6 bit widths: seconds": seconds,
        "sketch: full passes' worth of time": seconds / forward,
        "sketch: peak memory, GiB": mx.get_peak_memory() / GIB,
        "sketch, times faster than exact (extrapolated)": passes * forward / seconds,
    }
    return report


def _seconds(engine: Any, layer: str, bits: int) -> float:
    start = time.perf_counter()
    engine.measure(layer, bits)
    return time.perf_counter() - start


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--latent", default=16, show_default=True, help="Height and width of the latent.")
@click.option("--text-tokens", default=77, show_default=True, help="Tokens of the conditioning.")
@click.option("--probes", default=2, show_default=True, help="Probes of the sketch.")
@click.option("--blocks", default="0,12,23", show_default=True, help="Where to measure candidates.")
def main(latent: int, text_tokens: int, probes: int, blocks: str) -> None:
    chosen = [int(block) for block in blocks.split(",")]
    print_report(measure_full_size(latent=latent, text_tokens=text_tokens, probes=probes, blocks=chosen))


if __name__ == "__main__":
    main()

"""A calibration task against DiffusionKit's bare denoising loop, and against reloading for each image.

    python -m benchmarks.calibration [--images 5 --steps 20 --hidden 128 --depth 6]

task    worker.engine.calibrate.calibrate: the whole task, shard packed, preview decoded and compressed
bare    encode_text, denoise_latents and the VAE of the same pipeline; nothing is kept, and what
        clear_cache reads from disk is handed back from memory, without which image 2 would crash
reload  bare, with the pipeline loaded anew for each image, as one-image scripts do

They take turns image by image.
"""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import mlx.core as mx

from benchmarks.report import Report, print_report
from benchmarks.settings import run_settings
from shared.kinds.calibration import CalibrationTask
from shared.runs import RunSettings
from worker.engine.calibrate import calibrate
from worker.families.diffusionkit import loading
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.small_models import TINY_SD3, BuiltIn
from worker.families.diffusionkit.tiny_checkpoint import write_random_checkpoint
from worker.families.family import Family
from worker.families.registry import load_family

with quiet_imports():
    from diffusionkit.mlx import CFGDenoiser

PROMPT = "a red circle left of a blue square"


def compare_loops(*, images: int, steps: int, hidden: int, depth: int, image_size: int) -> Report:
    """Time all three."""
    small = replace(
        TINY_SD3,
        hidden_size=hidden,
        num_heads=hidden // 64,
        depth=depth,
        max_latent_resolution=image_size // 8,
    )
    run = run_settings(num_steps=steps, image_size=image_size)
    seconds: dict[str, list[float]] = {"task": [], "bare": [], "reload": []}
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(Path(folder), small)
        with patch.dict(loading.BUILT_IN, {"tiny-sd3": BuiltIn(small, lambda: Path(folder))}):
            model = load_family(run)
            _bare(model, run, seed=999)
            for seed in range(images):
                seconds["task"].append(_timed(_task, model, run, seed))
                seconds["bare"].append(_timed(_bare, model, run, seed))
                seconds["reload"].append(_timed(_reload, run, seed))
    report = Report(title="calibration: task, bare loop, reloading")
    report.facts |= {"images": images, "steps": steps, "hidden": hidden, "blocks": depth}
    report.facts |= {"pixels": image_size}
    # The fastest image of each: what else the machine did at that moment is no one's overhead.
    fastest = {name: min(values) for name, values in seconds.items()}
    report.facts |= {f"{name}: seconds, fastest image": value for name, value in fastest.items()}
    report.facts["reload over task"] = fastest["reload"] / fastest["task"]
    report.at_most("task over bare loop", fastest["task"] / fastest["bare"], 1.05)
    return report


def _timed(function: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _task(model: Family, run: RunSettings, seed: int) -> None:
    task = CalibrationTask(run=run, store_id="benchmark", image_index=seed, prompt=PROMPT, seed=seed)
    calibrate(task, model, lambda progress: None).to_bytes()


def _reload(run: RunSettings, seed: int) -> None:
    _bare(load_family(run), run, seed)


def _bare(model: Family, run: RunSettings, seed: int) -> None:
    pipeline: Any = model._pipeline  # type: ignore[attr-defined]
    conditioning, pooled = pipeline.encode_text(PROMPT, run.cfg_weight, "")
    kept = [
        (module, module.weight, module.bias)
        for name, module in pipeline.mmdit.named_modules()
        if name.endswith("adaLN_modulation.layers.1")
    ]

    def hand_back(_: CFGDenoiser) -> None:
        for module, weight, bias in kept:
            module.weight, module.bias = weight, bias

    with patch.object(CFGDenoiser, "clear_cache", hand_back):
        latent, _ = pipeline.denoise_latents(
            conditioning,
            pooled,
            num_steps=run.num_steps,
            cfg_weight=run.cfg_weight,
            latent_size=run.latent_size,
            seed=seed,
        )
    pipeline.mmdit.clear_modulation_params_cache()
    mx.eval(pipeline.decode_latents_to_image(latent))


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--images", default=5, show_default=True, help="Images drawn each way.")
@click.option("--steps", default=20, show_default=True, help="Denoising steps an image.")
@click.option("--hidden", default=128, show_default=True, help="Width of the model.")
@click.option("--depth", default=6, show_default=True, help="Blocks of the model.")
@click.option("--image-size", default=128, show_default=True, help="Pixels, of the square image.")
def main(**options: int) -> None:
    # DiffusionKit's progress bar would be among the figures.
    os.environ["TQDM_DISABLE"] = "1"
    print_report(compare_loops(**options))


if __name__ == "__main__":
    main()

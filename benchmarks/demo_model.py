"""How well the demo model draws: `python -m benchmarks.demo_model --prompts 96`.

Draws held-out prompts with DiffusionKit's own sampler, judges each picture by colour and template, prints
the shares that are right beside those of true renders, and writes a contact sheet.
"""

import argparse
import contextlib
import io
import textwrap
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.settings import run_settings
from shared.identity import digest_of
from shared.models import model_spec
from training.grammar import Scene, sample_scenes
from training.judge import Verdict, judge
from training.render import IMAGE_SIZE, Array, render_all
from worker.families.diffusionkit.loading import load_model

SEED = 20
COLUMNS = 8
_TILE, _CAPTION = 2 * IMAGE_SIZE, 34


def draw(scenes: list[Scene], *, steps: int, cfg_weight: float) -> tuple[Array, float]:
    """Pictures (n, 64, 64, 3) in [0, 1], and seconds a picture."""
    settings = run_settings(
        "demo",
        num_steps=steps,
        cfg_weight=cfg_weight,
        seed=SEED,
        prompts_sha256=digest_of([scene.prompt for scene in scenes]),
    )
    loaded = load_model(settings)
    pictures, started = [], time.perf_counter()
    for index, scene in enumerate(scenes):
        text, pooled = loaded.pipeline.encode_text(scene.prompt, cfg_weight)
        with contextlib.redirect_stderr(io.StringIO()):
            latent, _ = loaded.pipeline.denoise_latents(
                text, pooled, steps, cfg_weight, settings.latent_size, seed=SEED + index
            )
        pictures.append(np.array(loaded.pipeline.decode_latents_to_image(latent))[0])
    print(f"fingerprint {loaded.fingerprint}")
    return np.stack(pictures), (time.perf_counter() - started) / len(scenes)


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Share right, of things or of pictures."""
    return {
        "colour": float(np.mean([right for verdict in verdicts for right in verdict.colours])),
        "shape": float(np.mean([right for verdict in verdicts for right in verdict.shapes])),
        "side": float(np.mean([verdict.side for verdict in verdicts])),
        "nothing surplus": float(np.mean([verdict.surplus == 0 for verdict in verdicts])),
        "all right": float(np.mean([is_right(verdict) for verdict in verdicts])),
    }


def is_right(verdict: Verdict) -> bool:
    """Everything the scene asks for, and nothing else."""
    return all(verdict.colours) and all(verdict.shapes) and verdict.side and verdict.surplus == 0


def contact_sheet(pictures: Array, scenes: list[Scene], verdicts: list[Verdict]) -> Image.Image:
    """All pictures with their prompts; a red frame where something is wrong."""
    rows = -(-len(scenes) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (_TILE + 8), rows * (_TILE + _CAPTION + 8)), "#dddddd")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, scene, verdict) in enumerate(zip(pictures, scenes, verdicts, strict=True)):
        left, top = index % COLUMNS * (_TILE + 8) + 4, index // COLUMNS * (_TILE + _CAPTION + 8) + 4
        tile = Image.fromarray(np.round(picture * 255).astype(np.uint8)).resize((_TILE, _TILE))
        if not is_right(verdict):
            pen.rectangle((left - 3, top - 3, left + _TILE + 2, top + _TILE + 2), fill="#d00000")
        sheet.paste(tile, (left, top))
        for line, text in enumerate(textwrap.wrap(scene.prompt, 27)):
            pen.text((left, top + _TILE + 1 + 10 * line), text, fill="black", font_size=9)
    return sheet


def main() -> None:
    """Print the figures and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-weight", type=float, default=model_spec("demo").cfg_weight)
    parser.add_argument("--trained", action="store_true", help="prompts that were trained on, for comparison")
    parser.add_argument("--sheet", type=Path, default=Path("bench_results/demo_model.png"))
    options = parser.parse_args()
    scenes = sample_scenes(options.prompts, seed=SEED, held_out=not options.trained)
    true = [judge(p / 255, s) for p, s in zip(render_all(scenes, seed=SEED), scenes, strict=True)]
    pictures, seconds = draw(scenes, steps=options.steps, cfg_weight=options.cfg_weight)
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    kind = "trained" if options.trained else "held-out"
    drawn = f"{len(scenes)} {kind} prompts, {options.steps} steps, cfg {options.cfg_weight:g}"
    print(f"{drawn}, {seconds:.2f} s a picture")
    for (name, share), ceiling in zip(shares(verdicts).items(), shares(true).values(), strict=True):
        print(f"{name:16} {share:6.1%}   (true renders: {ceiling:.1%})")
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, scenes, verdicts).save(options.sheet)
    print(f"contact sheet: {options.sheet}")


if __name__ == "__main__":
    main()

"""What large calibration folders cost the producer: time and memory of a collector's pass, and of enqueueing.

    python -m benchmarks.large_folder [--images 10000] [--measured-images 100] [--only pass]

pass      `producer collect` on 10,000 images of 50 steps, 100 of them missing: the first pass of a
          process, and one that finds nothing new
enqueue   `producer enqueue-sensitivity` on 100 images of 50 steps at SD3's sizes (1024 px), into a folder
          store: on every fifth step, and on every step of a tenth of the images

Peak memory is that of the whole process, Python and libraries included.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.collected_folder import make_collected_folder
from benchmarks.report import Report, print_report
from producer.jobs.redis_server import RedisServer
from shared.stores.folder_store import FolderStore
from shared.stores.relay_store import RELAY_ID

MISSING = 100


def measure_pass(*, images: int, num_steps: int) -> Report:
    """Make a folder, and let a new process make two passes over it."""
    report = Report(title=f"a collector's pass over {images:,} images of {num_steps} steps")
    with tempfile.TemporaryDirectory() as temporary, RedisServer(Path(temporary) / "redis") as server:
        root = Path(temporary) / "calib"
        make_collected_folder(
            root,
            images=images,
            missing=min(MISSING, images - 1),
            num_steps=num_steps,
            latent=2,
            text_width=8,
            store_id=RELAY_ID,
        )
        found = _measured("passes", str(root), REDIS_URL=server.url)
    report.facts |= {"missing images": min(MISSING, images - 1), **found["facts"]}
    report.at_most("first pass: CPU seconds", found["first"], 60)
    report.at_most("idle pass: CPU seconds", found["idle"], 1)
    report.at_most("peak memory: MB", found["peak"] / 1e6, 500)
    return report


def measure_enqueueing(*, images: int, num_steps: int, latent: int) -> Report:
    """Enqueue measurements on a folder at SD3's sizes."""
    report = Report(title=f"enqueue-sensitivity on {images} images of {num_steps} steps, {8 * latent} px")
    with tempfile.TemporaryDirectory() as temporary, RedisServer(Path(temporary) / "redis") as server:
        root, store = Path(temporary) / "calib", Path(temporary) / "store"
        make_collected_folder(
            root,
            images=images,
            missing=0,
            num_steps=num_steps,
            latent=latent,
            text_width=4096,
            store_id=FolderStore.open(str(store), create=True).id,
        )
        base = ["--calib-dir", str(root), "--store", str(store), "--redis-url", server.url]
        # The manifest, which a folder that was collected has.
        _measured("command", "collect", *base)
        report.facts["status: peak MB"] = _measured("command", "status", *base)["peak"] / 1e6
        for title, options in (
            ("every fifth step", ("--max-images", str(images), "--step-stride", "5")),
            ("every step of a tenth", ("--max-images", str(max(1, images // 10)), "--step-stride", "1")),
        ):
            before = _bytes_in(store)
            found = _measured("command", "enqueue-sensitivity", "--bits", "4", *options, *base)
            report.facts[f"{title}: seconds"] = found["seconds"]
            report.facts[f"{title}: MB of samples"] = (_bytes_in(store) - before) / 1e6
            report.at_most(f"{title}: peak MB", found["peak"] / 1e6, 300)
    return report


def _measured(*arguments: str, **environment: str) -> dict[str, Any]:
    """Return what `benchmarks/peak_memory.py` prints."""
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("peak_memory.py")), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.option("--images", default=10_000, show_default=True)
@click.option("--measured-images", default=100, show_default=True)
@click.option("--num-steps", default=50, show_default=True)
@click.option("--only", type=click.Choice(["pass", "enqueue"]))
def main(images: int, measured_images: int, num_steps: int, only: str | None) -> None:
    """Print what large folders cost."""
    if only != "pass":
        print_report(measure_enqueueing(images=measured_images, num_steps=num_steps, latent=128))
    if only != "enqueue":
        print_report(measure_pass(images=images, num_steps=num_steps))


if __name__ == "__main__":
    main()

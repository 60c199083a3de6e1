"""Velocity of each forward pass against diffusers: `python -m benchmarks.published`.

Small transformers of seeded random weights in the publishers' own layouts, every bias other than zero. One
file is read by DiffusionKit's loaders and, converted by diffusers' own functions, by diffusers. The judge is
diffusers in float32, on the same (rounded) weights and inputs. With `--float64` the judge is diffusers in
float64, which tells whose rounding a difference is. Needs diffusers (the dev extra).
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.diffusers_judge import diffusers_velocity, float64_velocity, load_diffusers
from benchmarks.published_models import (
    Case,
    DType,
    cases,
    load_mlx,
    mlx_velocity,
    new_question,
    timestep_of,
    write_checkpoint,
)
from shared.layout.npz import Array

SIGMAS = (1.0, 0.7773, 0.5, 0.05)


def relative(velocity: Array, reference: Array) -> float:
    """||v - v_ref|| / ||v_ref||."""
    return float(np.linalg.norm(velocity - reference) / np.linalg.norm(reference))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; relative differences to diffusers in float32, one a sigma."""

    case: Case
    dtype: DType
    diffusionkit: list[float]
    published: list[float]
    diffusers: list[float]
    """Of diffusers computing in this dtype."""


def measure(case: Case, path: Path, dtype: DType, sigmas: tuple[float, ...] = SIGMAS) -> Row:
    """Ask all of them for the velocity at these noise levels."""
    judge = load_diffusers(case, path, "float32")
    own = judge if dtype == "float32" else load_diffusers(case, path, dtype)
    published, plain = (load_mlx(case, path, dtype, name) for name in ("published", "diffusionkit"))
    question = new_question(dtype)
    found: dict[str, list[float]] = {"diffusionkit": [], "published": [], "diffusers": []}
    for sigma in sigmas:
        timestep = timestep_of(case, sigma, dtype, "published")
        right = diffusers_velocity(case, judge, question, timestep, dtype)
        theirs = timestep_of(case, sigma, dtype, "diffusionkit")
        found["published"].append(relative(mlx_velocity(published, question, timestep, dtype), right))
        found["diffusionkit"].append(relative(mlx_velocity(plain, question, theirs, dtype), right))
        found["diffusers"].append(relative(diffusers_velocity(case, own, question, timestep, dtype), right))
    return Row(case=case, dtype=dtype, **found)


def measure_float64(case: Case, path: Path, sigmas: tuple[float, ...] = SIGMAS) -> dict[str, list[float]]:
    """Return relative differences of float32 passes to diffusers in float64, one a sigma."""
    judge, own = load_diffusers(case, path, "float64"), load_diffusers(case, path, "float32")
    published, question = load_mlx(case, path, "float32", "published"), new_question("float32")
    found: dict[str, list[float]] = {"published": [], "diffusers": []}
    for sigma in sigmas:
        timestep = timestep_of(case, sigma, "float32", "published")
        right = float64_velocity(case, judge, question, timestep)
        found["published"].append(relative(mlx_velocity(published, question, timestep, "float32"), right))
        theirs = diffusers_velocity(case, own, question, timestep, "float32")
        found["diffusers"].append(relative(theirs, right))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--depth", type=int, default=6, help="blocks of each kind")
    parser.add_argument("--no-key-biases", action="store_true", help="what the other differences are worth")
    parser.add_argument("--float64", action="store_true", help="float32 against diffusers in float64")
    options = parser.parse_args()
    columns = " ".join(f"{f't={1000 * sigma:g}':>9}" for sigma in SIGMAS)
    print(f"{'model':15} {'dtype':9} {'forward pass':22} {columns}")
    for case in cases(options.depth):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "transformer.safetensors"
            write_checkpoint(case, path, key_biases=not options.no_key_biases)
            if options.float64:
                for label, values in measure_float64(case, path).items():
                    _print_line(case, "float32", label, values)
                continue
            for dtype in ("float32", case.half):
                row = measure(case, path, dtype)
                lines = {"DiffusionKit's": row.diffusionkit, "published": row.published}
                if dtype != "float32":
                    lines["diffusers in 16 bits"] = row.diffusers
                for label, values in lines.items():
                    _print_line(case, dtype, label, values)


def _print_line(case: Case, dtype: str, label: str, values: list[float]) -> None:
    cells = " ".join(f"{value:9.1e}" for value in values)
    print(f"{case.name:15} {dtype:9} {label:22} {cells}", flush=True)


if __name__ == "__main__":
    main()

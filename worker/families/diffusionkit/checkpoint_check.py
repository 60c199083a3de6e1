"""Checks that a checkpoint holds what its model needs. It reads the header only."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from worker.families.diffusionkit.sd3_layout import MMDIT_PREFIX

DTYPES = ("F16", "BF16", "F32")
"""Dtypes in which weights may be stored. Others (fp8, packed integers) would be read as other numbers."""

OTHER_PARTS = ("first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.", "teacher_model.")
"""Prefixes of names beside the transformer in one-file checkpoints: VAE, text encoders, a teacher."""

Shape = tuple[int, ...]


class MisfitError(ValueError):
    """Names the first tensor that is missing, surplus, or of another shape or dtype, and says what is
    wrong with it.
    """


def check_transformer(path: Path, wanted: Mapping[str, Shape], ignored: tuple[str, ...] = ()) -> None:
    """Compare a checkpoint with all names and shapes of a transformer.

    Args:
        path: a safetensors file.
        wanted: shape of each tensor, by its publisher's name.
        ignored: starts of surplus names that are no reason to refuse.

    Raises:
        MisfitError: something is missing, surplus or misfitting.
    """
    held = _header(path)
    if wanted.keys().isdisjoint(held):
        # DiffusionKit takes the names of SD3 with and without this prefix.
        wanted = {name.removeprefix(MMDIT_PREFIX): shape for name, shape in wanted.items()}
    _check_wanted(held, wanted)
    surplus = [name for name in held if name not in wanted and not name.startswith((*OTHER_PARTS, *ignored))]
    if surplus:
        raise MisfitError(f"{min(surplus)!r} is a tensor that this model doesn't have{_hint(surplus)}")


def check_part(path: Path, wanted: Mapping[str, Shape]) -> None:
    """Compare a checkpoint with the names and shapes of a text encoder or a VAE; surplus is no matter.

    Raises:
        MisfitError: something is missing or misfitting.
    """
    _check_wanted(_header(path), wanted)


def _header(path: Path) -> dict[str, tuple[Shape, str]]:
    """Return the shape and dtype of each tensor in a file."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise MisfitError(f"no whole safetensors file ({error})") from None


def _check_wanted(held: Mapping[str, tuple[Shape, str]], wanted: Mapping[str, Shape]) -> None:
    for name, shape in wanted.items():
        if name not in held:
            raise MisfitError(f"{name!r} is missing; a tensor of shape {shape} belongs there{_hint(held)}")
        found, dtype = held[name]
        if dtype not in DTYPES:
            raise MisfitError(f"{name!r} is stored as {dtype}; weights in 16 or 32 bits are needed")
        if found != shape:
            raise MisfitError(f"{name!r} has shape {found}; {shape} belongs there")


def _hint(names: Mapping[str, object] | list[str]) -> str:
    quantized = any(name.endswith((".scales", ".scale_weight", ".qweight", ".absmax")) for name in names)
    return " (it is quantized already)" if quantized else ""

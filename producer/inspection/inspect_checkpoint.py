"""All that `producer inspect` says of a checkpoint."""

from pathlib import Path

from msgspec import Struct

from producer.inspection.layers import Layer, layers_of
from producer.inspection.tensors import read_parts


class Inspection(Struct, frozen=True, kw_only=True):
    """A checkpoint, layer by layer."""

    path: str
    layers: tuple[Layer, ...]
    tensors: int
    """Number of stored tensors."""
    nbytes: int
    """Of all tensors."""
    problems: tuple[str, ...]
    """Where index and files disagree; what is wrong with one layer is said there."""

    @property
    def quantized(self) -> tuple[Layer, ...]:
        """The layers that are packed."""
        return tuple(layer for layer in self.layers if layer.group_size is not None)

    @property
    def all_problems(self) -> tuple[str, ...]:
        """One line a problem."""
        wrong = (layer for layer in self.layers if layer.problem)
        return (*self.problems, *(f"{_below(layer.part, layer.path)}: {layer.problem}" for layer in wrong))

    @property
    def other_bytes(self) -> int:
        """Of tensors that are in no layer: biases, norms, tables."""
        return self.nbytes - sum(layer.nbytes for layer in self.layers)


def inspect_checkpoint(path: Path) -> Inspection:
    """Read the headers of a file, or of all files in a folder, and say what they hold.

    Raises:
        InputError: there is no safetensors file, or one is damaged.
    """
    parts = read_parts(path)
    layers = [layer for part in parts for layer in layers_of(part, path.resolve().name)]
    tensors = [tensor for part in parts for tensor in part.tensors.values()]
    return Inspection(
        path=str(path),
        layers=tuple(layers),
        tensors=len(tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        problems=tuple(_below(part.name, line) for part in parts for line in part.problems),
    )


def _below(part: str, what: str) -> str:
    return f"{part}/{what}" if part else what

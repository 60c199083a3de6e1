"""What the engines and the trajectory know of a model, whatever library it comes from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import mlx.core as mx

from shared.layer_place import LayerPlace
from shared.runs import RunSettings

Part = Literal["transformer", "text_encoder", "decoder"]
ALL_PARTS: frozenset[Part] = frozenset({"transformer", "text_encoder", "decoder"})

Conditioning = Mapping[str, mx.array]
"""What the transformer is told of a prompt: arrays of R rows, by the names that a sample file gives them."""


class Family(Protocol):
    """One loaded model. The transformer is entered by `velocity` alone."""

    @property
    def transformer(self) -> Any:
        """The `nn.Module` whose layers are measured."""

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over the files that the weights came from."""

    @property
    def stages(self) -> Mapping[str, Sequence[Any]]:
        """The transformer's lists of blocks by dotted path; `velocity` calls each block once."""

    @property
    def after_blocks(self) -> tuple[str, ...]:
        """Starts of the dotted paths of what is read only after the last block."""

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        """Conditioning of a prompt: with CFG two rows (text, negative), else one."""

    def sigmas(self, steps: int, size: tuple[int, int]) -> mx.array:
        """Noise levels (steps + 1,) float32 of an image of this height and width in pixels; the last is 0."""

    def first_latent(self, seed: int, sigmas: mx.array, size: tuple[int, int]) -> mx.array:
        """What enters the first step, (1, H, W, C) float32, drawn from `seed`."""

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        """The transformer's output by its own forward pass, lazy, with the weights as they are now.

        Args:
            x: (R, H, W, C); its dtype is the one to compute in.
            sigma: (R,) float32. Rows may differ only if `rows_may_differ`.
            conditioning: R rows.

        Returns:
            (R, H, W, C), not guided.
        """

    @property
    def rows_may_differ(self) -> bool:
        """Whether rows of one pass may have different sigmas."""

    def decode(self, x_0: mx.array) -> bytes:
        """The image of a final latent (1, H, W, C), as PNG."""

    def place(self, path: str) -> LayerPlace:
        """Where the layer at a dotted path sits."""

    def export_name(self, path: str) -> str:
        """What the export format calls a layer; layers of one tie have one name there."""


class Load(Protocol):
    """The function `load` of a family's module."""

    def __call__(self, settings: RunSettings, checkpoint: Path | None, parts: frozenset[Part]) -> Family:
        """Load the model of a run, or parts of it.

        Raises:
            InputError: no such model, or a setting that it can't have.
            RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """

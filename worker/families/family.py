"""What the engines know about a model, whatever library it comes from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from shared.layer_place import LayerPlace
from shared.model_card import LayerInfo
from shared.models import Part
from shared.runs import RunSettings
from worker.export.folder import ExportFolder

Conditioning = Mapping[str, mx.array]
"""What the transformer is told of a prompt: arrays of R rows by name. SD3 and FLUX have `conditioning`
(R, T, D) and `pooled_conditioning` (R, P). A family may have others, under any Python identifiers; for all
prompts of a run they have the same shapes. They travel as they are; see `shared.layout.conditioning`."""

Draw = Callable[..., mx.array]
"""Draws an array of a shape (R, ...) in the activation dtype, the same on every machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSize:
    """Size of one row of a forward pass, to estimate its memory before weights are read."""

    tokens: int
    """Image and text together."""
    width: int
    """Channels of a token."""
    heads: int
    blocks: int
    mlp_ratio: float
    """Channels inside an MLP, as a multiple of `width`."""


class Family(Protocol):
    """One loaded model. Engines run its transformer by `velocity` only."""

    @property
    def transformer(self) -> Any:
        """The `nn.Module` whose layers are measured."""

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations when images are drawn."""

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over the files that the weights came from."""

    def part_fingerprints(self) -> dict[str, str]:
        """sha256, in hex, over the files of each part that was loaded so far."""

    def hold(self, *parts: Part) -> None:
        """Load these parts, unless they are loaded.

        Raises:
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """

    def keep_only(self, *parts: Part) -> None:
        """Drop all other parts and free their memory."""

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """Every linear layer that can be measured, in the order in which a forward pass first needs it.

        Raises:
            ModelUnavailableError: there is none, because the checkpoint is already quantized.
        """

    @property
    def stages(self) -> Mapping[str, Any]:
        """The transformer's lists of blocks by dotted path; `velocity` calls each block once.

        Modules that it calls once before the blocks, as embedders, may stand here by themselves: gradients of
        layers in no stage cost a product for each block.
        """

    @property
    def after_blocks(self) -> tuple[str, ...]:
        """Prefixes of the dotted paths of layers that are read only after the last block."""

    def pass_size(self, latent_size: tuple[int, int], text_tokens: int) -> PassSize:
        """Return the size of a row with a latent of this height and width, and this many tokens of text."""

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        """Return the conditioning of a prompt in `dtype`, evaluated: with CFG two rows (text, negative),
        else one.
        """

    def canary_conditioning(self, draw: Draw, rows: int, tokens: int) -> Conditioning:
        """Return random conditioning: `rows` rows with `tokens` tokens of text."""

    @property
    def channels(self) -> int:
        """C, the channels of a latent (1, H, W, C)."""

    def sigmas(self, steps: int) -> mx.array:
        """Return the noise levels (steps + 1,) float32 of an image; the last is 0."""

    def timesteps(self, sigmas: mx.array) -> mx.array:
        """Return the timesteps that the transformer is given for noise levels (N,), rounded as the model
        rounds them.
        """

    def first_latent(self, seed: int, sigmas: mx.array, latent_size: tuple[int, int]) -> mx.array:
        """Return the latent that enters the first step, (1, H, W, C) float32, drawn from `seed`."""

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        """Run the transformer's own forward pass, lazily, with the weights that are now in place.

        Args:
            x: (R, H, W, C); its dtype is the one to compute in.
            sigma: (R,) float32; rows may differ.
            conditioning: R rows.

        Returns:
            (R, H, W, C), not guided.
        """

    def direction(
        self, x_t: mx.array, sigma: mx.array, conditioning: Conditioning, cfg_weight: float
    ) -> mx.array:
        """Return the guided velocity (1, H, W, C) float32 of an Euler step from x_t (1, H, W, C).

        Args:
            x_t: float32.
            sigma: (), the noise level of x_t.
            conditioning: of `encode`.
            cfg_weight: 0 for none.
        """

    def decode(self, x_0: mx.array) -> bytes:
        """Return the image of a final latent (1, H, W, C), as PNG."""

    def place(self, path: str) -> LayerPlace:
        """Return where the layer at a dotted path sits in the model."""

    def export_name(self, path: str) -> str:
        """Return the name of a layer in the export format. Layers of one tie have the same name."""


class Load(Protocol):
    """The function `load` of a family's module."""

    def __call__(self, settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part]) -> Family:
        """Load the model of a run, or parts of it.

        Raises:
            InputError: no such model, or a setting that it can't have.
            RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """


class LoadExported(Protocol):
    """The function `load_exported` of a family's module."""

    def __call__(
        self,
        settings: RunSettings,
        checkpoint: Path | None,
        parts: Sequence[Part],
        exported: ExportFolder,
    ) -> Family:
        """Load a quantized model; what its folder lacks comes from the model's own files.

        Raises:
            InputError: a setting that the model can't have.
            RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """

"""What the engines and the trajectory know of a model, whatever library it comes from."""

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
    """What one row of a forward pass is made of: enough to say how much memory it will take."""

    tokens: int
    """Image and text together."""
    width: int
    """Channels of a token."""
    heads: int
    blocks: int
    mlp_ratio: float
    """Channels within an MLP, by `width`."""


class Family(Protocol):
    """One loaded model. The transformer is entered by `velocity` alone."""

    @property
    def transformer(self) -> Any:
        """The `nn.Module` whose layers are measured."""

    @property
    def dtype(self) -> mx.Dtype:
        """Of activations, as the model is run to draw images."""

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over the files that the weights came from."""

    def part_fingerprints(self) -> dict[str, str]:
        """sha256, in hex, over the files of each part that was loaded so far."""

    def hold(self, *parts: Part) -> None:
        """Load those of these parts that are missing.

        Raises:
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """

    def keep_only(self, *parts: Part) -> None:
        """Drop all other parts, and give their memory back."""

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """Every linear layer that is measured, in the order in which a forward pass first needs it.

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
        """Starts of the dotted paths of what is read only after the last block."""

    def pass_size(self, latent_size: tuple[int, int], text_tokens: int) -> PassSize:
        """Of a row with a latent of this height and width, and so many tokens of text."""

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        """Conditioning of a prompt in `dtype`, evaluated: with CFG two rows (text, negative), else one."""

    def canary_conditioning(self, draw: Draw, rows: int, tokens: int) -> Conditioning:
        """Conditioning of no prompt, drawn: `rows` rows with `tokens` tokens of text."""

    @property
    def channels(self) -> int:
        """C of a latent (1, H, W, C)."""

    def sigmas(self, steps: int) -> mx.array:
        """Noise levels (steps + 1,) float32 of an image; the last is 0."""

    def timesteps(self, sigmas: mx.array) -> mx.array:
        """What the transformer is told of noise levels (N,), rounded as the model rounds it."""

    def first_latent(self, seed: int, sigmas: mx.array, latent_size: tuple[int, int]) -> mx.array:
        """What enters the first step, (1, H, W, C) float32, drawn from `seed`."""

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        """The transformer's output by its own forward pass, lazy, with the weights as they are now.

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
        """Guided velocity (1, H, W, C) float32 that an Euler step from x_t (1, H, W, C) follows.

        Args:
            x_t: float32.
            sigma: (), the noise level of x_t.
            conditioning: of `encode`.
            cfg_weight: 0 for none.
        """

    def decode(self, x_0: mx.array) -> bytes:
        """The image of a final latent (1, H, W, C), as PNG."""

    def place(self, path: str) -> LayerPlace:
        """Where the layer at a dotted path sits."""

    def export_name(self, path: str) -> str:
        """What the export format calls a layer; layers of one tie have one name there."""


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

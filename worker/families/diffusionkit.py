"""What SD3 and FLUX share: both are DiffusionKit's `MMDiT`, run by its own forward pass."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from shared.layer_place import LayerPlace
from worker.families.family import Conditioning
from worker.families.mmdit_places import place_of
from worker.model.layers import linear_layers
from worker.model.modulation import clear_modulation, modulated_modules, modulation_inputs
from worker.trajectory import _encode, decode_png

Layout = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From MLX parameters to those of a published checkpoint, as in `sd3_layout`."""

PIXELS = 8
"""Of a latent's height and width."""


class MMDiTFamily:
    """A loaded pipeline of DiffusionKit as a family."""

    after_blocks = ("final_layer.",)
    rows_may_differ = True

    def __init__(self, pipeline: Any, *, fingerprint: str = "", layout: Layout) -> None:
        self._pipeline, self._layout = pipeline, layout
        self.transformer = pipeline.mmdit
        self.fingerprint = fingerprint

    @property
    def stages(self) -> Mapping[str, Sequence[Any]]:
        """See `Family`."""
        names = ("multimodal_transformer_blocks", "unified_transformer_blocks")
        return {name: getattr(self.transformer, name) for name in names if hasattr(self.transformer, name)}

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        """See `Family`: `conditioning` (B, T, D) and `pooled_conditioning` (B, P)."""
        text, pooled = _encode(self._pipeline, prompt, cfg_weight)
        return {"conditioning": text, "pooled_conditioning": pooled}

    def sigmas(self, steps: int, size: tuple[int, int]) -> mx.array:
        """See `Family`; these models' levels don't depend on the size."""
        sigmas: mx.array = self._pipeline.get_sigmas(self._pipeline.sampler, steps)
        return sigmas

    def first_latent(self, seed: int, sigmas: mx.array, size: tuple[int, int]) -> mx.array:
        """See `Family`."""
        pipeline = self._pipeline
        mx.random.seed(seed)
        empty = pipeline.get_empty_latent(*(pixels // PIXELS for pixels in size))
        noise = pipeline.get_noise(seed, empty)
        latent: mx.array = pipeline.sampler.noise_scaling(
            sigmas[0], noise, empty, pipeline.max_denoise(sigmas)
        )
        return latent

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        """See `Family`.

        A block looks its modulation up by the timestep of the first row. Here each row's modulation is set
        for itself, under one key: so rows of different timesteps share a pass.
        """
        timesteps = self._timesteps(sigma).astype(x.dtype)
        inputs = modulation_inputs(
            self.transformer, conditioning["pooled_conditioning"].astype(x.dtype), timesteps
        )
        key = mx.zeros((len(x),))
        for module in modulated_modules(self.transformer):
            module._modulation_params = {0.0: module.adaLN_modulation(inputs)}
        try:
            text = conditioning["conditioning"].astype(x.dtype)
            velocity: mx.array = self.transformer(x, text[:, :, None, :], key)
        finally:
            clear_modulation(self.transformer)
        return velocity

    def decode(self, x_0: mx.array) -> bytes:
        """See `Family`."""
        return decode_png(self._pipeline, x_0)

    def place(self, path: str) -> LayerPlace:
        """See `Family`."""
        name = self.export_name(path)
        tied = list(self._export_names.values()).count(name) > 1
        return place_of(path, tie=name if tied else None)

    def export_name(self, path: str) -> str:
        """See `Family`: its key in the published checkpoint, without ".weight"."""
        return self._export_names[path]

    def _timesteps(self, sigma: mx.array) -> mx.array:
        # Rounded as the sampler rounds them.
        timesteps: mx.array = self._pipeline.sampler.timestep(sigma).astype(self._pipeline.activation_dtype)
        return timesteps

    @cached_property
    def _export_names(self) -> Mapping[str, str]:
        """Read off the layout: a weight of one number, the layer's own, shows where it went."""
        parameters: Any = tree_flatten(self.transformer.parameters())
        numbered = {name: np.full((1,) * value.ndim, -1) for name, value in parameters}
        paths = [layer.path for layer in linear_layers(self.transformer)]
        for number, path in enumerate(paths):
            numbered[f"{path}.weight"] = np.full((1, 1), number)
        return {
            paths[number]: name.removesuffix(".weight")
            for name, numbers in self._layout(numbered).items()
            for number in numbers.ravel().tolist()
            if number >= 0 and name.endswith(".weight")
        }

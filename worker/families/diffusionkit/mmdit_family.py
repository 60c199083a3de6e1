"""What SD3 and FLUX share: both are DiffusionKit's `MMDiT`, run by its own forward pass."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from shared.layer_place import LayerPlace
from shared.model_card import LayerInfo
from shared.models import Part
from worker.engine.batches import guided_velocity
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.loading import LoadedModel
from worker.families.diffusionkit.mmdit_places import place_of
from worker.families.diffusionkit.modulation import (
    clear_modulation,
    modulated_modules,
    modulation_inputs,
    set_modulation,
)
from worker.families.diffusionkit.published import PublishedMMDiT, published_timesteps
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.family import Conditioning, Draw, PassSize

with quiet_imports():
    from diffusionkit.mlx import CFGDenoiser, to_d

Layout = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From MLX parameters to those of a published checkpoint, as in `sd3_layout`."""

_LISTS = ("multimodal_transformer_blocks", "unified_transformer_blocks")
_EMBEDDERS = ("t_embedder.mlp", "y_embedder", "guidance_in.mlp", "context_embedder", "x_embedder")
"""The modules that a pass calls once, before the blocks."""


class MMDiTFamily:
    """A loaded pipeline of DiffusionKit as a family."""

    after_blocks = ("final_layer.",)

    def __init__(self, pipeline: Any, model: LoadedModel | None = None, *, layout: Layout) -> None:
        """`model` is where the pipeline came from; without one nothing can be loaded later."""
        self._pipeline, self._model, self._layout = pipeline, model, layout

    @property
    def pipeline(self) -> Any:
        """DiffusionKit's."""
        return self._pipeline

    @property
    def transformer(self) -> Any:
        """See `Family`."""
        return self._pipeline.mmdit

    @property
    def dtype(self) -> mx.Dtype:
        """See `Family`."""
        dtype: mx.Dtype = self._pipeline.activation_dtype
        return dtype

    @property
    def fingerprint(self) -> str:
        """See `Family`."""
        return self._model.fingerprint if self._model else ""

    def part_fingerprints(self) -> dict[str, str]:
        """See `Family`."""
        return self._model.part_fingerprints() if self._model else {}

    def hold(self, *parts: Part) -> None:
        """See `Family`."""
        if self._model:
            self._model.hold(*parts)

    def keep_only(self, *parts: Part) -> None:
        """See `Family`."""
        if self._model:
            self._model.keep_only(*parts)

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """See `Family`."""
        return linear_layers(self.transformer)

    @property
    def stages(self) -> Mapping[str, Any]:
        """See `Family`."""
        stages: dict[str, Any] = {}
        for path in (*_EMBEDDERS, *_LISTS):
            module = self.transformer
            for name in path.split("."):
                module = getattr(module, name, None)
            if module is not None:
                stages[path] = module
        return stages

    @property
    def channels(self) -> int:
        """See `Family`."""
        channels: int = self.transformer.config.vae_latent_dim
        return channels

    def pass_size(self, latent_size: tuple[int, int], text_tokens: int) -> PassSize:
        """See `Family`."""
        config, (height, width) = self.transformer.config, latent_size
        return PassSize(
            tokens=height * width // config.patch_size**2 + text_tokens,
            width=config.hidden_size,
            heads=config.num_heads,
            blocks=config.depth_multimodal + config.depth_unified,
            mlp_ratio=config.mlp_ratio,
        )

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        """See `Family`: `conditioning` (B, T, D) and `pooled_conditioning` (B, P)."""
        text, pooled = self._pipeline.encode_text(prompt, cfg_weight, "")
        if cfg_weight <= 0:
            # DiffusionKit encodes an empty negative prompt even so, and then fails on two rows of text for
            # one of latents.
            text, pooled = text[:1], pooled[:1]
        text, pooled = text.astype(self.dtype), pooled.astype(self.dtype)
        mx.eval(text, pooled)
        return {"conditioning": text, "pooled_conditioning": pooled}

    def canary_conditioning(self, draw: Draw, rows: int, tokens: int) -> Conditioning:
        """See `Family`."""
        config = self.transformer.config
        return {
            "conditioning": draw(rows, tokens, config.token_level_text_embed_dim),
            "pooled_conditioning": draw(rows, config.pooled_text_embed_dim),
        }

    def sigmas(self, steps: int) -> mx.array:
        """See `Family`."""
        sigmas: mx.array = self._pipeline.get_sigmas(self._pipeline.sampler, steps)
        return sigmas

    def timesteps(self, sigmas: mx.array) -> mx.array:
        """See `Family`: of the published pass of SD3 in float32, else in activation dtype."""
        sampler = self._pipeline.sampler
        if self._is_published:
            return published_timesteps(sampler, sigmas, self.dtype)
        timesteps: mx.array = sampler.timestep(sigmas).astype(self.dtype)
        return timesteps

    def first_latent(self, seed: int, sigmas: mx.array, latent_size: tuple[int, int]) -> mx.array:
        """See `Family`."""
        pipeline = self._pipeline
        mx.random.seed(seed)
        empty = pipeline.get_empty_latent(*latent_size)
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
        pooled = conditioning["pooled_conditioning"].astype(x.dtype)
        inputs = modulation_inputs(self.transformer, pooled, self.timesteps(sigma))
        key = mx.zeros((len(x),))
        for module in modulated_modules(self.transformer):
            module._modulation_params = {0.0: module.adaLN_modulation(inputs)}
        try:
            text = conditioning["conditioning"].astype(x.dtype)
            velocity: mx.array = self.transformer(x, text[:, :, None, :], key)
        finally:
            clear_modulation(self.transformer)
        return velocity

    def direction(
        self, x_t: mx.array, sigma: mx.array, conditioning: Conditioning, cfg_weight: float
    ) -> mx.array:
        """See `Family`.

        With DiffusionKit's own pass equal to its `denoise_latents` to the last bit, which turns the velocity
        into a denoised latent and back. With the published pass the velocity is not rounded by that.
        """
        if self._is_published:
            rows = len(conditioning["conditioning"])
            x = mx.repeat(x_t, rows, axis=0).astype(self.dtype)
            output = self.velocity(x, mx.broadcast_to(sigma, [rows]), conditioning)
            return guided_velocity(output, cfg_weight)
        timesteps = self.timesteps(sigma[None])
        set_modulation(self.transformer, conditioning["pooled_conditioning"], timesteps)
        denoised = CFGDenoiser(self._pipeline)(
            x_t,
            timesteps[0],
            sigma,
            conditioning=conditioning["conditioning"],
            cfg_weight=cfg_weight,
        )
        clear_modulation(self.transformer)
        d: mx.array = to_d(x_t, sigma, denoised)
        return d

    def decode(self, x_0: mx.array) -> bytes:
        """See `Family`."""
        latent = self._pipeline.latent_format.process_out(x_0).astype(self.dtype)
        image = self._pipeline.decode_latents_to_image(latent)[0]
        buffer = io.BytesIO()
        Image.fromarray(np.array((image * 255).astype(mx.uint8))).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def place(self, path: str) -> LayerPlace:
        """See `Family`."""
        name = self.export_name(path)
        tied = list(self._export_names.values()).count(name) > 1
        return place_of(path, tie=name if tied else None)

    def export_name(self, path: str) -> str:
        """See `Family`: its key in the published checkpoint, without ".weight"."""
        return self._export_names[path]

    @property
    def _is_published(self) -> bool:
        return isinstance(self.transformer, PublishedMMDiT)

    @cached_property
    def _export_names(self) -> Mapping[str, str]:
        """Read off the layout: a weight of one number, the layer's own, shows where it went."""
        parameters: Any = tree_flatten(self.transformer.parameters())
        numbered = {name: np.full((1,) * value.ndim, -1) for name, value in parameters}
        paths = [layer.path for layer in self.layers]
        for number, path in enumerate(paths):
            numbered[f"{path}.weight"] = np.full_like(numbered[f"{path}.weight"], number)
        return {
            paths[number]: name.removesuffix(".weight")
            for name, numbers in self._layout(numbered).items()
            for number in numbers.ravel().tolist()
            if number >= 0 and name.endswith(".weight")
        }

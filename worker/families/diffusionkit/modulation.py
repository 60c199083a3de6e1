"""Modulation of the blocks by timestep and pooled text, without emptying the weights it comes from.

`MMDiT.cache_modulation_params` of DiffusionKit computes the same values by the same operations, but
then drops every adaLN weight: a second image, or a changed adaLN layer, would be wrong or crash.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from worker.families.diffusionkit.published import PublishedMMDiT

MODULATION_EMBEDDERS = ("y_embedder.", "t_embedder.", "guidance_in.")
"""Prefixes of the paths of all layers that `modulation_inputs` runs."""


def modulated_modules(mmdit: Any) -> list[nn.Module]:
    """Return the modules that read `_modulation_params`, in the order of the forward pass."""
    modules: list[nn.Module] = []
    for block in mmdit.multimodal_transformer_blocks:
        modules += [block.image_transformer_block, block.text_transformer_block]
    if mmdit.config.depth_unified > 0:
        modules += [block.transformer_block for block in mmdit.unified_transformer_blocks]
    return [*modules, mmdit.final_layer]


def modulation_inputs(mmdit: Any, pooled_conditioning: mx.array, timesteps: mx.array) -> mx.array:
    """Return what each adaLN layer reads: embedded pooled text plus embedded timestep, and guidance if there
    is one.

    Args:
        mmdit: DiffusionKit's transformer.
        pooled_conditioning: (B, P).
        timesteps: (B,), one a row.

    Returns:
        (B, 1, 1, hidden), not yet evaluated.
    """
    inputs: mx.array
    if isinstance(mmdit, PublishedMMDiT):
        inputs = mmdit.modulation_inputs(pooled_conditioning, timesteps)
        return inputs
    sinusoids = mmdit.t_embedder.timestep_embedding(timesteps)
    # DiffusionKit makes them in 16 bits; what follows must not be, where all else is wider.
    sinusoids = sinusoids.astype(mx.result_type(sinusoids.dtype, pooled_conditioning.dtype))
    t_embed = mmdit.t_embedder.mlp(sinusoids[:, None, None, :])
    inputs = mmdit.y_embedder(pooled_conditioning)[:, None, None, :] + t_embed
    return inputs


def set_modulation(mmdit: Any, pooled_conditioning: mx.array, timesteps: mx.array) -> None:
    """Set every block's modulation for these timesteps, and forget the earlier one.

    Of DiffusionKit's own pass equal to `cache_modulation_params` to the last bit, and the weights stay.

    Args:
        mmdit: DiffusionKit's transformer.
        pooled_conditioning: (B, P), B being 2 with CFG (text, negative), else 1.
        timesteps: (N,); `timestep.item()` is the key that a forward pass asks for.
    """
    clear_modulation(mmdit)
    modules: list[Any] = modulated_modules(mmdit)
    for module in modules:
        module._modulation_params = {}
    batch = pooled_conditioning.shape[0]
    for timestep in timesteps:
        inputs = modulation_inputs(mmdit, pooled_conditioning, mx.repeat(timestep[None], batch, axis=0))
        params = [module.adaLN_modulation(inputs) for module in modules]
        # One evaluation a timestep: the graph never holds more than one set.
        mx.eval(params)
        for module, param in zip(modules, params, strict=True):
            module._modulation_params[timestep.item()] = param


def clear_modulation(mmdit: Any) -> None:
    """Forget all modulation, so that a forward pass before the next `set_modulation` fails at once."""
    for module in modulated_modules(mmdit):
        if hasattr(module, "_modulation_params"):
            del module._modulation_params

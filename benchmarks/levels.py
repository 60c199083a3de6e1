"""Levels of a random SD3 of true width, against diffusers' model of the same weights in float64.

    python -m benchmarks.levels [--depth 2 --steps 4 --latent 16]

The judge differentiates the whole trajectory at once: other code, other precision, nothing sketched.
Needs the dev extra, some 10 GB of memory and a few minutes.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
import mlx.core as mx
import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders import single_file_utils
from mlx.utils import tree_flatten

from benchmarks.random_mmdit import as_family, draw_trajectory, pipeline_of, sd3_config
from benchmarks.report import Report, print_report
from shared.costs import TaskSize, cost_of, passing_of
from shared.layout.npz import Array
from shared.models import MODELS
from shared.plan import Choice
from shared.transformer_shape import TransformerShape
from worker.engine.backward_trajectory import probe_of
from worker.engine.memory import TrajectoryPlan
from worker.engine.packed_candidates import PackedCandidates
from worker.engine.probed_trajectory import ProbedTrajectory, squared_norms
from worker.engine.trajectory import Trajectory
from worker.families.diffusionkit.published import PublishedMMDiT
from worker.families.diffusionkit.sd3_layout import mmdit_to_sd3
from worker.families.family import Family

BUCKETS, CFG_WEIGHT = 1024, 5.0
CHOICES = (Choice(bits=3, group_size=64), Choice(bits=4, group_size=64))
SEED, IMAGE = 0, 0


def measure_levels(
    *, width: int, heads: int, depth: int, steps: int, latent: int, text_tokens: int
) -> Report:
    """One image's backward trajectory."""
    family = _random_family(width=width, heads=heads, depth=depth)
    trajectory = draw_trajectory(
        family,
        num_steps=steps,
        cfg_weight=CFG_WEIGHT,
        latent_size=(latent, latent),
        text_tokens=text_tokens,
    )
    spec = replace(
        MODELS["tiny-sd3"],
        parameters=sum(value.size for _, value in _parameters(family)),
        transformer=TransformerShape(
            width=width, heads=heads, double_blocks=depth, text_width=64, pooled_width=64
        ),
    )
    size = TaskSize(
        image_size=8 * latent, num_steps=steps, rows=2, text_tokens=text_tokens, fused_attention=False
    )
    layers = [layer.path for layer in family.layers]
    engine = ProbedTrajectory(
        family,
        dict.fromkeys(layers, CHOICES),
        cfg_weight=CFG_WEIGHT,
        buckets=BUCKETS,
        plan=TrajectoryPlan(heads_at_once=passing_of(spec, size).heads_at_once(), keep_packed=False),
    )
    gc.collect()
    mx.clear_cache()
    weights = sum(value.nbytes for _, value in _parameters(family))
    held = mx.get_active_memory() - weights
    mx.reset_peak_memory()
    start = time.perf_counter()
    found = engine.measure(trajectory, probe_seed=SEED, image_index=IMAGE)
    seconds, peak = time.perf_counter() - start, mx.get_peak_memory() - held
    counted = cost_of("levels", spec, size).peak_bytes
    report = Report(title=f"Levels of a random SD3 of width {width}, {depth} blocks, {steps} steps")
    report.facts |= {
        "layers": len(layers),
        "weights, millions": round(spec.parameters / 1e6, 1),
        "latent": latent,
        "text tokens": text_tokens,
        "seconds a step backward": round(seconds / steps, 1),
        "peak memory, MB": round(peak / 1e6),
        "peak memory as counted, MB": round(counted / 1e6),
    }
    report.at_most("peak memory, off its count by", abs(peak / counted - 1), 0.1)
    _judge(report, family, trajectory, squared_norms(found.sketches)[:, -1], found.products.sum(axis=-1))
    return report


def _judge(report: Report, family: Family, trajectory: Trajectory, sketched: Array, products: Array) -> None:
    """Hold ||G||^2 (L,) and <G, dW> (L, C) against held gradients in float64."""
    start = time.perf_counter()
    held = held_gradients(family, trajectory)
    report.facts["seconds of the judge"] = round(time.perf_counter() - start, 1)
    packed = PackedCandidates(family.transformer, keep=False)
    errors, off = [], []
    for row, layer in enumerate(family.layers):
        gradient = held[layer.path]
        norm = (gradient**2).sum()
        if norm == 0:
            continue
        errors.append(sketched[row] / norm - 1)
        for column, choice in enumerate(CHOICES):
            if layer.unmeasurable(choice.group_size) is None:
                delta = np.array(packed.difference(layer.path, choice), np.float64)
                scale = np.sqrt(norm * (delta**2).sum())
                off.append(abs(products[row, column] - (gradient * delta).sum()) / scale)
    error = np.sqrt(2 / BUCKETS)
    report.facts["layers that a gradient reaches"] = len(errors)
    report.facts["a sketch's standard error"] = round(float(error), 4)
    report.at_most("levels against float64, rms in standard errors", _rms(errors) / float(error), 1.2)
    report.at_most("levels against float64, largest relative error", float(np.abs(errors).max()), 0.15)
    report.at_most("products against float64, largest error by ||G|| ||dW||", float(max(off)), 1e-4)


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def held_gradients(family: Family, trajectory: Trajectory) -> dict[str, Array]:
    """The gradient of <r, x_N> by each layer's weight (outputs, inputs), summed over all steps, float64."""
    model = _in_diffusers(family)
    x = _tensor(trajectory.x[0]).permute(0, 3, 1, 2)
    text, pooled = (
        _tensor(trajectory.conditioning[name]) for name in ("conditioning", "pooled_conditioning")
    )
    timesteps, sigmas = np.array(trajectory.timesteps, np.float64), np.array(trajectory.sigmas, np.float64)
    for step in range(len(sigmas) - 1):
        rows = x.repeat(2, 1, 1, 1)
        output = model(rows, text, pooled, torch.full((2,), timesteps[step])).sample
        guided = output[1:] + CFG_WEIGHT * (output[:1] - output[1:])
        x = x + (sigmas[step + 1] - sigmas[step]) * guided
    final = np.array(trajectory.x[-1])
    difference = np.abs(x.detach().permute(0, 2, 3, 1).numpy() - final).max()
    if difference > 1e-2 * np.abs(final).max():
        raise AssertionError(f"the judge draws another image: {difference:.2g} apart")
    probe = _tensor(probe_of(SEED, IMAGE, final.shape)).permute(0, 3, 1, 2)
    (probe * x).sum().backward()
    parameters = dict(model.named_parameters())
    return {
        layer.path: _gradient(parameters, layer.path, len(family.transformer.multimodal_transformer_blocks))
        for layer in family.layers
    }


_OUTSIDE = {
    "context_embedder": "context_embedder",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.layers.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.layers.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.layers.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.layers.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.layers.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_IN_BLOCKS = {
    "image": {
        "attn.q_proj": "attn.to_q",
        "attn.k_proj": "attn.to_k",
        "attn.v_proj": "attn.to_v",
        "attn.o_proj": "attn.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.layers.1": "norm1.linear",
    },
    "text": {
        "attn.q_proj": "attn.add_q_proj",
        "attn.k_proj": "attn.add_k_proj",
        "attn.v_proj": "attn.add_v_proj",
        "attn.o_proj": "attn.to_add_out",
        "mlp.fc1": "ff_context.net.0.proj",
        "mlp.fc2": "ff_context.net.2",
        "adaLN_modulation.layers.1": "norm1_context.linear",
    },
}
"""What diffusers calls a layer."""


def _gradient(parameters: Mapping[str, Any], path: str, depth: int) -> Array:
    name = _OUTSIDE.get(path)
    if name is None:
        _, block, stream, part = path.split(".", 3)
        name = f"transformer_blocks.{block}.{_IN_BLOCKS[stream.partition('_')[0]][part]}"
    parameter = parameters[f"{name}.weight"]
    if parameter.grad is None:
        return np.zeros(tuple(parameter.shape))
    gradient: Array = parameter.grad.numpy()
    if gradient.ndim == 4:
        # (outputs, channels, rows, columns) of a patch; ours is row, column, channel.
        return gradient.transpose(0, 2, 3, 1).reshape(len(gradient), -1)
    if name in ("norm_out.linear", f"transformer_blocks.{depth - 1}.norm1_context.linear"):
        # diffusers has scale before shift there.
        return np.roll(gradient, len(gradient) // 2, axis=0)
    return gradient


def _in_diffusers(family: Family) -> Any:
    mmdit: Any = family.transformer
    config = mmdit.config
    model = SD3Transformer2DModel(
        num_layers=config.depth_multimodal,
        attention_head_dim=config.hidden_size // config.num_heads,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.token_level_text_embed_dim,
        pooled_projection_dim=config.pooled_text_embed_dim,
        caption_projection_dim=config.hidden_size,
        sample_size=config.max_latent_resolution,
        pos_embed_max_size=config.max_latent_resolution,
    )
    named = mmdit_to_sd3({name: np.array(value) for name, value in _parameters(family)})
    weights = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in named.items()}
    convert = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    model.load_state_dict(convert(weights), strict=True)
    return model.eval().to(torch.float64)


def _random_family(*, width: int, heads: int, depth: int) -> Family:
    """The published SD3, drawn by MLX's own initialization."""
    mx.random.seed(0)
    # Diffusers embeds the time by 256 sinusoids.
    config = replace(sd3_config(depth=depth, hidden=width, heads=heads), frequency_embed_dim=256)
    mmdit = PublishedMMDiT(config)
    mx.eval(mmdit.parameters())
    return as_family(pipeline_of(mmdit))


def _parameters(family: Family) -> list[tuple[str, mx.array]]:
    parameters: Any = tree_flatten(family.transformer.parameters())
    return list(parameters)


def _tensor(array: mx.array) -> Any:
    return torch.from_numpy(np.array(array, np.float64))


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--width", default=1536, show_default=True, help="Channels of a token.")
@click.option("--heads", default=24, show_default=True, help="Heads of attention.")
@click.option("--depth", default=2, show_default=True, help="Blocks.")
@click.option("--steps", default=4, show_default=True, help="Denoising steps.")
@click.option("--latent", default=16, show_default=True, help="Height and width of the latent.")
@click.option("--text-tokens", default=32, show_default=True, help="Tokens of the conditioning.")
def main(**sizes: int) -> None:
    print_report(measure_levels(**sizes))


if __name__ == "__main__":
    main()

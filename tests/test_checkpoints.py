"""A checkpoint that isn't the model's is refused by the first name that misfits; parts come and go."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.settings import run_settings
from shared.errors import ModelUnavailableError
from shared.kinds.calibration import CalibrationTask
from shared.models import MODELS
from shared.runs import RunSettings
from tests.tiny_models import DEV, SCHNELL, SD3, SD35, repository, tiny_tables, write_cache
from worker.engine.calibrate import calibrate, count_parameters
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit.files import file_sha256
from worker.families.diffusionkit.loading import LoadedModel, load_model
from worker.families.diffusionkit.published import PublishedMMDiT
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.small_models import DEMO, TINY_SD3
from worker.families.registry import load_family

with quiet_imports():
    from diffusionkit.mlx.config import FLUX_DEV, FLUX_SCHNELL, SD3_2b, SD3_8b
    from diffusionkit.mlx.mmdit import MMDiT

pytestmark = pytest.mark.slow

Weights = dict[str, Any]
"""Tensors of torch, which knows 8-bit floats. Only tests import it, since that takes a second."""
FILES = {SD3: "sd3_medium.safetensors", SCHNELL: "flux-schnell.safetensors", DEV: "flux1-dev.safetensors"}
QKV = "model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"
SINGLE = "single_blocks.1.linear1.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    write_cache(home)
    with pytest.MonkeyPatch.context() as patch, tiny_tables():
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(model_files, "user_cache_path", lambda name: home / name)
        yield home


def settings(model: str, checkpoint: Path | None = None, **changes: object) -> RunSettings:
    values: dict[str, object] = {
        "checkpoint_sha256": file_sha256(checkpoint) if checkpoint else None,
        "num_steps": 2,
        "image_size": 64,
        "shift": 3.0,
        "reference": "published",
        "guidance": MODELS[model].guidance,
    }
    return run_settings(model, **values | changes)


def weights_of(home: Path, model: str) -> Weights:
    from safetensors.torch import load_file

    return load_file(repository(home, model) / FILES[model])


def load_changed(home: Path, model: str, change: Callable[[Weights], object]) -> LoadedModel:
    from safetensors.torch import save_file

    weights = weights_of(home, model)
    change(weights)
    path = home / "changed.safetensors"
    save_file(weights, path)
    return load_model(settings(model, path), path, ("transformer",))


def fp8(name: str) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        import torch

        weights[name] = weights[name].to(torch.float8_e4m3fn)

    return change


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        (SD3, lambda w: w.pop(QKV), f"'{QKV}' is missing; a tensor of shape (192, 64) belongs there"),
        (SD3, lambda w: w.update({QKV: w[QKV][:, :32].clone()}), f"'{QKV}' has shape (192, 32); (192, 64)"),
        (SD3, fp8(QKV), f"'{QKV}' is stored as F8_E4M3; weights in 16 or 32 bits are needed"),
        (SD3, lambda w: w.update({QKV + "s": w[QKV].clone()}), f"'{QKV}s' is a tensor that this model"),
        (SD3, lambda w: w.pop("first_stage_model.decoder.conv_in.bias"), None),
        (SCHNELL, lambda w: w.pop(SINGLE), f"'{SINGLE}' is missing"),
        (SCHNELL, lambda w: w.update({SINGLE: w[SINGLE].T.contiguous()}), f"'{SINGLE}' has shape"),
        (SCHNELL, fp8(SINGLE), f"'{SINGLE}' is stored as F8_E4M3"),
        (
            SCHNELL,
            lambda w: w.update({SINGLE + ".scales": w[SINGLE][0].clone()}),
            "(it is quantized already)",
        ),
        (DEV, lambda w: w.pop("guidance_in.in_layer.weight"), "'guidance_in.in_layer.weight' is missing"),
    ],
)
def test_the_first_misfit_is_named(
    home: Path, model: str, change: Callable[[Weights], object], says: str | None
) -> None:
    if says is None:
        # The VAE is another part, and not asked for here.
        load_changed(home, model, change)
        return
    with pytest.raises(ModelUnavailableError) as caught:
        load_changed(home, model, change)
    message = str(caught.value)
    assert says in message
    assert message.startswith(str(home / "changed.safetensors"))
    assert message.endswith("give --checkpoint a file in the layout of the model's publisher")
    assert "\n" not in message


def test_dev_is_no_schnell(home: Path) -> None:
    path = repository(home, DEV) / FILES[DEV]
    with pytest.raises(
        ModelUnavailableError, match=r"'guidance_in.in_layer.bias' is a tensor that this model"
    ):
        load_model(settings(SCHNELL, path), path, ("transformer",))
    # DiffusionKit itself leaves the guidance of dev out.
    load_model(settings(DEV, reference="diffusionkit", guidance=None))


def test_one_file_with_text_encoders_and_names_without_their_prefix_are_read(home: Path) -> None:
    def change(weights: Weights) -> None:
        prefix = "model.diffusion_model."
        for name in [name for name in weights if name.startswith(prefix)]:
            weights[name.removeprefix(prefix)] = weights.pop(name)
        other_part = weights["first_stage_model.decoder.conv_in.bias"].clone()
        weights["text_encoders.clip_l.transformer.text_model.final_layer_norm.bias"] = other_part

    changed = load_changed(home, SD3, change).pipeline.mmdit
    plain = load_model(settings(SD3), None, ("transformer",)).pipeline.mmdit
    path = "multimodal_transformer_blocks.1.image_transformer_block.attn.k_proj"
    for name in ("weight", "bias"):
        ours, theirs = (dict(mmdit.named_modules())[path][name] for mmdit in (changed, plain))
        assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("file", "name", "parts"),
    [
        ("clip_g/model.fp16.safetensors", "text_model.encoder.layers.1.mlp.fc1.weight", ("text_encoder",)),
        ("t5/t5xxl.safetensors", "encoder.block.1.layer.0.SelfAttention.q.weight", ("text_encoder",)),
    ],
)
def test_text_encoders_are_checked_too(
    home: Path, file: str, name: str, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository(home, "argmaxinc/stable-diffusion") / file
    original = path.read_bytes()
    weights = load_file(path)
    del weights[name]
    try:
        save_file(weights, path)
        with pytest.raises(ModelUnavailableError, match=f"'{name}' is missing.*Hugging Face cache"):
            load_model(settings(SD3, use_t5=True), None, ("text_encoder",))
    finally:
        path.write_bytes(original)


def test_parts_come_and_go_and_the_fingerprint_stays(home: Path) -> None:
    loaded = load_model(settings(SCHNELL), None, ("transformer",))
    assert loaded.part_fingerprints() == {"transformer": loaded.fingerprint}
    pipeline = loaded.pipeline
    assert not any(hasattr(pipeline, name) for name in ("decoder", "clip_l", "t5_encoder"))
    mmdit = pipeline.mmdit
    loaded.hold("text_encoder", "vae")
    assert pipeline.mmdit is mmdit
    assert pipeline.encode_text("a red circle", 0, "")[0].shape[-1] == 4096
    whole = load_model(settings(SCHNELL))
    assert whole.part_fingerprints() == loaded.part_fingerprints()
    assert whole.fingerprint == loaded.fingerprint
    loaded.keep_only("transformer")
    assert not any(hasattr(pipeline, name) for name in ("decoder", "clip_l", "t5_tokenizer"))
    assert pipeline.mmdit is mmdit


def test_a_vae_that_cant_be_had_costs_previews_only(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_family(settings(SCHNELL), None, ("transformer",))
    path = repository(home, SCHNELL) / "ae.safetensors"
    aside = path.rename(home / "ae")
    try:
        for index in range(2):
            run = settings(SCHNELL)
            task = CalibrationTask(
                run=run, store_id="relay", image_index=index, prompt="a red circle", seed=0
            )
            shard = calibrate(task, loaded, lambda progress: None)
            assert shard.preview_png.size == 0
            assert shard.x.dtype == np.float32
    finally:
        aside.rename(path)
    assert "ae.safetensors" in caplog.text
    assert "image 1 has no preview" in caplog.text


def test_sd3_and_flux_keep_their_16_bits_side_by_side(home: Path) -> None:
    sd3 = load_model(settings(SD3), None, ("transformer",))
    flux = load_model(settings(SCHNELL), None, ("transformer",))
    sd3.hold("vae")
    flux.hold("vae")
    assert sd3.pipeline.decoder.conv_in.weight.dtype == mx.float16
    assert flux.pipeline.decoder.conv_in.weight.dtype == mx.bfloat16


def test_specifications_count_what_the_models_have() -> None:
    whole = {
        SD3: PublishedMMDiT(SD3_2b),
        SD35: PublishedMMDiT(SD3_8b),
        SCHNELL: PublishedMMDiT(FLUX_SCHNELL),
        DEV: PublishedMMDiT(FLUX_DEV),
        "tiny-sd3": PublishedMMDiT(TINY_SD3.mmdit_config("float32")),
        "demo": MMDiT(DEMO.mmdit_config("float32")),
    }
    assert {model: spec.parameters for model, spec in MODELS.items()} == {
        model: count_parameters(mmdit) for model, mmdit in whole.items()
    }
    table = np.prod(whole[SD3].x_pos_embedder.pos_embed.weight.shape)
    assert table == 192 * 192 * 1536
    assert MODELS[SD3].weight_bytes == 2 * MODELS[SD3].parameters

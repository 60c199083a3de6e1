"""Models are loaded by DiffusionKit's own loaders, built-in ones included."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import mlx.core as mx
import msgspec
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from mlx import nn
from safetensors.numpy import load_file, save_file

from benchmarks.settings import run_settings
from shared.errors import InputError, ModelUnavailableError, RunMismatchError
from shared.runs import RunSettings
from tests.tiny_flux import load_tiny_flux
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import loading as models
from worker.families.diffusionkit import tiny_checkpoint
from worker.families.diffusionkit.files import file_sha256
from worker.families.diffusionkit.loading import LoadedModel, load_model
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.small_models import TINY_SD3, WEIGHTS_FILE
from worker.families.diffusionkit.tiny_checkpoint import tiny_sd3_folder, write_random_checkpoint
from worker.families.diffusionkit.vocabulary import WORDS, byte_pair_merges, vocabulary

with quiet_imports():
    import diffusionkit.mlx as diffusionkit
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.mmdit import MMDiT

PROMPT = "a large red circle left of a small blue square on a grey background"
SETTINGS = run_settings(num_steps=2)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "cache"
    for module in (tiny_checkpoint, model_files):
        monkeypatch.setattr(module, "user_cache_path", lambda name: folder / name)
    return folder / "bitfleet"


def change(**fields: object) -> RunSettings:
    return msgspec.structs.replace(SETTINGS, **fields)


def velocity(mmdit: MMDiT, pooled: mx.array, text: mx.array, latent: mx.array) -> np.ndarray:
    """Output of the transformer, with modulations computed afresh and no weight given up."""
    timestep = mx.array(500.0)
    condition = mmdit.y_embedder(pooled)[:, None, None, :] + mmdit.t_embedder(
        mx.repeat(timestep[None], len(pooled), axis=0)
    )
    for module in mmdit.modules():
        if hasattr(module, "adaLN_modulation"):
            module._modulation_params = {timestep.item(): module.adaLN_modulation(condition)}
    return np.array(mmdit(latent, mx.expand_dims(text, 2), mx.broadcast_to(timestep, [len(latent)])))


def sd3_velocity(loaded: LoadedModel, encoded: tuple[mx.array, mx.array] | None = None) -> np.ndarray:
    text, pooled = encoded or loaded.pipeline.encode_text(PROMPT, 7.5, "")
    latent = mx.array(np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype(np.float32))
    return velocity(loaded.pipeline.mmdit, pooled, text, latent)


def dead_layers(mmdit: MMDiT, output: Callable[[], np.ndarray]) -> set[str]:
    """Dotted paths of linear layers that don't show in the output when half of their columns are zero."""
    reference = output()
    dead = set()
    for path, module in mmdit.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            module.weight = weight * (mx.arange(weight.shape[1]) % 2)
            difference = np.abs(output() - reference).max()
            module.weight = weight
            if difference < 1e-4 * np.abs(reference).max():
                dead.add(path)
    return dead


def test_same_model_loaded_twice_gives_equal_outputs() -> None:
    first, second = load_model(SETTINGS), load_model(SETTINGS)
    assert first.fingerprint == second.fingerprint
    assert first.spec.id == "tiny-sd3"
    np.testing.assert_array_equal(sd3_velocity(first), sd3_velocity(second))


def test_every_layer_but_the_last_text_query_shows_in_the_output() -> None:
    loaded = load_model(SETTINGS)
    reference = sd3_velocity(loaded)
    assert 0.1 < reference.std() < 10
    encoded = loaded.pipeline.encode_text(PROMPT, 7.5, "")
    dead = dead_layers(loaded.pipeline.mmdit, lambda: sd3_velocity(loaded, encoded))
    assert dead == {"multimodal_transformer_blocks.2.text_transformer_block.attn.q_proj"}


def test_prompts_differ_in_the_output() -> None:
    pipeline = load_model(SETTINGS).pipeline
    red, blue = (pipeline.encode_text(f"a {colour} circle", 1.0) for colour in ("red", "blue"))
    # Row 1 is the negative prompt; DiffusionKit adds it even where CFG is off.
    assert red[0].shape == (2, 2 * TINY_SD3.max_length, 4096)
    assert np.abs(np.array(red[0] - blue[0])).max() > 0.1
    assert np.abs(np.array(red[1] - blue[1])).max() > 0.1


def test_the_vae_draws_an_image_of_a_latent() -> None:
    pipeline = load_model(SETTINGS).pipeline
    image = pipeline.decode_latents_to_image(mx.random.normal((1, 16, 16, 16), key=mx.random.key(0)))
    assert image.shape == (1, 128, 128, 3)
    assert 0.02 < np.array(image).std() < 0.45


def test_half_precision_loads_in_half_precision() -> None:
    pipeline = load_model(change(precision="float16")).pipeline
    assert pipeline.mmdit.final_layer.linear.weight.dtype == mx.float16
    assert pipeline.activation_dtype == mx.float16
    assert pipeline.mmdit.t_embedder.timestep_embedding(mx.array([1.0])).dtype == mx.float16


def test_diffusionkits_own_sampler_can_restore_the_weights_it_drops() -> None:
    pipeline = load_model(SETTINGS).pipeline
    text, pooled = pipeline.encode_text(PROMPT, 7.5, "")
    first, second = (
        np.array(pipeline.denoise_latents(text, pooled, 2, 7.5, latent_size=(8, 8), seed=3)[0])
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_tables_of_diffusionkit_are_as_before() -> None:
    tables = (model_io._CONFIG, model_io._MMDIT, model_io._PREFIX, diffusionkit.MMDIT_CKPT)
    functions = (model_io.hf_hub_download, model_io.VAEDecoderConfig, nn.Module.update)
    copies = tuple(dict(table) for table in tables)
    load_model(SETTINGS)
    now = (model_io._CONFIG, model_io._MMDIT, model_io._PREFIX, diffusionkit.MMDIT_CKPT)
    assert all(a is b for a, b in zip(tables, now, strict=True))
    assert copies == now
    assert functions == (model_io.hf_hub_download, model_io.VAEDecoderConfig, nn.Module.update)
    assert "tiny-sd3" not in model_io._CONFIG
    assert model_io.LOCAl_SD3_CKPT is None


def test_checkpoint_is_written_with_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_random_checkpoint(tmp_path / name, TINY_SD3)
    files = {p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*") if p.is_file()}
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    # Any machine writes these bytes; a change of them needs a new VERSION.
    assert file_sha256(tmp_path / "first" / WEIGHTS_FILE).startswith("71edff7d5c4b")


def test_two_writers_at_once_leave_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_checkpoint, "user_cache_path", lambda name: tmp_path / name)
    threads = [threading.Thread(target=tiny_sd3_folder) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (tmp_path / "bitfleet").iterdir()] == [tiny_sd3_folder().name]
    assert len([path for path in tiny_sd3_folder().rglob("*") if path.is_file()]) == 10


def test_a_cache_that_cant_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(tiny_checkpoint, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(ModelUnavailableError, match="can't be written"):
        load_model(SETTINGS)


def test_checkpoint_option_replaces_the_weights(tmp_path: Path) -> None:
    weights = load_file(tiny_sd3_folder() / WEIGHTS_FILE)
    weights["model.diffusion_model.final_layer.linear.weight"] *= 2
    mine = tmp_path / "mine.safetensors"
    save_file(weights, mine)
    plain, loaded = load_model(SETTINGS), load_model(change(checkpoint_sha256=file_sha256(mine)), mine)
    assert loaded.fingerprint != plain.fingerprint
    ours, theirs = (m.pipeline.mmdit.final_layer.linear.weight for m in (loaded, plain))
    np.testing.assert_array_equal(np.array(ours), 2 * np.array(theirs))


def test_checkpoint_and_run_must_agree(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    save_file({"x": np.zeros(1)}, mine)
    with pytest.raises(RunMismatchError, match="--checkpoint"):
        load_model(change(checkpoint_sha256="1" * 64))
    with pytest.raises(RunMismatchError, match="leave out"):
        load_model(SETTINGS, mine)
    with pytest.raises(RunMismatchError, match="is not the checkpoint of run"):
        load_model(change(checkpoint_sha256="1" * 64), mine)
    with pytest.raises(ModelUnavailableError, match="no checkpoint file"):
        load_model(change(checkpoint_sha256="1" * 64), tmp_path / "absent.safetensors")
    with pytest.raises(ModelUnavailableError, match="does not hold tiny-sd3"):
        load_model(change(checkpoint_sha256=file_sha256(mine)), mine)


def test_t5_is_refused_where_there_is_none_and_demanded_where_it_is_needed() -> None:
    with pytest.raises(InputError, match="no T5"):
        load_model(change(use_t5=True))
    with pytest.raises(InputError, match="leave out --no-t5"):
        load_model(change(model="argmaxinc/mlx-FLUX.1-schnell"))


def test_an_image_larger_than_the_model_draws_is_refused() -> None:
    with pytest.raises(InputError, match="--image-size 128"):
        load_model(change(image_size=256))


@pytest.mark.parametrize("model", ["argmaxinc/mlx-stable-diffusion-3-medium", "argmaxinc/mlx-FLUX.1-schnell"])
def test_a_real_model_offline_says_what_to_do(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    # The real sizes would take seconds to set up before any file is asked for.
    monkeypatch.setattr(model_io, "MMDiT", lambda config: None)
    with pytest.raises(ModelUnavailableError, match="is not on this machine") as caught:
        load_model(change(model=model, use_t5="FLUX" in model))
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [(GatedRepoError, "accept the licence"), (RepositoryNotFoundError, "login"), (TimeoutError, "network")],
)
def test_each_refusal_of_the_hub_has_its_remedy(
    kind: type[Exception], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(repo_id: str, filename: str) -> str:
        # The hub's errors want the response of a real request.
        raise kind.__new__(kind)

    monkeypatch.setattr(model_files, "hf_hub_download", refuse)
    monkeypatch.setattr(model_io, "MMDiT", lambda config: None)
    with pytest.raises(ModelUnavailableError, match=remedy):
        load_model(change(model="argmaxinc/mlx-stable-diffusion-3-medium"))


def test_t5_that_transformers_cannot_fetch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("We couldn't connect to the hub\nto load this file")

    monkeypatch.setattr(models, "_new_pipeline", refuse)
    with pytest.raises(ModelUnavailableError, match="t5-v1_1-xxl") as caught:
        load_model(change(model="argmaxinc/mlx-stable-diffusion-3-medium", use_t5=True))
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_checkpoint, "user_cache_path", lambda name: tmp_path / name)
    (tiny_sd3_folder() / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(ModelUnavailableError, match=r"no whole safetensors file.*install bitfleet again"):
        load_model(SETTINGS)


def test_a_prompt_with_unknown_letters_is_named() -> None:
    pipeline = load_model(SETTINGS).pipeline
    with pytest.raises(InputError, match="日"):
        pipeline.encode_text("a red 日 circle", 7.5)


def test_words_of_the_grammar_are_one_token_each() -> None:
    tokenizer = load_model(SETTINGS).pipeline.tokenizer_l
    assert [len(tokenizer.tokenize(word)) for word in WORDS] == [3] * len(WORDS)
    assert len(tokenizer.tokenize("spoon")) > 3
    tokens = vocabulary(byte_pair_merges())
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert max(tokens, key=tokens.__getitem__) == "<|endoftext|>"


def test_file_hash_is_remembered_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    before = file_sha256(file)
    for entry in (cache / "sha256").iterdir():
        if entry.read_text() == before:
            entry.write_text("f" * 64)
    assert file_sha256(file) == "f" * 64
    file.write_bytes(b"other")
    assert file_sha256(file) not in (before, "f" * 64)


def test_tiny_flux_is_alive_in_every_layer(tmp_path: Path) -> None:
    mmdit = load_tiny_flux(tmp_path)
    rng = np.random.default_rng(0)
    pooled, text, latent = (
        mx.array(rng.standard_normal(shape).astype(np.float32))
        for shape in ((1, 64), (1, 8, 128), (1, 8, 8, 16))
    )
    assert dead_layers(mmdit, lambda: velocity(mmdit, pooled, text, latent)) == set()
    assert len(mmdit.unified_transformer_blocks) == len(mmdit.multimodal_transformer_blocks) == 2


def test_retries_of_a_download_are_told_once() -> None:
    code = """
import logging
logging.basicConfig(format="worker: %(message)s")
from worker.families.diffusionkit.quiet_imports import quiet_imports
with quiet_imports():
    import huggingface_hub.utils
logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "worker: Retrying in 1s [Retry 1/5].\n"

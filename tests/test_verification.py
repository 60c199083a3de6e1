"""A verification task: real quantized layers, held against DiffusionKit alone; the original comes back."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from shared.errors import ShardCorruptError, TaskRefusedError
from shared.kinds.verification import VerificationSettings, VerificationShard, VerificationTask
from shared.metrics import MAX_PSNR_DB, psnr_db
from shared.plan import Choice, Variant, encode_variants, variants_digest
from tests.tasks import SETTINGS
from worker.engine import perceptual
from worker.engine.variants import as_variant
from worker.engine.verification import verify
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import loading, tiny_checkpoint
from worker.families.registry import load_family
from worker.kinds.lent import EngineSlot, Lent
from worker.kinds.registry import run_task

pytestmark = pytest.mark.slow

PROMPT = "a small blue square on a grey background"
BLOCK = "multimodal_transformer_blocks.{}.image_transformer_block."
COARSE = Variant(
    name="coarse",
    layers={
        BLOCK.format(0) + "mlp.fc1": Choice(bits=2, group_size=64),
        BLOCK.format(1) + "attn.v_proj": Choice(bits=3, group_size=32),
        BLOCK.format(1) + "adaLN_modulation.layers.1": Choice(bits=4, group_size=32),
        "t_embedder.mlp.layers.0": Choice(bits=6, group_size=64),
    },
)
ORIGINAL = Variant(name="original")
STEPS, CFG = 2, 7.5


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in (tiny_checkpoint, model_files):
            patch.setattr(module, "user_cache_path", lambda name: Path(folder) / name)
        # Looking through all objects of the tests takes longer than drawing.
        patch.setattr(loading.gc, "collect", lambda: 0)
        yield


@pytest.fixture(scope="module")
def family(cache: Any) -> Any:
    return load_family(SETTINGS)


def task(variants: tuple[Variant, ...], **changes: Any) -> VerificationTask:
    settings = VerificationSettings(
        run_id=SETTINGS.id,
        variants_sha256=variants_digest(encode_variants(variants)),
        num_steps=STEPS,
        cfg_weight=changes.pop("cfg_weight", CFG),
        image_size=32,
    )
    values: dict[str, Any] = {"image_index": 5, "seed": 11, "floor": False, "prompt": PROMPT} | changes
    return VerificationTask(run=SETTINGS, store_id="relay", verification=settings, **values)


def checked(family: Any, *variants: Variant, **changes: Any) -> VerificationShard:
    shard = verify(task(variants, **changes), variants, family, lambda progress: None)
    return VerificationShard.from_bytes(shard.to_bytes())


def script(variant: Variant) -> np.ndarray:
    """The final latent and the picture by DiffusionKit alone: its pipeline, and mlx.nn.quantize."""
    pipeline = load_family(SETTINGS)._pipeline

    def chosen(path: str, module: nn.Module) -> Any:
        choice = variant.layers.get(path)
        return {"bits": choice.bits, "group_size": choice.group_size} if choice else False

    nn.quantize(pipeline.mmdit, class_predicate=chosen)
    text, pooled = pipeline.encode_text(PROMPT, CFG, "")
    latent, _ = pipeline.denoise_latents(
        text.astype(pipeline.activation_dtype),
        pooled.astype(pipeline.activation_dtype),
        num_steps=STEPS,
        cfg_weight=CFG,
        latent_size=(4, 4),
        seed=11,
    )
    return np.array(latent, dtype=np.float64) * pipeline.latent_format.scale_factor


def test_equals_a_script_that_uses_diffusionkit_alone(family: Any) -> None:
    shard = checked(family, ORIGINAL, COARSE)
    original, coarse = script(ORIGINAL), script(COARSE)
    expected = np.square(coarse - original).sum()
    assert expected > 0
    # The script's latents went through the scale and shift of the VAE.
    np.testing.assert_allclose(shard.squared_error, [0, expected], rtol=1e-5)
    np.testing.assert_allclose(shard.peak, np.ptp(original), rtol=1e-5)
    assert shard.squared_reference > 0
    assert shard.output_size == original.size


def test_layers_are_really_quantized_and_the_original_comes_back(family: Any) -> None:
    transformer = family.transformer
    patches = "x_embedder.proj"
    whole = Variant(name="whole", layers=COARSE.layers | {patches: Choice(bits=2, group_size=32)})
    before = {path: module for path, module in transformer.named_modules() if path in whole.layers}
    weights = {path: np.array(module.weight) for path, module in before.items()}
    with pytest.raises(RuntimeError, match="in the midst"), as_variant(transformer, whole):
        inside = {path: module for path, module in transformer.named_modules() if path in whole.layers}
        for path, choice in COARSE.layers.items():
            module = inside[path]
            assert isinstance(module, nn.QuantizedLinear)
            assert (module.bits, module.group_size) == (choice.bits, choice.group_size)
            assert module.scales.dtype == before[path].weight.dtype
            assert np.array_equal(np.array(module.bias), np.array(before[path].bias))
        # MLX has no quantized convolution: its weight has the numbers.
        assert len(np.unique(np.array(inside[patches].weight).reshape(-1, 32)[0])) <= 4
        raise RuntimeError("in the midst")
    after = dict(transformer.named_modules())
    for path, module in before.items():
        assert after[path] is module
        assert np.array_equal(np.array(module.weight), weights[path])


def test_what_can_not_be_quantized_is_refused_before_anything_changes(family: Any) -> None:
    wrong = Variant(name="wrong", layers=COARSE.layers | {"no.such": Choice(bits=2, group_size=64)})
    before = dict(family.transformer.named_modules())
    with pytest.raises(TaskRefusedError, match=r"no layer 'no\.such'"):
        checked(family, ORIGINAL, wrong)
    after = dict(family.transformer.named_modules())
    assert all(after[path] is module for path, module in before.items())
    with pytest.raises(TaskRefusedError, match="'coarse', is to be the original"):
        checked(family, COARSE, ORIGINAL)


def test_a_shard_says_how_far_each_variant_is(family: Any) -> None:
    fine = Variant(name="fine", layers=dict.fromkeys(COARSE.layers, Choice(bits=8, group_size=32)))
    shard = checked(family, ORIGINAL, COARSE, fine, ORIGINAL, floor=True, shown=2)
    psnr = psnr_db(shard.squared_error, shard.output_size, shard.peak)
    assert psnr[0] == psnr[3] == MAX_PSNR_DB > psnr[2] > psnr[1] + 20 > 20
    assert shard.velocity_error.shape == (4, STEPS)
    assert (shard.velocity_error[1] > shard.velocity_error[2]).all()
    assert not shard.velocity_error[[0, 3]].any()
    assert not shard.overflows.any()
    # What rounding alone does is far below all of them.
    assert shard.has_floor
    assert shard.floor_squared_error < 1e-3 * shard.squared_error[2]
    assert shard.has_images
    assert (shard.ssim[[0, 3]] == 1).all() and (shard.ssim[1:3] < 1).all()
    assert (shard.image_psnr_db[[0, 3]] == MAX_PSNR_DB).all() and shard.image_psnr_db[1] < 60
    assert len(shard.lpips) == 0, "it is not at hand"
    pictures = shard.pictures()
    assert [picture[:4] for picture in pictures] == [b"\x89PNG", b"\x89PNG", b"", b""]
    assert pictures[0] != pictures[1]
    assert not hasattr(family._pipeline, "decoder"), "the VAE is held while pictures are decoded"


def test_without_guidance_there_is_a_floor_too(family: Any) -> None:
    shard = checked(family, ORIGINAL, COARSE, cfg_weight=0.0, floor=True)
    assert shard.floor_squared_error < 1e-6 * shard.squared_error[1]


def test_a_variant_that_overflows_is_the_worst_and_no_failure(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = family.transformer.final_layer.linear
    monkeypatch.setattr(layer, "bias", layer.bias)
    variant = Variant(name="broken", layers={"final_layer.linear": Choice(bits=8, group_size=64)})
    quantized = nn.QuantizedLinear.from_linear

    def broken(*arguments: Any) -> nn.Module:
        module = quantized(*arguments)
        module.bias = mx.full(module.bias.shape, mx.inf)
        return module

    monkeypatch.setattr(nn.QuantizedLinear, "from_linear", broken)
    shard = checked(family, ORIGINAL, variant, shown=2)
    assert shard.overflows.tolist() == [False, True]
    assert psnr_db(shard.squared_error, shard.output_size, shard.peak)[1] == pytest.approx(0)
    assert [len(picture) > 0 for picture in shard.pictures()] == [True, False]
    assert shard.has_images and shard.ssim.tolist() == [1, 0]


def test_pictures_that_can_not_be_decoded_cost_the_pictures_only(
    family: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(family, "decode", lambda latent: 1 / 0)
    shard = checked(family, ORIGINAL, COARSE, shown=2)
    assert shard.squared_error[1] > 0
    assert not shard.has_images and not shard.ssim.any() and shard.pictures() == [b"", b""]
    assert "verification on image 5 has no pictures" in caplog.text


def test_the_kind_fetches_the_variants_and_gives_the_memory_of_engines_back(family: Any) -> None:
    blob = encode_variants((ORIGINAL, COARSE))
    slot = EngineSlot()
    slot.get("exact", object)
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return blob

    seen: list[str] = []
    lent = Lent(
        family=family, check=seen.append, samples=lambda _: pytest.fail("no samples are needed"), blob=fetch,
        memory_share=2**30, engine_slot=slot,
    )  # fmt: skip
    shard = VerificationShard.from_bytes(run_task(task((ORIGINAL, COARSE)), lent))
    assert asked == [variants_digest(blob)]
    assert shard.image_index == 5 and shard.squared_error[1] > 0
    assert "coarse, step 2/2" in seen
    assert slot.get("exact", int) == 0, "the engine was given back"


def test_perceptual_distance_is_measured_where_it_is_at_hand(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perceptual.perceptual_distance() is None
    torch = pytest.importorskip("torch")

    class Fake:
        def __init__(self, net: str, verbose: bool) -> None:
            assert net == "alex"

        def eval(self) -> Any:
            return self

        def __call__(self, picture: Any, original: Any) -> Any:
            assert picture.shape == (1, 3, 32, 32) and -1 <= picture.min() <= picture.max() <= 1
            return (picture - original).abs().mean()

    for name in ("lpips", "torchvision"):
        module = ModuleType(name)
        module.__spec__ = sys.__spec__
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["lpips"].LPIPS = Fake  # type: ignore[attr-defined]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual.TRUNK).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual.perceptual_distance.cache_clear()
    try:
        shard = checked(family, ORIGINAL, COARSE)
    finally:
        perceptual.perceptual_distance.cache_clear()
    assert shard.lpips[0] == 0 < shard.lpips[1]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ssim", np.zeros(1), "number of variants"),
        ("lpips", np.zeros(1), "1 perceptual distances of 2"),
        ("image_png_size", np.array([3, -3]), "pictures"),
        ("squared_error", np.array([0, -1.0]), "below 0"),
        ("squared_error", np.array([0, np.nan]), "NaN"),
        ("peak", np.array(0.0), "without a latent"),
    ],
)
def test_shards_that_do_not_fit(name: str, array: np.ndarray, message: str) -> None:
    arrays = {
        "image_index": np.array(0),
        "squared_error": np.array([0.0, 1.0]),
        "overflows": np.array([False, False]),
        "peak": np.array(1.0),
        "squared_reference": np.array(2.0),
        "output_size": np.array(4),
        "velocity_error": np.zeros((2, 3)),
        "has_images": np.array(False),
        "image_psnr_db": np.zeros(2),
        "ssim": np.zeros(2),
        "lpips": np.zeros(0),
        "has_floor": np.array(False),
        "floor_squared_error": np.array(0.0),
        "image_png": np.zeros(0, np.uint8),
        "image_png_size": np.array([0, 0]),
    }
    assert VerificationShard.from_bytes(VerificationShard(**arrays).to_bytes())
    with pytest.raises(ShardCorruptError, match=message):
        VerificationShard.from_bytes(VerificationShard(**arrays | {name: array}).to_bytes())

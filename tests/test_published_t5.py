"""T5 in Google's layout: read and run as transformers does, and a machine's memory limit is its own."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import mlx.core as mx
import numpy as np
import pytest

from shared.models import Reference
from tests.tiny_models import SD3, T5_TOKENS, repository, tiny_tables, write_t5
from worker.families.diffusionkit.files import ModelFiles
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import model_io

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    folder = repository(home, "google/t5-v1_1-xxl")
    write_t5(repository(home, "argmaxinc/stable-diffusion") / "t5/t5xxl.safetensors", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        yield home


def encode(reference: Reference, tokens: list[int]) -> np.ndarray:
    files = ModelFiles(SD3, "float32", None, None, reference)
    with tiny_tables(), files.visible("text_encoder"):
        encoder = model_io.load_t5_encoder(float16=False, low_memory_mode=False)
    return np.array(encoder(mx.array([tokens])))


def test_equals_transformers(home: Path) -> None:
    # Here, since every process of the tests imports this module, and these imports take over a second.
    import torch
    from safetensors.torch import load_file
    from transformers import T5Config, T5EncoderModel

    with tiny_tables():
        tokenizer = model_io.load_t5_tokenizer(max_context_length=T5_TOKENS)
    tokens = tokenizer.tokenize("a small blue square")
    assert tokens[-1] == tokenizer.eos_id == 1
    assert len(tokens) > 4
    judge = T5EncoderModel(T5Config.from_pretrained("google/t5-v1_1-xxl")).eval()
    weights = load_file(repository(home, "argmaxinc/stable-diffusion") / "t5/t5xxl.safetensors")
    judge.load_state_dict({name: weight.float() for name, weight in weights.items()})
    with torch.no_grad():
        wanted = judge(torch.tensor([tokens])).last_hidden_state.numpy()

    def error(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    assert error(encode("published", tokens)) < 2e-5
    # DiffusionKit's own GELU is another one.
    assert 5e-5 < error(encode("diffusionkit", tokens)) < 1e-3


def test_the_memory_limit_stays(home: Path) -> None:
    before = mx.set_memory_limit(10**9)
    try:
        encode("published", [3, 4, 1])
        assert mx.set_memory_limit(before) == 10**9
    finally:
        mx.set_memory_limit(before)

"""A family of a library of its own, in one file: two transformers that are no MMDiT."""

import io
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from shared.layer_place import LayerPlace
from shared.runs import RunSettings
from tests.toy_transformers import ToyDiT, TwoStreams
from worker.families.family import Conditioning, Part


class ToyFamily:
    """A class-conditional DiT; its one conditioning array shifts the time."""

    after_blocks: tuple[str, ...] = ("patch_out",)
    rows_may_differ = True
    fingerprint = "0" * 64

    def __init__(self, seed: int = 0) -> None:
        mx.random.seed(seed)
        self.transformer = self.new_transformer()
        mx.eval(self.transformer.parameters())

    def new_transformer(self):
        return ToyDiT()

    @property
    def stages(self):
        return {"layers": self.transformer.layers}

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        prompts = (prompt, "") if cfg_weight > 0 else (prompt,)
        numbers = [zlib.crc32(text.encode()) / 2**32 for text in prompts]
        return {"label": mx.array(numbers)}

    def sigmas(self, steps: int, size: tuple[int, int]) -> mx.array:
        return mx.linspace(1, 0, steps + 1)

    def first_latent(self, seed: int, sigmas: mx.array, size: tuple[int, int]) -> mx.array:
        return sigmas[0] * mx.random.normal((1, size[0] // 8, size[1] // 8, 8), key=mx.random.key(seed))

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return self.transformer(tokens, sigma + conditioning["label"]).reshape(x.shape)

    def decode(self, x_0: mx.array) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.array((x_0[0, :, :, :3] > 0).astype(mx.uint8) * 255)).save(buffer, format="PNG")
        return buffer.getvalue()

    def place(self, path: str) -> LayerPlace:
        stage, _, rest = path.partition(".")
        index, _, name = rest.partition(".")
        if stage in self.stages:
            return LayerPlace(block=f"{stage} {index}", stream="both", role=name, short=name, tie=None)
        return LayerPlace(block="other layers", stream=None, role="other", short=path, tie=None)

    def export_name(self, path: str) -> str:
        return path


class TwoStreamFamily(ToyFamily):
    """Image and text blocks in turn."""

    after_blocks = ("image_out",)

    def new_transformer(self):
        return TwoStreams()

    @property
    def stages(self):
        return {name: getattr(self.transformer, name) for name in ("image_blocks", "text_blocks")}

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        labels = super().encode(prompt, cfg_weight)["label"]
        return {"text": mx.sin(labels[:, None, None] * mx.arange(1, 49).reshape(1, 3, 16))}

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return self.transformer(tokens, conditioning["text"], sigma).reshape(x.shape)


def load(settings: RunSettings, checkpoint: Path | None, parts: frozenset[Part]) -> ToyFamily:
    return ToyFamily(settings.seed)

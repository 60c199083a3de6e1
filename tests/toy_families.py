"""A family of a library of its own, in one file: two transformers that are no MMDiT."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from shared.layer_place import LayerPlace
from shared.model_card import LayerInfo
from shared.models import Part
from shared.runs import RunSettings
from tests.toy_transformers import ToyDiT, TwoStreams
from worker.engine.batches import guided_velocity
from worker.engine.layers import find_linear, is_linear, shape_of
from worker.families.family import Conditioning, Draw, PassSize


class ToyFamily:
    """A class-conditional DiT; the label of a prompt shifts the time. Nothing reads the tokens."""

    before: tuple[str, ...] = ("time_in", "patch_in")
    after_blocks: tuple[str, ...] = ("patch_out",)
    fingerprint = "0" * 64
    dtype = mx.float32
    channels = 8

    def __init__(self, seed: int = 0) -> None:
        mx.random.seed(seed)
        self.transformer = self.new_transformer()
        mx.eval(self.transformer.parameters())

    def new_transformer(self):
        return ToyDiT()

    @property
    def stages(self):
        return {"layers": self.transformer.layers}

    def part_fingerprints(self) -> dict[str, str]:
        return {"transformer": self.fingerprint}

    def hold(self, *parts: Part) -> None:
        """All parts are always there."""

    def keep_only(self, *parts: Part) -> None:
        """All parts are always there."""

    @property
    def layers(self) -> list[LayerInfo]:
        # In the order in which the modules were set, which is that of the pass.
        paths = [path for path, module in self.transformer.named_modules() if is_linear(module)]
        order = [*self.before, *self.stages, *self.after_blocks]
        paths.sort(key=lambda path: (order.index(path.partition(".")[0]), path))
        return [LayerInfo(path=path, shape=shape_of(find_linear(self.transformer, path))) for path in paths]

    def pass_size(self, latent_size: tuple[int, int], text_tokens: int) -> PassSize:
        height, width = latent_size
        return PassSize(tokens=height * width + text_tokens, width=32, heads=1, blocks=4, mlp_ratio=2)

    def encode(self, prompt: str, cfg_weight: float) -> Conditioning:
        prompts = (prompt, "") if cfg_weight > 0 else (prompt,)
        labels = mx.array([zlib.crc32(text.encode()) / 2**32 for text in prompts])[:, None]
        text = mx.sin(labels[:, :, None] * mx.arange(1, 49).reshape(1, 3, 16))
        return {"tokens": text, "labels": labels, "length": mx.full((len(prompts),), text.shape[1])}

    def canary_conditioning(self, draw: Draw, rows: int, tokens: int) -> Conditioning:
        return {
            "tokens": draw(rows, tokens, 16),
            "labels": draw(rows, 1),
            "length": mx.full((rows,), tokens),
        }

    def sigmas(self, steps: int) -> mx.array:
        return mx.linspace(1, 0, steps + 1)

    def timesteps(self, sigmas: mx.array) -> mx.array:
        return 1000 * sigmas

    def first_latent(self, seed: int, sigmas: mx.array, latent_size: tuple[int, int]) -> mx.array:
        return sigmas[0] * mx.random.normal((1, *latent_size, 8), key=mx.random.key(seed))

    def direction(
        self, x_t: mx.array, sigma: mx.array, conditioning: Conditioning, cfg_weight: float
    ) -> mx.array:
        rows = len(conditioning["labels"])
        velocity = self.velocity(mx.repeat(x_t, rows, axis=0), mx.broadcast_to(sigma, [rows]), conditioning)
        return guided_velocity(velocity, cfg_weight)

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return self.transformer(tokens, sigma + conditioning["labels"][:, 0]).reshape(x.shape)

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

    before = ("shared_modulation", "image_in", "text_in")
    after_blocks = ("image_out",)

    def new_transformer(self):
        return TwoStreams()

    @property
    def stages(self):
        return {name: getattr(self.transformer, name) for name in ("image_blocks", "text_blocks")}

    def velocity(self, x: mx.array, sigma: mx.array, conditioning: Conditioning) -> mx.array:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return self.transformer(tokens, conditioning["tokens"], sigma).reshape(x.shape)


def load(settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part]) -> ToyFamily:
    return ToyFamily(settings.seed)

"""Which files a model consists of, and how DiffusionKit's loaders come to see just those."""

import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusionkit.mlx as diffusionkit
import mlx.core as mx
from diffusionkit.mlx import model_io, t5
from diffusionkit.mlx.config import FLUX_DEV, MMDiTConfig
from diffusionkit.mlx.mmdit import MMDiT
from diffusionkit.mlx.t5 import SD3T5Encoder
from diffusionkit.mlx.vae import VAEDecoder
from huggingface_hub import hf_hub_download
from mlx.nn.layers.base import Module
from platformdirs import user_cache_path

from shared.errors import ModelUnavailableError
from shared.identity import digest_of
from shared.models import Part, Precision, Reference, model_spec
from worker.families.diffusionkit.checkpoint_check import (
    OTHER_PARTS,
    MisfitError,
    Shape,
    check_part,
    check_transformer,
)
from worker.families.diffusionkit.published import PublishedMMDiT, adjust_sd3_with_key_biases
from worker.families.diffusionkit.sd3_layout import (
    VAE_DECODER_PREFIX,
    VAE_ENCODER_PREFIX,
    Weights,
    clip_to_hf,
    empty_parameters,
    mmdit_to_flux,
    mmdit_to_sd3,
    t5_to_google,
    vae_to_sd3,
)
from worker.families.diffusionkit.small_models import WEIGHTS_FILE, BuiltIn
from worker.families.diffusionkit.t5 import PublishedDense, T5Stack
from worker.families.downloads import unavailable


class ModelFiles:
    """One model's files. DiffusionKit's tables are module globals; `visible` sets and restores them."""

    def __init__(
        self,
        model_id: str,
        precision: Precision,
        checkpoint: Path | None,
        built_in: BuiltIn | None,
        reference: Reference = "diffusionkit",
    ) -> None:
        self.model_id = model_id
        self.precision = precision
        self.checkpoint = checkpoint
        self.built_in = built_in
        self.reference = reference
        self._resolved: dict[Part, dict[str, Path]] = {}
        """Every file that a loader asked for, by part, repository and name."""
        self._part: Part = "transformer"
        self._module: Module | None = None
        """What a loader made last; its file is compared with it."""

    @contextmanager
    def visible(self, part: Part = "transformer") -> Iterator[None]:
        """DiffusionKit's loaders know this model and find the files of this part."""
        with ExitStack() as stack:
            self._part, self._module = part, None
            for owner, name, value in self._globals():
                stack.enter_context(_attribute(owner, name, value))
            yield

    def new_transformer(self) -> MMDiT:
        """The transformer without its weights, within `visible`, as DiffusionKit's loaders make it."""
        flux = model_spec(self.model_id).family == "flux"
        key = diffusionkit.MMDIT_CKPT[self.model_id]
        config = model_io.FLUX_SCHNELL if flux else model_io._CONFIG[key]
        config.low_memory_mode = False
        return model_io.MMDiT(config)

    def fetch(self, repo_id: str, filename: str) -> str:
        """Stand in for `hf_hub_download`: the path of one file.

        Raises:
            ModelUnavailableError: not on this machine, not to be had, or not what the model needs.
        """
        path = self._locate(repo_id, filename)
        # DiffusionKit asks for the repository's config.json to count downloads; nothing is read from it.
        if filename != "config.json":
            self._resolved.setdefault(self._part, {})[f"{repo_id}/{filename}"] = path
        if filename.endswith(".safetensors") and self._module is not None:
            try:
                self._check(path, self._module)
            except MisfitError as error:
                raise ModelUnavailableError(
                    f"{path} does not hold {self.model_id}: {error}; {self._remedy(path)}"
                ) from None
        return str(path)

    def fingerprint(self, *parts: Part) -> str:
        """sha256, in hex, over names and sha256 of all files that the loaders of these parts asked for."""
        files = {name: path for part in parts for name, path in self._resolved.get(part, {}).items()}
        return digest_of(sorted((name, file_sha256(path)) for name, path in files.items()))

    def part_fingerprints(self) -> dict[str, str]:
        """`fingerprint` of each part that was loaded so far."""
        return {part: self.fingerprint(part) for part in self._resolved}

    def _check(self, path: Path, module: Module) -> None:
        shapes = empty_parameters(module)
        if isinstance(module, MMDiT):
            spec = model_spec(self.model_id)
            names = mmdit_to_flux(shapes) if spec.family == "flux" else mmdit_to_sd3(shapes)
            # DiffusionKit runs FLUX.1-dev without the guidance embedding that its checkpoint holds.
            unused = spec.guidance is not None and self.reference == "diffusionkit"
            check_transformer(path, _shapes(names), ("guidance_in.",) if unused else ())
        elif isinstance(module, VAEDecoder):
            prefix = model_io._PREFIX[self.model_id]["vae_decoder"]
            check_part(path, _shapes(vae_to_sd3(shapes, prefix)))
        else:
            names = t5_to_google(shapes) if isinstance(module, SD3T5Encoder) else clip_to_hf(shapes)
            check_part(path, _shapes(names))

    def _remedy(self, path: Path) -> str:
        if path == self.checkpoint:
            return "give --checkpoint a file in the layout of the model's publisher"
        if self.built_in is not None:
            return f"delete {path.parent}, and if it is part of the package install bitfleet again"
        return "delete it from the Hugging Face cache, so that it is downloaded again"

    def _remembered(self, kind: Callable[..., Module]) -> Callable[..., Module]:
        """Every loader makes its module first, then asks for the file: so `fetch` can compare the two."""

        def make(*arguments: Any, **options: Any) -> Module:
            self._module = kind(*arguments, **options)
            return self._module

        return make

    def _locate(self, repo_id: str, filename: str) -> Path:
        # Not DiffusionKit's own `local_ckpt`: a global that stays set, and that FLUX would read its VAE from.
        if self.checkpoint is not None and filename == self._weights_file:
            return self.checkpoint
        if self.built_in is not None:
            return self.built_in.folder() / filename
        try:
            return Path(hf_hub_download(repo_id, filename))
        except Exception as error:
            raise unavailable(self.model_id, repo_id, filename, error) from error

    @property
    def _weights_file(self) -> str:
        if self.built_in is not None:
            return WEIGHTS_FILE
        name: str = model_io._MMDIT[self.model_id][self.model_id]
        return name

    def _globals(self) -> Iterator[tuple[Any, str, Any]]:
        """(module, name, value) of what DiffusionKit's loaders read."""
        yield model_io, "hf_hub_download", self.fetch
        yield model_io, "LOCAl_SD3_CKPT", None
        # The MLX that DiffusionKit was written for ignored surplus keys, such as the key biases of FLUX.
        yield Module, "update", _lenient_update
        yield t5, "TransformerEncoder", T5Stack
        published = self.reference == "published"
        if published:
            yield t5, "DenseActivation", PublishedDense
        yield model_io, "MMDiT", self._remembered(PublishedMMDiT if published else model_io.MMDiT)
        for name in ("VAEDecoder", "CLIPTextModel", "SD3T5Encoder"):
            yield model_io, name, self._remembered(getattr(model_io, name))
        adjust = adjust_sd3_with_key_biases if published else model_io.mmdit_state_dict_adjustments
        yield model_io, "mmdit_state_dict_adjustments", functools.partial(_adjust_transformer, adjust)
        # A global that the pipeline made last has set; parts of an older one may still have to be loaded.
        flux = model_spec(self.model_id).family == "flux"
        yield model_io, "_FLOAT16", mx.bfloat16 if flux else mx.float16
        if self.built_in is None:
            # Loaders write low_memory_mode into these shared objects, which live models keep reading.
            configs = {name: dataclasses.replace(config) for name, config in model_io._CONFIG.items()}
            yield model_io, "_CONFIG", configs
            yield model_io, "FLUX_SCHNELL", self._flux_config()
            return
        key, small = self.model_id, self.built_in.model
        prefixes = {"vae_encoder": VAE_ENCODER_PREFIX, "vae_decoder": VAE_DECODER_PREFIX}
        yield model_io, "_CONFIG", {key: small.mmdit_config(self.precision)}
        yield model_io, "_MMDIT", {key: {key: WEIGHTS_FILE, "vae": WEIGHTS_FILE}}
        yield model_io, "_PREFIX", {key: prefixes}
        yield model_io, "VAEEncoderConfig", small.vae_encoder_config
        yield model_io, "VAEDecoderConfig", small.vae_decoder_config
        yield diffusionkit, "MMDIT_CKPT", {key: key}

    def _flux_config(self) -> MMDiTConfig:
        # `load_flux` takes the configuration of schnell for every FLUX.
        with_guidance = model_spec(self.model_id).guidance is not None and self.reference == "published"
        return dataclasses.replace(FLUX_DEV if with_guidance else model_io.FLUX_SCHNELL)


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _shapes(weights: Weights) -> dict[str, Shape]:
    return {name: weight.shape for name, weight in weights.items()}


def _adjust_transformer(
    adjust: Callable[..., dict[str, Any]], weights: dict[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """A checkpoint may hold text encoders, too: DiffusionKit would take them for the transformer's."""
    kept = {name: weight for name, weight in weights.items() if not name.startswith(OTHER_PARTS)}
    return adjust(kept, prefix=prefix)


_strict_update = Module.update


@functools.wraps(_strict_update)
def _lenient_update(self: Module, parameters: dict[str, Any], strict: bool = False) -> Module:
    updated: Module = _strict_update(self, parameters, strict=strict)
    return updated


def file_sha256(path: Path) -> str:
    """sha256, in hex, of a file; of an unchanged file (path, size, mtime) it is computed once."""
    path = path.resolve()
    status = path.stat()
    key = digest_of([str(path), status.st_size, status.st_mtime_ns])
    entry = user_cache_path("bitfleet") / "sha256" / key
    try:
        known = entry.read_text()
    except OSError:
        known = ""
    if len(known) == 64:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(entry, digest)
    return digest


def _remember(entry: Path, digest: str) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent)
        with os.fdopen(handle, "w") as file:
            file.write(digest)
        Path(temporary).replace(entry)
    except OSError:
        # A home that can't be written costs time, nothing else.
        return

"""Which files a model consists of, and how DiffusionKit's loaders come to see just those."""

import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusionkit.mlx as diffusionkit
from diffusionkit.mlx import model_io
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from mlx.nn.layers.base import Module
from platformdirs import user_cache_path

from shared.errors import ModelUnavailableError
from shared.identity import digest_of
from shared.models import Precision
from worker.model.sd3_layout import VAE_DECODER_PREFIX, VAE_ENCODER_PREFIX
from worker.model.small_models import WEIGHTS_FILE, BuiltIn


class ModelFiles:
    """One model's files. DiffusionKit's tables are module globals; `visible` sets and restores them."""

    def __init__(
        self, model_id: str, precision: Precision, checkpoint: Path | None, built_in: BuiltIn | None
    ) -> None:
        self.model_id = model_id
        self.precision = precision
        self.checkpoint = checkpoint
        self.built_in = built_in
        self.resolved: dict[str, Path] = {}
        """Every file that a loader asked for, by repository and name."""

    @contextmanager
    def visible(self) -> Iterator[None]:
        """DiffusionKit's loaders know this model and find its files."""
        with ExitStack() as stack:
            for owner, name, value in self._globals():
                stack.enter_context(_attribute(owner, name, value))
            yield

    def fetch(self, repo_id: str, filename: str) -> str:
        """Stand in for `hf_hub_download`: the path of one file.

        Raises:
            ModelUnavailableError: not on this machine, and not to be had.
        """
        path = self._locate(repo_id, filename)
        # DiffusionKit asks for the repository's config.json to count downloads; nothing is read from it.
        if filename != "config.json":
            self.resolved[f"{repo_id}/{filename}"] = path
        return str(path)

    def fingerprint(self) -> str:
        """sha256, in hex, over names and sha256 of all files resolved so far."""
        return digest_of(sorted((name, file_sha256(path)) for name, path in self.resolved.items()))

    def _locate(self, repo_id: str, filename: str) -> Path:
        # Not DiffusionKit's own `local_ckpt`: a global that stays set, and that FLUX would read its VAE from.
        if self.checkpoint is not None and filename == self._weights_file:
            return self.checkpoint
        if self.built_in is not None:
            return self.built_in.folder() / filename
        try:
            return Path(hf_hub_download(repo_id, filename))
        except Exception as error:
            raise _unavailable(self.model_id, repo_id, filename, error) from error

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
        if self.built_in is None:
            # Loaders write low_memory_mode into these shared objects, which live models keep reading.
            configs = {name: dataclasses.replace(config) for name, config in model_io._CONFIG.items()}
            yield model_io, "_CONFIG", configs
            yield model_io, "FLUX_SCHNELL", dataclasses.replace(model_io.FLUX_SCHNELL)
            return
        key, small = self.model_id, self.built_in.model
        prefixes = {"vae_encoder": VAE_ENCODER_PREFIX, "vae_decoder": VAE_DECODER_PREFIX}
        yield model_io, "_CONFIG", {key: small.mmdit_config(self.precision)}
        yield model_io, "_MMDIT", {key: {key: WEIGHTS_FILE, "vae": WEIGHTS_FILE}}
        yield model_io, "_PREFIX", {key: prefixes}
        yield model_io, "VAEEncoderConfig", small.vae_encoder_config
        yield model_io, "VAEDecoderConfig", small.vae_decoder_config
        yield diffusionkit, "MMDIT_CKPT", {key: key}


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


_strict_update = Module.update


@functools.wraps(_strict_update)
def _lenient_update(self: Module, parameters: dict[str, Any], strict: bool = False) -> Module:
    updated: Module = _strict_update(self, parameters, strict=strict)
    return updated


def _unavailable(model_id: str, repo_id: str, filename: str, error: Exception) -> ModelUnavailableError:
    page = f"https://huggingface.co/{repo_id}"
    other = "or give the weights with --checkpoint FILE"
    if isinstance(error, GatedRepoError):
        reason, remedy = "is gated", f"accept the licence at {page}, then run `hf auth login`, {other}"
    elif isinstance(error, RepositoryNotFoundError):
        reason, remedy = "can't be seen without a login", f"look at {page} and run `hf auth login`, {other}"
    else:
        reason = f"is not on this machine and can't be downloaded ({type(error).__name__})"
        remedy = f"check the network and HF_HUB_OFFLINE, then try again, {other}"
    return ModelUnavailableError(f"{model_id}: {filename} of {repo_id} {reason}; {remedy}")


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

"""Loading a model: DiffusionKit's own pipeline classes and loaders, for real and built-in models alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError, ModelUnavailableError, RunMismatchError
from shared.models import ModelSpec, model_spec
from shared.runs import RunSettings
from worker.model.quiet_imports import quiet_imports

with quiet_imports():
    import mlx.core as mx
    from diffusionkit.mlx import DiffusionPipeline, FluxPipeline

    from worker.model.model_files import ModelFiles, file_sha256
    from worker.model.small_models import DEMO, TINY_SD3, BuiltIn, demo_folder
    from worker.model.tiny_checkpoint import tiny_sd3_folder

BUILT_IN = {
    "tiny-sd3": BuiltIn(TINY_SD3, tiny_sd3_folder),
    "demo": BuiltIn(DEMO, demo_folder),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A pipeline in memory. Its parameters are lazy until first used."""

    spec: ModelSpec
    pipeline: DiffusionPipeline
    fingerprint: str
    """sha256, in hex, over the files that DiffusionKit resolved."""


def load_model(settings: RunSettings, checkpoint: Path | None = None) -> LoadedModel:
    """Load the model of a run. `checkpoint` replaces the transformer's file (for SD3 the VAE's too).

    Raises:
        InputError: no such model, T5 wanted of a model without it, or an image larger than it draws.
        RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
        ModelUnavailableError: a file is missing, gated, or holds another model.
    """
    spec = model_spec(settings.model)
    spec.check(image_size=settings.image_size, use_t5=settings.use_t5)
    _check_checkpoint(settings, checkpoint)
    built_in = BUILT_IN[spec.id] if spec.built_in else None
    files = ModelFiles(spec.id, settings.precision, checkpoint, built_in)
    try:
        pipeline = _new_pipeline(spec, settings, files)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unusable(error, files, settings.use_t5) from error
    return LoadedModel(spec=spec, pipeline=pipeline, fingerprint=files.fingerprint())


def _unusable(error: Exception, files: ModelFiles, use_t5: bool) -> ModelUnavailableError:
    reason = _first_line(error)
    if isinstance(error, OSError) and use_t5:
        # transformers fetches these by itself, past DiffusionKit's own downloads.
        remedy = "sizes and tokenizer of T5 come from google/t5-v1_1-xxl; check the network, or use --no-t5"
        return ModelUnavailableError(f"{files.model_id}: {reason}; {remedy}")
    if files.checkpoint is not None:
        return ModelUnavailableError(f"{files.checkpoint} does not hold {files.model_id}: {reason}")
    if files.built_in is not None:
        folder = files.built_in.folder()
        remedy = "delete that folder, and if it is part of the package install bitfleet again"
        return ModelUnavailableError(f"{files.model_id}: a file in {folder} is damaged ({reason}); {remedy}")
    return ModelUnavailableError(
        f"{files.model_id}: a downloaded file can't be read ({reason}); delete it from the Hugging Face cache"
    )


def _check_checkpoint(settings: RunSettings, checkpoint: Path | None) -> None:
    wanted = settings.checkpoint_sha256
    if checkpoint is None:
        if wanted is not None:
            raise RunMismatchError(
                f"run {settings.id} was enqueued with a checkpoint of its own (sha256 {wanted[:12]}...);"
                " give that file with --checkpoint"
            )
        return
    if not checkpoint.is_file():
        raise ModelUnavailableError(f"no checkpoint file at {checkpoint}; give a .safetensors file")
    if wanted is None:
        raise RunMismatchError(f"run {settings.id} was enqueued without a checkpoint; leave out --checkpoint")
    if (found := file_sha256(checkpoint)) != wanted:
        raise RunMismatchError(
            f"{checkpoint} (sha256 {found[:12]}...) is not the checkpoint of run {settings.id}"
            f" (sha256 {wanted[:12]}...); give the file that it was enqueued with"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _OwnFiles:
    """Lets a pipeline find its files whenever it loads: at first, and when it restores weights later."""

    def __init__(self, *, files: ModelFiles, **options: Any) -> None:
        self._files = files
        with files.visible():
            super().__init__(**options)
        self._fit_tokenizers()

    def load_mmdit(self, only_modulation_dict: bool = False) -> Any:
        """See DiffusionKit."""
        with self._files.visible():
            return super().load_mmdit(only_modulation_dict)  # type: ignore[misc]

    def _fit_tokenizers(self) -> None:
        # DiffusionKit's tokenizers assume CLIP's 77 tokens. The small models have fewer positions, which
        # saves most of the time of a forward pass; for the real ones this changes nothing.
        for part in ("l", "g"):
            if hasattr(self, f"tokenizer_{part}"):
                getattr(self, f"tokenizer_{part}").max_length = getattr(self, f"clip_{part}").max_length

    def _tokenize(self, tokenizer: Any, text: str, negative_text: str | None = None) -> mx.array:
        try:
            tokens: mx.array = super()._tokenize(tokenizer, text, negative_text)  # type: ignore[misc]
        except KeyError as error:
            symbol = str(error.args[0]).removesuffix("</w>")
            raise InputError(
                f"the tokenizer of {self._files.model_id} doesn't know {symbol!r}; reword the prompt {text!r}"
            ) from None
        return tokens


class _Sd3Pipeline(_OwnFiles, DiffusionPipeline):  # type: ignore[misc]
    """SD3 and SD3.5."""


class _FluxPipeline(_OwnFiles, FluxPipeline):  # type: ignore[misc]
    """FLUX.1."""


def _new_pipeline(spec: ModelSpec, settings: RunSettings, files: ModelFiles) -> DiffusionPipeline:
    half = settings.precision == "float16"
    pipeline_class = _FluxPipeline if spec.family == "flux" else _Sd3Pipeline
    return pipeline_class(
        files=files,
        model_version=spec.id,
        shift=settings.shift,
        use_t5=settings.use_t5,
        w16=half,
        a16=half,
        # True passes an argument that MLX's attention no longer takes.
        low_memory_mode=False,
    )

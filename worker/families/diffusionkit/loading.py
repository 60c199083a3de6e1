"""Loading a model: DiffusionKit's own pipeline classes and loaders, for real and built-in models alike."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError, ModelUnavailableError, RunMismatchError
from shared.models import PARTS, ModelSpec, Part, model_spec
from shared.runs import RunSettings
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    import mlx.core as mx
    import mlx.nn as nn
    from diffusionkit.mlx import DiffusionPipeline, FluxPipeline, model_io

    from worker.export.folder import ExportFolder
    from worker.export.predicate import predicate_of
    from worker.families.diffusionkit.files import ModelFiles, file_sha256
    from worker.families.diffusionkit.published import PublishedMMDiT
    from worker.families.diffusionkit.small_models import DEMO, TINY_SD3, BuiltIn, demo_folder
    from worker.families.diffusionkit.tiny_checkpoint import tiny_sd3_folder

_ATTRIBUTES: dict[Part, tuple[str, ...]] = {
    "transformer": ("mmdit",),
    "text_encoder": ("clip_l", "tokenizer_l", "clip_g", "tokenizer_g", "t5_encoder", "t5_tokenizer"),
    "vae": ("decoder",),
}
"""Where a pipeline of DiffusionKit keeps its parts."""

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
    """sha256, in hex, over the transformer's files: the same whichever other parts are held.

    With DiffusionKit's forward pass over all files, as it was before parts were told apart.
    """
    files: ModelFiles

    def hold(self, *parts: Part) -> None:
        """Load those of these parts that are missing.

        Raises:
            ModelUnavailableError: a file is missing, gated, or holds another model.
        """
        with _explained(self.files, self.pipeline.use_t5):
            self.pipeline.hold(parts)

    def keep_only(self, *parts: Part) -> None:
        """Drop all other parts, and give their memory back."""
        self.pipeline.keep_only(parts)

    def part_fingerprints(self) -> dict[str, str]:
        """sha256, in hex, over the files of each part that was loaded so far."""
        return self.files.part_fingerprints()


def load_model(
    settings: RunSettings,
    checkpoint: Path | None = None,
    parts: Sequence[Part] = PARTS,
    exported: ExportFolder | None = None,
) -> LoadedModel:
    """Load the model of a run, or the parts of it that a task needs.

    `checkpoint` replaces the transformer's file (for SD3 the VAE's too). With `exported` the transformer is
    the quantized one of that folder; what is not in it comes from the model's own files.

    Raises:
        InputError: no such model, T5 wanted of a model without it, a guidance that the model's forward pass
            doesn't take or that it lacks, or an image larger than it draws.
        RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
        ModelUnavailableError: a file is missing, gated, or holds another model.
    """
    spec = model_spec(settings.model)
    spec.check(image_size=settings.image_size, use_t5=settings.use_t5)
    if exported is None or checkpoint is not None:
        _check_checkpoint(settings, checkpoint)
    built_in = BUILT_IN[spec.id] if spec.built_in else None
    _check_guidance(spec, settings)
    files = ModelFiles(spec.id, settings.precision, checkpoint, built_in, settings.reference)
    whole = settings.reference == "diffusionkit" and exported is None
    with _explained(files, settings.use_t5):
        pipeline = _new_pipeline(spec, settings, files, PARTS if whole else parts, exported)
    if isinstance(pipeline.mmdit, PublishedMMDiT):
        pipeline.mmdit.set_guidance(settings.guidance, pipeline.activation_dtype)
    return LoadedModel(
        spec=spec,
        pipeline=pipeline,
        fingerprint=files.fingerprint(*(PARTS if whole else ("transformer",))),
        files=files,
    )


@contextmanager
def _explained(files: ModelFiles, use_t5: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unusable(error, files, use_t5) from error


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


def _check_guidance(spec: ModelSpec, settings: RunSettings) -> None:
    wanted = spec.guidance is not None and settings.reference == "published"
    if wanted and settings.guidance is None:
        raise InputError(f"{spec.id} needs a guidance, run {settings.id} has none; enqueue it again")
    if not wanted and settings.guidance is not None:
        raise InputError(
            f"{spec.id} with reference {settings.reference} takes no guidance, run {settings.id} has "
            f"{settings.guidance:g}; enqueue it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _OwnFiles:
    """A pipeline that holds the parts it is told to, and finds their files whenever it loads them."""

    # DiffusionKit's own attributes.
    dtype: mx.Dtype
    mmdit: Any
    mmdit_ckpt: str
    model: str
    set_up_t5: Callable[[], None]
    use_clip_g: bool
    use_t5: bool

    def __init__(
        self, *, files: ModelFiles, parts: Sequence[Part], exported: ExportFolder | None, **options: Any
    ) -> None:
        self._files, self._exported = files, exported
        with files.visible():
            super().__init__(**options)
        self.hold(parts)

    def check_and_load_models(self) -> None:
        """DiffusionKit loads everything here, the VAE's encoder included; see `hold`."""

    def hold(self, parts: Sequence[Part]) -> None:
        """Load those of these parts that are missing."""
        if "transformer" in parts and not hasattr(self, "mmdit"):
            self.load_mmdit()
        if "vae" in parts and not hasattr(self, "decoder"):
            with self._files.visible("vae"):
                self.decoder = model_io.load_vae_decoder(key=self.mmdit_ckpt, float16=self._half)
        if "text_encoder" in parts and not self._has_text_encoders:
            with self._files.visible("text_encoder"):
                self._load_text_encoders()

    def keep_only(self, parts: Sequence[Part]) -> None:
        """Drop all other parts, and give their memory back."""
        surplus = [name for part, names in _ATTRIBUTES.items() if part not in parts for name in names]
        held = [name for name in surplus if hasattr(self, name)]
        for name in held:
            delattr(self, name)
        if held:
            gc.collect()
            mx.clear_cache()

    def load_mmdit(self, only_modulation_dict: bool = False) -> Any:
        """See DiffusionKit, which empties the adaLN layers with each image, and asks for them again."""
        with self._files.visible("transformer"):
            if self._exported is None:
                return super().load_mmdit(only_modulation_dict)  # type: ignore[misc]
            tensors = self._exported.tensors()
            if only_modulation_dict:
                return [(name, tensor) for name, tensor in tensors.items() if "adaLN" in name]
            self.mmdit = self._files.new_transformer()
        try:
            nn.quantize(self.mmdit, class_predicate=predicate_of(self._exported.layers))
            self.mmdit.load_weights(list(tensors.items()))
        except ValueError as error:
            reason = f"{self._exported.path} does not hold {self._files.model_id}: {_first_line(error)}"
            raise ModelUnavailableError(f"{reason}; export it again") from None
        return None

    @property
    def _half(self) -> bool:
        return bool(self.dtype != mx.float32)

    @property
    def _has_text_encoders(self) -> bool:
        names = (
            "clip_l",
            *(["clip_g"] if self.use_clip_g else []),
            *(["t5_tokenizer"] if self.use_t5 else []),
        )
        return all(hasattr(self, name) for name in names)

    def _load_text_encoders(self) -> None:
        for part in ("l", "g") if self.use_clip_g else ("l",):
            encoder = model_io.load_text_encoder(self.model, float16=self._half, model_key=f"clip_{part}")
            tokenizer = model_io.load_tokenizer(
                self.model,
                vocab_key=f"tokenizer_{part}_vocab",
                merges_key=f"tokenizer_{part}_merges",
                pad_with_eos=part == "l",
            )
            # DiffusionKit's tokenizers assume CLIP's 77 tokens. The small models have fewer positions, which
            # saves most of the time of a forward pass; for the real ones this changes nothing.
            tokenizer.max_length = encoder.max_length
            setattr(self, f"clip_{part}", encoder)
            setattr(self, f"tokenizer_{part}", tokenizer)
        if self.use_t5:
            self.set_up_t5()

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


def _new_pipeline(
    spec: ModelSpec,
    settings: RunSettings,
    files: ModelFiles,
    parts: Sequence[Part],
    exported: ExportFolder | None,
) -> DiffusionPipeline:
    # Which 16 bits these are is the family's matter: runs from before bfloat16 was said call both float16.
    half = settings.precision != "float32"
    pipeline_class = _FluxPipeline if spec.family == "flux" else _Sd3Pipeline
    return pipeline_class(
        files=files,
        parts=parts,
        exported=exported,
        model_version=spec.id,
        shift=settings.shift,
        use_t5=settings.use_t5,
        w16=half,
        a16=half,
        # True passes an argument that MLX's attention no longer takes.
        low_memory_mode=False,
    )

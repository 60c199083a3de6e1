"""Using a plan or an exported model: the functions of this package that are meant for others.

from worker.load import load_quantized

model = load_quantized("exported")
Path("image.png").write_bytes(model.draw("a red circle", seed=1))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InputError
from shared.plan import Choice
from shared.plan_file import read_plan
from shared.runs import RunSettings
from worker.export.predicate import Predicate, predicate_of

if TYPE_CHECKING:
    import mlx.core as mx

    from worker.families.family import Family

__all__ = ["QuantizedModel", "load_quantized", "predicate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A quantized model, ready to draw. Its text encoders and VAE are the original's."""

    family: "Family"
    """Runs the model; see `worker.families.family`."""
    settings: RunSettings
    """Steps, CFG and size that it was measured with: the defaults of `draw`."""
    layers: Mapping[str, Choice]
    """How each quantized layer is stored, by dotted MLX path."""

    @property
    def pipeline(self) -> Any:
        """DiffusionKit's pipeline with all its parts; the quantized transformer is its `mmdit`.

        Its own `denoise_latents` works, too, image after image: the adaLN weights that it empties come back
        from the exported folder. It runs DiffusionKit's forward pass; `draw` runs that of the settings.
        """
        self.family.hold("transformer", "text_encoder", "vae")
        pipeline: Any = getattr(self.family, "pipeline", None)
        return pipeline

    def denoise(
        self,
        prompt: str,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        cfg_weight: float | None = None,
        image_size: int | None = None,
    ) -> "mx.array":
        """Draw an image, without decoding it.

        On one machine the latent is that of a verification with the same settings, to the last bit.

        Args:
            prompt: what to draw.
            seed: of the noise; an image of a run has the run's seed plus its index.
            num_steps: the settings' if None.
            cfg_weight: the settings' if None; 0 for none.
            image_size: width and height in pixels, a multiple of 16; the settings' if None.

        Returns:
            The final latent (1, H, W, C) float32.

        Raises:
            InputError: the model can't draw an image of this size.
            TaskRefusedError: the model's output is not finite.
        """
        from shared.models import model_spec
        from worker.engine.trajectory import denoise

        run = self.settings
        size = run.image_size if image_size is None else image_size
        if size <= 0 or size % 16:
            raise InputError(f"an image of {size} pixels can't be drawn; give a multiple of 16")
        model_spec(run.model).check(image_size=size, use_t5=run.use_t5)
        self.family.hold("text_encoder", "transformer")
        trajectory = denoise(
            self.family,
            prompt,
            seed=seed,
            num_steps=run.num_steps if num_steps is None else num_steps,
            cfg_weight=run.cfg_weight if cfg_weight is None else cfg_weight,
            latent_size=(size // 8, size // 8),
        )
        return trajectory.x[-1]

    def draw(self, prompt: str, **options: Any) -> bytes:
        """Draw an image, and return it as PNG. See `denoise` for the options."""
        latent = self.denoise(prompt, **options)
        self.family.hold("vae")
        return self.family.decode(latent)


def load_quantized(folder: str | Path, checkpoint: str | Path | None = None) -> QuantizedModel:
    """Load a model that `producer export` wrote. Weights are read when they are first used.

    Text encoders and VAE come from the original model's own files; its transformer is not needed.

    Args:
        folder: the exported folder.
        checkpoint: the file that the run was enqueued with, if it was, for the sake of the VAE in it. Without
            it the VAE is that of the model's publisher.

    Raises:
        ModelUnavailableError: this is no exported model, or a file of it or of the original is missing,
            damaged or gated.
        RunMismatchError: `checkpoint` is not the file that the run was enqueued with.
    """
    from worker.export.folder import ExportFolder
    from worker.families.registry import load_exported_family

    exported = ExportFolder(Path(folder))
    family = load_exported_family(
        exported, None if checkpoint is None else Path(checkpoint), ("transformer",)
    )
    return QuantizedModel(family=family, settings=exported.config.bitfleet.run, layers=exported.layers)


def predicate(source: str | Path | Mapping[str, Choice]) -> Predicate:
    """Return a `class_predicate` for `mlx.nn.quantize`, which quantizes a model as planned or as exported.

    Args:
        source: an exported folder, a plan.json, or choices by dotted MLX path.

    Raises:
        InputError: there is no such plan.
        ModelUnavailableError: the folder holds no exported model.
    """
    if isinstance(source, Mapping):
        return predicate_of(source)
    path = Path(source)
    if path.is_dir():
        from worker.export.folder import ExportFolder

        return predicate_of(ExportFolder(path).layers)
    return predicate_of(read_plan(path).layers)

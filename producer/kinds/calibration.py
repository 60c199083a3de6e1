"""Calibration: the wanted images, and how finished ones become samples."""

from collections.abc import Sequence
from functools import partial

from producer.folder.calib_folder import CalibFolder
from producer.folder.collected_images import KeptFiles
from producer.folder.image_samples import write_samples
from producer.folder.record_folder import RecordFolder
from producer.folder.run_file import RunFile
from producer.folder.sample_steps import written_steps
from producer.folder.tasks import calibration_tasks
from producer.kinds.part import Collected, Part
from shared.errors import RunMismatchError, ShardCorruptError
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.model_card import ModelCard, decode_model_card
from shared.stores.records import Record


def find_parts(folder: CalibFolder) -> list[Part]:
    """One: the run's images."""
    return [CalibrationPart(folder, folder.require_run())]


class CalibrationPart(Part):
    """All images of a run. A shard becomes one sample per step, and a preview; or it is kept itself."""

    def __init__(self, folder: CalibFolder, run: RunFile) -> None:
        self._folder, self._run = folder, run
        self._tasks = calibration_tasks(run)

    @property
    def title(self) -> str:
        return "calibration"

    @property
    def records(self) -> RecordFolder:
        return self._folder.records

    def tasks(self) -> Sequence[CalibrationTask]:
        return self._tasks

    def collected(self, *, closely: bool = False) -> Collected:
        records, damages = self._folder.images.look(self._tasks, renew=closely)
        lines = {task_id: f"{damage}; the image is to be drawn again" for task_id, damage in damages.items()}
        restored = not records or self._folder.restore_model(write=closely)
        if not restored and len(records) == len(self._tasks):
            # Any image's shard brings a model card.
            first = min(records)
            del records[first]
            lines[first] = f"{self._folder.model_path} is lost; one image is to be drawn again to restore it"
        return Collected(records=records, damages=lines)

    def drop(self, task_id: str) -> None:
        self._folder.drop_image(task_id)

    def keep(self, record: Record, shard: bytes) -> None:
        task = record.task
        assert isinstance(task, CalibrationTask)
        image = CalibrationShard.from_bytes(shard)
        _check_shard(self._run, image)
        _check_model(self._folder, record, decode_model_card(image.model_json.tobytes()))
        steps = self._run.settings.num_steps
        written = written_steps(self._run.samples, steps)
        kept = KeptFiles(written, shard=len(written) < steps)
        if kept.shard:
            write_atomically(self._folder.shard_path(task.id), shard)
        write_samples(self._folder, task, image, kept.steps)
        self._folder.images.seal(task, kept)
        # Of an image that is drawn again, or that the folder's choice was another for.
        self._folder.images.delete_others(task, kept)
        if image.preview_png.size:
            write_atomically(self._folder.preview_path(task.image_index), image.preview_png.tobytes())
        self._folder.records.write(record)
        self._folder.images.wrote()

    def summarize(self, records: dict[str, Record]) -> None:
        """Write the manifest of all intact images, if it has changed."""
        # Also if the last image is gone: a manifest must not list missing images.
        if records or self._folder.manifest_path.exists():
            self._folder.manifest.update(self._run, records, partial(_sigmas, self._folder))


def _check_shard(run: RunFile, shard: CalibrationShard) -> None:
    steps, (height, width) = run.settings.num_steps, run.settings.latent_size
    if len(shard.timestep) != steps or shard.x.shape[1:3] != (height, width):
        raise ShardCorruptError(f"latents {shard.x.shape} are not those of {steps} steps of {height}x{width}")
    # There is no preview if the worker's VAE failed.
    if shard.preview_png.size and not shard.preview_png.tobytes().startswith(b"\x89PNG"):
        raise ShardCorruptError("its preview is no PNG")


def _check_model(folder: CalibFolder, record: Record, card: ModelCard) -> None:
    known = folder.read_model()
    if card.fingerprint != record.fingerprint:
        raise ShardCorruptError("its model card is not that of its record")
    # Without a card, other images say which model it is.
    others = [known.fingerprint] if known else [other.fingerprint for other in folder.records.read().values()]
    if others and others[0] != card.fingerprint:
        raise RunMismatchError(
            f"{record.host} has other model files (fingerprint {card.fingerprint[:12]}, the run's is "
            f"{others[0][:12]}); give that machine the same checkpoint"
        )
    if known is None or (card.has_places and not known.has_places):
        # In the second case, the first one came from an older revision.
        folder.write_model(card)
    if known is None:
        return
    for part in known.parts.keys() & card.parts.keys():
        if known.parts[part] != card.parts[part]:
            raise RunMismatchError(
                f"{record.host} has other files of the {part} (fingerprint {card.parts[part][:12]}, "
                f"the run's is {known.parts[part][:12]}); delete them from that machine's Hugging Face cache"
            )


def _sigmas(folder: CalibFolder, task: CalibrationTask) -> list[float]:
    """Return the noise levels in an image's samples, and a final 0, with which all schedules end."""
    from shared.layout.sample_file import SampleFile
    from shared.layout.shard_file import ShardFile

    if folder.images.kept(task).shard:
        with ShardFile(folder.shard_path(task.id)) as shard:
            return [*map(float, shard.latents.sigma), 0.0]

    sigmas = []
    for path in folder.sample_paths(task):
        with SampleFile(path) as sample:
            sigmas.append(float(sample.load_latent().sigma))
    return [*sigmas, 0.0]

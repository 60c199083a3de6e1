"""Collecting images: a shard becomes the per-step samples of the calibration layout, and a preview."""

from collections.abc import Callable

import numpy as np

from producer.folder.calib_folder import CalibFolder, RunFile
from producer.folder.collected_images import collected_images, sample_paths
from producer.folder.intake import Intake, take_in
from producer.folder.manifest import write_manifest
from producer.folder.sample_seals import write_seals
from shared.errors import RunMismatchError, ShardCorruptError
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.kinds.kind import Task
from shared.layout import npz
from shared.layout.npz import Array
from shared.layout.sample_file import SampleFile
from shared.model_card import ModelCard, decode_model_card, encode_model_card
from shared.stores.records import Record
from shared.stores.store import ShardStore


def collect_calibration(
    folder: CalibFolder,
    run: RunFile,
    store: ShardStore,
    told: Callable[[Task], None] = lambda task: None,
) -> Intake:
    """Take finished images out of the store; leave a manifest of all that are there whole.

    An image whose samples are not as they were collected is not done any more.
    """
    records, damages = collected_images(folder, run, renew=True)
    for task_id in damages:
        folder.drop_record(task_id)

    def keep(record: Record, data: bytes) -> None:
        _keep_image(folder, run, record, CalibrationShard.from_bytes(data))

    intake = take_in(run.tasks(), records, store, keep, told)
    intake.problems[:0] = [f"{damage}; the image is to be drawn again" for damage in damages.values()]
    # Also when the last image is gone: a manifest lists nothing that is not there.
    if records or folder.manifest_path.exists():
        write_manifest(folder, run, records, _sigmas(folder, records))
    return intake


def _keep_image(folder: CalibFolder, run: RunFile, record: Record, shard: CalibrationShard) -> None:
    task = record.task
    assert isinstance(task, CalibrationTask)
    _check_shard(run, shard)
    _check_model(folder, record, decode_model_card(shard.model_json.tobytes()))
    paths = sample_paths(folder, task)
    for step, path in enumerate(paths):
        write_atomically(path, npz.pack(_sample(shard, step)))
    write_seals(folder.seal_path(task.id), paths)
    if shard.preview_png.size:
        write_atomically(folder.preview_path(task.image_index), shard.preview_png.tobytes())
    folder.write_record(record)


def _sample(shard: CalibrationShard, step: int) -> dict[str, Array]:
    return {
        "x": shard.x[step : step + 1],
        "timestep": np.asarray(shard.timestep[step], dtype=np.float32),
        "sigma": np.asarray(shard.sigma[step], dtype=np.float32),
        "conditioning": shard.conditioning,
        "pooled_conditioning": shard.pooled_conditioning,
        "step_index": np.asarray(step, dtype=np.int64),
    }


def _check_shard(run: RunFile, shard: CalibrationShard) -> None:
    steps, (height, width) = run.settings.num_steps, run.settings.latent_size
    if len(shard.timestep) != steps or shard.x.shape[1:3] != (height, width):
        raise ShardCorruptError(f"latents {shard.x.shape} are not those of {steps} steps of {height}x{width}")
    # A worker whose VAE failed sends none.
    if shard.preview_png.size and not shard.preview_png.tobytes().startswith(b"\x89PNG"):
        raise ShardCorruptError("its preview is no PNG")


def _check_model(folder: CalibFolder, record: Record, card: ModelCard) -> None:
    known = folder.read_model()
    if card.fingerprint != record.fingerprint:
        raise ShardCorruptError("its model card is not that of its record")
    if known is None:
        write_atomically(folder.model_path, encode_model_card(card))
        return
    if known.fingerprint != card.fingerprint:
        raise RunMismatchError(
            f"{record.host} has other model files (fingerprint {card.fingerprint[:12]}, the run's is "
            f"{known.fingerprint[:12]}); give that machine the same checkpoint"
        )
    for part in known.parts.keys() & card.parts.keys():
        if known.parts[part] != card.parts[part]:
            raise RunMismatchError(
                f"{record.host} has other files of the {part} (fingerprint {card.parts[part][:12]}, "
                f"the run's is {known.parts[part][:12]}); delete them from that machine's Hugging Face cache"
            )


def _sigmas(folder: CalibFolder, records: dict[str, Record]) -> list[float]:
    """The schedule, as an image's samples have it; DiffusionKit's all end at 0."""
    if not records:
        return []
    first = records[min(records)].task
    assert isinstance(first, CalibrationTask)
    sigmas = []
    for path in sample_paths(folder, first):
        with SampleFile(path) as sample:
            sigmas.append(float(sample.load(first.image_index, sample.step_index).sigma))
    return [*sigmas, 0.0]

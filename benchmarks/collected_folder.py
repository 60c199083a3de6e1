"""A calibration folder of any size, as if it had been collected: most files are hard links."""

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np

from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.sample_seals import SampleSeal
from producer.folder.tasks import calibration_tasks
from shared.layout import npz
from shared.layout.npz import Array
from shared.model_card import LayerInfo, ModelCard
from shared.runs import RunSettings
from shared.stores.records import Record, encode_record

CARD = ModelCard(
    model="argmaxinc/mlx-stable-diffusion-3-medium",
    fingerprint="f" * 64,
    parameters=2_000_000_000,
    layers=tuple(LayerInfo(path=f"blocks.{index}.fc", shape=(1536, 1536)) for index in range(340)),
)


def make_collected_folder(
    root: Path, *, images: int, missing: int, num_steps: int, latent: int, text_width: int, store_id: str
) -> CalibFolder:
    """Return a folder that wants `images` images and has all but the last `missing` of them.

    Args:
        root: where to make it.
        images: how many are wanted.
        missing: how many of them are not there.
        num_steps: steps of an image.
        latent: height and width of a latent; its 16 channels are noise in float16.
        text_width: width of the conditioning, of which 77 of 154 rows and half of the columns are not 0, as
            without T5.
        store_id: that of the run's store.
    """
    folder = CalibFolder(root)
    settings = RunSettings(
        model=CARD.model,
        num_steps=num_steps,
        cfg_weight=7.5,
        image_size=max(16, 8 * latent),
        seed=0,
        shift=3.0,
        use_t5=False,
        precision="float16",
        prompts_sha256="a" * 64,
        reference="published",
    )
    prompts = tuple(f"prompt {index}" for index in range(images))
    run = RunFile(settings=settings, prompts=prompts, store_id=store_id, store=None)
    folder.write_run(run)
    folder.write_model(CARD)
    folder.samples_dir.mkdir()
    originals = _originals(root / "originals", num_steps, latent, text_width)
    for task in calibration_tasks(run)[: images - missing]:
        seals = []
        for step, (original, digest) in enumerate(originals):
            name = folder.sample_name(task.image_index, step)
            os.link(original, root / name)
            status = original.stat()
            seals.append(
                SampleSeal(
                    name=Path(name).name,
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    sha256=digest,
                )
            )
        folder.seal_path(task.id).write_bytes(msgspec.json.encode(tuple(seals)))
        record = Record(
            task=task,
            sha256="0" * 64,
            size=1,
            fingerprint=CARD.fingerprint,
            versions={"mlx": "0.32.4"},
            host="studio",
            worker="studio-1",
            seconds=60.0,
            finished_at="2026-01-02T03:04:05Z",
        )
        (folder.records.root / f"{record.id}.json").write_bytes(encode_record(record))
    return folder


def _originals(root: Path, num_steps: int, latent: int, text_width: int) -> list[tuple[Path, str]]:
    """One sample for each step, with its sha256."""
    root.mkdir()
    rng = np.random.default_rng(0)
    conditioning = np.zeros((2, 154, text_width), dtype=np.float16)
    conditioning[:, :77, : text_width // 2] = rng.normal(size=(2, 77, text_width // 2))
    pooled = rng.normal(size=(2, 2048)).astype(np.float16)
    originals = []
    for step in range(num_steps):
        arrays: dict[str, Array] = {
            "x": rng.normal(size=(1, latent, latent, 16)).astype(np.float16),
            "timestep": np.asarray(1000 * (1 - step / num_steps), dtype=np.float32),
            "sigma": np.asarray(1 - step / num_steps, dtype=np.float32),
            "conditioning": conditioning,
            "pooled_conditioning": pooled,
            "step_index": np.asarray(step, dtype=np.int64),
        }
        path = root / f"{step}.npz"
        path.write_bytes(npz.pack(arrays))
        originals.append((path, hashlib.sha256(path.read_bytes()).hexdigest()))
    return originals

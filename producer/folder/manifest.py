"""manifest.json: the list of what has been collected, for notebooks and other programs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from producer.folder.collected_images import CollectedImages, KeptFiles
from producer.folder.image_files import ImageFiles
from producer.folder.json_file import Stamp, stamp_of
from producer.folder.run_file import RunFile
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record

ReadSigmas = Callable[[CalibrationTask], list[float]]

_NOTE = "not every step has a sample file; `producer samples` writes the others out of the images' shards"


class Manifest:
    """Writes the manifest from the records.

    A record is written after the files of its image, so the manifest never lists an incomplete image. The
    file is written in pieces, because a run of 10,000 images with 50 steps has half a million samples.
    """

    def __init__(self, path: Path, files: ImageFiles, images: CollectedImages) -> None:
        self._path, self._files, self._images = path, files, images
        self._written: tuple[tuple[str, ...], int, Stamp | None, Stamp | None] | None = None

    def update(self, run: RunFile, records: dict[str, Record], read_sigmas: ReadSigmas) -> None:
        """Write the manifest of the collected images, in the layout's order, if it would change."""
        state = tuple(records), len(run.prompts), stamp_of(self._files.seals_dir), stamp_of(self._path)
        if state == self._written:
            return
        if not self._is(self._chunks(run, records, read_sigmas)):
            write_atomically(self._path, self._chunks(run, records, read_sigmas))
        self._written = *state[:3], stamp_of(self._path)

    def _is(self, chunks: Iterator[bytes]) -> bool:
        """Return whether the file already has this content."""
        try:
            with self._path.open("rb") as file:
                return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)
        except FileNotFoundError:
            return False

    def _chunks(self, run: RunFile, records: dict[str, Record], read_sigmas: ReadSigmas) -> Iterator[bytes]:
        tasks = [record.task for record in records.values() if isinstance(record.task, CalibrationTask)]
        tasks.sort(key=lambda task: task.image_index)
        steps = run.settings.num_steps
        yield f'{{\n  "n_completed": {len(tasks)},\n  "num_steps": {steps},\n  "sample_files": ['.encode()
        kept = [self._images.kept(task) for task in tasks]
        first = True
        for task, has in zip(tasks, kept, strict=True):
            names = [self._files.sample_name(task.image_index, step) for step in has.steps]
            if names:
                text = ",".join(f'\n    "{name}"' for name in names)
                yield f"{'' if first else ','}{text}".encode()
                first = False
        rest = {
            **({"note": _NOTE} if any(len(has.steps) < steps for has in kept) else {}),
            "run_id": run.settings.id,
            "settings": run.settings,
            "sigmas": read_sigmas(tasks[0]) if tasks else [],
            "images": [self._image(task, has) for task, has in zip(tasks, kept, strict=True)],
            "fingerprint": next((record.fingerprint for record in records.values()), None),
        }
        yield b"\n  ],\n"
        yield msgspec.json.format(msgspec.json.encode(rest), indent=2).removeprefix(b"{\n") + b"\n"

    def _image(self, task: CalibrationTask, has: KeptFiles) -> dict[str, object]:
        about: dict[str, object] = {
            "image_index": task.image_index,
            "prompt": task.prompt,
            "seed": task.seed,
        }
        if has.shard:
            about["shard"] = self._files.shard_path(task.id).relative_to(self._files.root).as_posix()
        return about

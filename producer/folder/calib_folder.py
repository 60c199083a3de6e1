"""The paths of a calibration folder. Only the producer writes here.

run.json                            the run, and which images are wanted
cancelled.json                      which tasks are not wanted any more
manifest.json, samples/, previews/  what has been collected, in the calibration layout
shards/                             the shards of images that not every step has a sample file of
model.json                          the model card of the first worker
records/                            a record and a seal for each collected image, and a copy of model.json
.bitfleet/                          the folder's lock, and the data of our own Redis
sample_sets/                        what sensitivity runs measure on, as blobs for the workers
report.html                         all results, written anew by each collector
sensitivity/<id>/                   request.json, shards/, records/, results.*
weights/<id>/, levels/<id>/         request.json, shards/, records/: what plans are made of
plans/<id>/                         plan.json
confirms/<id>/                      request.json, variants.json, shards/, records/, prediction.json
verification/<id>/                  request.json, variants.json, plan.json, shards/, records/,
                                    verification.json, winner.json
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from producer.folder.cancelled_tasks import CancelledTasks
from producer.folder.collected_images import CollectedImages
from producer.folder.folder_lock import FolderLock
from producer.folder.image_files import ImageFiles
from producer.folder.json_file import JsonFile, Stamp, stamp_of
from producer.folder.kept_folder import ConfirmRequest, KeptFolders, LevelsRequest, WeightsRequest
from producer.folder.manifest import Manifest
from producer.folder.record_folder import RecordFolder
from producer.folder.request_file import RequestFile
from producer.folder.run_file import RunFile, difference
from producer.folder.sample_sets import SampleSets
from producer.folder.shard_folder import ShardFolder
from producer.folder.verification_request import VerificationRequest
from shared.errors import InputError, ShardCorruptError
from shared.files import delete_temporaries, write_atomically
from shared.model_card import ModelCard, decode_model_card, encode_model_card


class CalibFolder(ImageFiles):
    """The paths of a calibration folder. It also reads and writes all files but the samples."""

    def __init__(self, root: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        """`tell` is called with a line about what this process waits for, or gives up on its own account."""
        super().__init__(root)
        self.tell = tell
        self.run_path = root / "run.json"
        self.model_path = root / "model.json"
        self.model_copy_path = root / "records" / "model.card"
        self.manifest_path = root / "manifest.json"
        self.report_path = root / "report.html"
        self.state_dir = root / ".bitfleet"
        self.lock = FolderLock(self.state_dir, tell)
        self.records = RecordFolder(root / "records")
        """Records of the collected images."""
        self.images = CollectedImages(self, self.records, tell)
        self.cancelled = CancelledTasks(root / "cancelled.json")
        self.weights = KeptFolders(root / "weights", WeightsRequest)
        self.levels = KeptFolders(root / "levels", LevelsRequest)
        self.confirms = KeptFolders(root / "confirms", ConfirmRequest)
        self.verifications = KeptFolders(root / "verification", VerificationRequest)
        self.sample_sets = SampleSets(root / "sample_sets")
        self.manifest = Manifest(self.manifest_path, self, self.images)
        self._model: tuple[Stamp, ModelCard] | None = None
        self._run = JsonFile(self.run_path, RunFile)
        self._sensitivities: dict[str, SensitivityFolder] = {}
        self._swept = False

    def check_writable(self) -> None:
        """Create the folder if it is missing, and check that it can be written.

        Raises:
            InputError: it can't be created or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"{self.root} can't be written: {error.strerror}; nothing that was finished is lost: mend "
                "that, or name another folder with --calib-dir"
            ) from None

    @contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Be the only process that writes here; wait for another one, and tell who that is.

        The first time, temporary files that a killed process left behind are deleted.

        Args:
            command: the command of this process, for the messages of others.
        """
        with self.lock.hold(command):
            if not self._swept:
                delete_temporaries(self.root, leave=self.state_dir)
                self._swept = True
            yield

    def plan_path(self, plan_id: str) -> Path:
        """Return the path of a plan."""
        return self.root / "plans" / plan_id / "plan.json"

    def sensitivity(self, sensitivity_id: str) -> "SensitivityFolder":
        """Return the folder of a sensitivity run."""
        if sensitivity_id not in self._sensitivities:
            root = self.root / "sensitivity" / sensitivity_id
            self._sensitivities[sensitivity_id] = SensitivityFolder(root)
        return self._sensitivities[sensitivity_id]

    def sensitivities(self) -> list["SensitivityFolder"]:
        """Return the folders of all sensitivity runs, sorted by id."""
        # Also those whose request is lost: what was collected for it must not be forgotten in silence.
        found = {path.parent.name for name in ("request.json", "records") for path in self._within(name)}
        return [self.sensitivity(name) for name in sorted(found)]

    def readable_requests(self) -> "Iterator[tuple[SensitivityFolder, RequestFile]]":
        """Yield all requests that can be read. The others are told of by producer.kinds.sensitivity."""
        for subfolder in self.sensitivities():
            with suppress(InputError):
                yield subfolder, subfolder.require_request()

    def _within(self, name: str) -> Iterator[Path]:
        return self.root.glob(f"sensitivity/*/{name}")

    def read_run(self) -> RunFile | None:
        """Return the run file; None if there is none.

        Raises:
            InputError: run.json is damaged.
        """
        return self._run.read()

    def require_run(self) -> RunFile:
        """Return the run file.

        Raises:
            InputError: there is none.
        """
        run = self.read_run()
        if run is None:
            raise InputError(f"{self.root} holds no run; start one with `producer enqueue-calibration`")
        return run

    def write_run(self, run: RunFile) -> None:
        """Write the run file, after `check_run`.

        Raises:
            InputError: as there.
        """
        self.check_run(run)
        if self.read_run() != run:
            self._run.write(run)

    def check_run(self, run: RunFile) -> None:
        """Check whether a run can be this folder's.

        Raises:
            InputError: the folder holds images or levels of another run, or samples without a run file.
        """
        old = self.read_run()
        held = (path for place in (self.samples_dir, self.shards_dir) for path in place.glob("*.npz"))
        if old is None and (self.manifest_path.exists() or any(held)):
            raise InputError(
                f"{self.root} holds samples that no run.json explains; use another --calib-dir, or move them"
            )
        # Levels need no image to be collected first.
        begun = bool(self.records.read() or self.weights.all() or self.levels.all())
        if old and old.settings != run.settings and begun:
            raise InputError(
                f"{self.root} holds run {old.settings.id}, which differs in {difference(old, run)}; "
                "use another --calib-dir for these settings"
            )
        if old and old.settings == run.settings and old.store_id != run.store_id:
            raise InputError(
                f"run {old.settings.id} was enqueued with {old.store or 'the Redis relay'} as its store; "
                "give the same --store"
            )

    def require_model(self) -> ModelCard:
        """Return the model card.

        Raises:
            InputError: no image has been collected yet.
        """
        card = self.read_model()
        if card is None:
            raise InputError(
                f"{self.root} holds no model.json yet, which comes with the first image; run `producer "
                "enqueue-calibration` if need be, then `producer collect --wait`"
            )
        return card

    def read_model(self) -> ModelCard | None:
        """Return the model card; None before the first image is collected."""
        stamp = stamp_of(self.model_path)
        if stamp is None:
            return None
        if self._model is None or self._model[0] != stamp:
            try:
                self._model = stamp, decode_model_card(self.model_path.read_bytes())
            except ShardCorruptError as error:
                message = f"{self.model_path}: {error}; run `producer collect`, which restores it"
                raise InputError(message) from None
        return self._model[1]

    def write_model(self, card: ModelCard) -> None:
        """Write the model card, and a copy from which it can be restored."""
        for path in (self.model_copy_path, self.model_path):
            write_atomically(path, encode_model_card(card))

    def restore_model(self, *, write: bool) -> bool:
        """Return whether there is a model card or a copy of it. With `write`, restore the one from the other.

        A card that is damaged, with no copy, is deleted.
        """
        card = None
        with suppress(InputError):
            card = self.read_model()
        if card is not None and self.model_copy_path.exists():
            return True
        if card is None:
            with suppress(OSError, ShardCorruptError):
                card = decode_model_card(self.model_copy_path.read_bytes())
        if card is not None and write:
            self.write_model(card)
        elif write:
            self.model_path.unlink(missing_ok=True)
        return card is not None

    def drop_image(self, task_id: str) -> None:
        """Forget that an image was collected."""
        self.records.drop(task_id)
        self.seal_path(task_id).unlink(missing_ok=True)


class SensitivityFolder(ShardFolder):
    """The paths of a sensitivity run's folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.old_samples_path = root / "samples.npz"
        """The sample set, as older revisions wrote it; see producer.folder.sample_sets."""
        self.results_path = root / "results.json"
        self.csv_path = root / "results.csv"
        self._request = JsonFile(self.request_path, RequestFile)

    def read_request(self) -> RequestFile | None:
        """Return the request; None if there is none."""
        return self._request.read()

    def require_request(self) -> RequestFile:
        """Return the request.

        Raises:
            InputError: there is none.
        """
        request = self.read_request()
        if request is None:
            raise InputError(f"{self.request_path} is missing; run `producer enqueue-sensitivity` again")
        return request

    def write_request(self, request: RequestFile) -> None:
        """Write the request, in place of an older one."""
        self._request.write(request)

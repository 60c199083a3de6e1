"""A calibration folder with the commands of the producer, and a worker that leaves what a test wants."""

from pathlib import Path
from typing import Any

from click.testing import CliRunner
from redis import Redis

from producer.cli import main
from producer.folder.calib_folder import CalibFolder, SensitivityFolder
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks, exact_tasks
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of


class Folder:
    """A calibration folder, a relay, and the commands."""

    def __init__(self, root: Path, redis: Redis, redis_url: str, images: int) -> None:
        self.folder, self.store = CalibFolder(root), RelayStore(redis)
        self.queue = TaskQueue(queue_name("relay"), redis)
        self.redis_url = redis_url
        prompts = tuple(f"prompt {index}" for index in range(images))
        self.run_file = RunFile(settings=SETTINGS, prompts=prompts, store_id="relay", store=None)
        self.folder.write_run(self.run_file)
        self.images = calibration_tasks(self.run_file)

    def arguments(self, *arguments: str) -> list[str]:
        return [*arguments, "--calib-dir", str(self.folder.root), "--redis-url", self.redis_url]

    def call(self, *arguments: str) -> Any:
        return CliRunner().invoke(main, self.arguments(*arguments))

    def call_offline(self, *arguments: str) -> Any:
        return CliRunner().invoke(main, [*arguments, "--calib-dir", str(self.folder.root)])

    def leave(self, task: Task, data: bytes, **changes: Any) -> None:
        assert self.store.put(record_of(task, data, **changes), data) == "stored"

    def leave_images(self) -> None:
        for task in self.images:
            self.leave(task, calibration_shard(task.image_index).to_bytes())

    def work_badly(self) -> int:
        """Do all queued images as a broken machine would; return how many there were."""
        tasks = {task.id: task for task in self.images}
        queued = self.queue.in_flight().queued
        for task_id in queued:
            self.leave(tasks[task_id], b"broken", host="air")
        self.queue.withdraw(queued)
        return len(queued)

    @property
    def pairs(self) -> list[Any]:
        (place,) = self.folder.sensitivities()
        return self.pairs_of(place)

    def pairs_of(self, place: SensitivityFolder) -> list[Any]:
        return exact_tasks(place.require_request(), self.run_file)

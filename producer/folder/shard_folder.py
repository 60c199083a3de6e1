"""A folder that keeps the shards of one request unchanged, with their records."""

from pathlib import Path

from producer.folder.json_file import Stamp
from producer.folder.record_folder import RecordFolder


class ShardFolder:
    """The paths of one request's folder: request.json, shards/, records/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.request_path = root / "request.json"
        self.records = RecordFolder(root / "records")
        """Records of the collected shards."""
        self.hashed: dict[str, Stamp] = {}
        """By task id, the stamp of its shard's file when its sha256 was last checked."""

    def shard_path(self, task_id: str) -> Path:
        """Return the path of a task's shard."""
        return self.root / "shards" / f"{task_id}.npz"

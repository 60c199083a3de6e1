"""A part: all tasks of one kind that one request asks for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from producer.folder.record_folder import RecordFolder
from shared.kinds.kind import Task
from shared.stores.records import Record
from shared.stores.store import ShardStore


@dataclass(slots=True, kw_only=True)
class Collected:
    """What has been collected of a part."""

    records: dict[str, Record] = field(default_factory=dict)
    """Records of intact shards, by task id."""
    damages: dict[str, str] = field(default_factory=dict)
    """By task id, one line about a collected shard that is damaged."""


class Part(ABC):
    """What the collector needs to know about a kind. A part reads everything from the folder.

    What makes results is imported by the methods that make them: all commands count tasks, few need numpy.
    """

    trouble: str | None = None
    """Why nothing can be done for this part."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A name for messages: the kind and the id of the request."""

    @property
    def records(self) -> RecordFolder | None:
        """Where the records of collected tasks are, maybe with those of another part; None if nowhere."""
        return None

    def glance(self) -> frozenset[str]:
        """Return the ids of collected tasks, and maybe of others, without a look at any file's content."""
        return frozenset(self.collected().records if self.records is None else self.records.ids())

    @abstractmethod
    def tasks(self) -> Sequence[Task]:
        """Return all wanted tasks, in the order in which they should run. All have one namespace."""

    @abstractmethod
    def collected(self, *, closely: bool = False) -> Collected:
        """Return what has been collected.

        With `closely`, contents are checked too, and seals may be renewed. Otherwise nothing is written.
        """

    @abstractmethod
    def drop(self, task_id: str) -> None:
        """Forget what was collected of a task."""

    @abstractmethod
    def keep(self, record: Record, shard: bytes) -> None:
        """Check a shard and save it, its record last.

        Raises:
            ShardCorruptError: the shard is damaged.
            RunMismatchError: it was made with other settings or another model.
        """

    def supply(self, store: ShardStore) -> None:
        """Put into the store what workers need for the remaining tasks."""

    def clear_away(self, store: ShardStore) -> None:
        """Delete from the store what was only needed for this part, once all of it is collected."""

    def summarize(self, records: dict[str, Record]) -> None:
        """Update the folder's summary of what was collected. Called after each pass."""

    def ask_for_more(self, records: dict[str, Record]) -> bool:
        """Write into the folder the tasks that follow from collected ones; return whether there are any."""
        return False

    def conclusion(self) -> str | None:
        """Return in one line what the written results come to; None if there is nothing to say."""
        return None

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write the results of everything collected; return their path, or None if there are none.

        `reasons` says, by task id, why a task is missing.
        """
        return None


class BrokenPart(Part):
    """A part whose request can't be read. It is never complete, and stops no other part."""

    def __init__(self, title: str, trouble: str) -> None:
        self._title, self.trouble = title, trouble

    @property
    def title(self) -> str:
        return self._title

    def tasks(self) -> Sequence[Task]:
        return []

    def collected(self, *, closely: bool = False) -> Collected:
        return Collected()

    def drop(self, task_id: str) -> None:
        """Nothing was collected."""

    def keep(self, record: Record, shard: bytes) -> None:
        """Nothing is asked for."""

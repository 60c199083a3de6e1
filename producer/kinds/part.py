"""A part of a folder's work: all tasks of one kind that one request asks for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.kinds.kind import Task
from shared.stores.records import Record
from shared.stores.store import ShardStore


@dataclass(slots=True, kw_only=True)
class Collected:
    """What a part has in its folder."""

    records: dict[str, Record] = field(default_factory=dict)
    """By task id, of what is there whole."""
    damages: dict[str, str] = field(default_factory=dict)
    """Task id to what is wrong with what once was collected of it, in one line."""


class Part(ABC):
    """What a collector needs to know of a kind. All that a part is about stands in the folder."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For people: the kind, and which request it is."""

    @abstractmethod
    def tasks(self) -> Sequence[Task]:
        """All that are wanted, in the order in which they should be done; one namespace of the store."""

    @abstractmethod
    def collected(self, *, closely: bool = False) -> Collected:
        """Return what is there.

        `closely` compares contents, too, and may renew what was noted of them; without it nothing is written.
        """

    @abstractmethod
    def drop(self, task_id: str) -> None:
        """What was collected of this task does not count any more."""

    @abstractmethod
    def keep(self, record: Record, shard: bytes) -> None:
        """Check a shard against what was asked for and keep it, its record last.

        Raises:
            ShardCorruptError: the shard is not what its kind should be.
            RunMismatchError: it was made with other settings or another model.
        """

    def supply(self, store: ShardStore) -> None:
        """Put into the store what workers need for tasks that are still to be done."""

    def clear_away(self, store: ShardStore) -> None:
        """Take out of the store what no task of the part needs any more, now that all are collected."""

    def summarize(self, records: dict[str, Record]) -> None:
        """Bring up to date, after each pass, what the folder says about all that was collected."""

    def ask_for_more(self, records: dict[str, Record]) -> bool:
        """Whether what was collected leads to further tasks, which now stand in the folder."""
        return False

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write what is made of all that is there, and return the file to read first; None if nothing is.

        `reasons` says, by task id, why something is not there.
        """
        return None

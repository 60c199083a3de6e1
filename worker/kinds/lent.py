"""What the worker lends to a task while it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from shared.layout.sample_set import SampleSet
from shared.runs import RunSettings, SensitivitySettings

if TYPE_CHECKING:
    from worker.families.family import Family

T = TypeVar("T")


class SampledTask(Protocol):
    """A task that measures on the samples of a sensitivity run."""

    @property
    def run(self) -> RunSettings:
        """Settings of the run that made the samples."""

    @property
    def sensitivity(self) -> SensitivitySettings:
        """What is measured, and on which samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """The model that a task needs, and what the worker keeps between tasks."""

    family: "Family"
    """Holds at least the transformer."""
    check: Callable[[str], None]
    """Told the progress; may raise to stop."""
    samples: Callable[[SensitivitySettings], SampleSet]
    """Fetches a sample set."""
    blob: Callable[[str], bytes]
    """Fetches data that the producer put into the store, by its sha256."""
    memory_share: int
    """Bytes that this worker may take, weights included."""
    engine_slot: "EngineSlot"
    task_folder: Path | None = None
    """The task's own, for what it goes on from when it is taken up again; removed once it is done.

    None: nothing is kept."""

    def engine(self, key: str, engine: Callable[..., T], task: SampledTask, **options: object) -> T:
        """Return the engine at hand, or a new one for the model and the task's samples.

        Args:
            key: what the engine is for: its kind, the sensitivity run, and whatever else decides about it.
            engine: its class.
            task: of a sensitivity run.
            options: of this class alone.
        """

        def new() -> T:
            return engine(
                self.family,
                self.samples(task.sensitivity),
                cfg_weight=task.run.cfg_weight,
                group_size=task.sensitivity.group_size,
                memory_limit=self.memory_share,
                **options,
            )

        return self.engine_slot.get(key, new)


class EngineSlot:
    """Holds the current engine. An engine fills the memory it is given, so there is only one at a time."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._engine: object = None

    def get(self, key: str, new: Callable[[], T]) -> T:
        """Return the engine of this key, or make a new one. A key begins with the kind, so that all
        engines of one key have the same class.
        """
        if self._key != key:
            self.clear()
            self._engine = new()
            self._key = key
        engine: T = self._engine  # type: ignore[assignment]
        return engine

    def clear(self) -> None:
        """Give the engine's memory back."""
        self._key = self._engine = None

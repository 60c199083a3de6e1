"""Count the shards that are dropped, so that a broken machine can't make bad ones for ever."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from producer.folder.intake import Dropped

MAX_DROPS = 50
"""After so many in one command, no task whose shard is dropped is enqueued again."""
MAX_DROPS_OF_A_TASK = 4


@dataclass(slots=True)
class Drops:
    """The shards that one command has dropped."""

    given_up: dict[str, str] = field(default_factory=dict)
    """By task id, why this command does not enqueue the task any more."""
    _by_task: Counter[str] = field(default_factory=Counter)
    _by_cause: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By host and cause."""
    _last: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, dropped: Iterable[Dropped]) -> None:
        """Count dropped shards, and give up their tasks once there are too many."""
        for drop in dropped:
            key = drop.host, drop.cause
            self._by_cause[key] += 1
            self._by_task[drop.task_id] += 1
            self._last[key] = drop.line
            times = self._by_task[drop.task_id]
            if self._by_cause.total() > MAX_DROPS or times >= MAX_DROPS_OF_A_TASK:
                self.given_up[drop.task_id] = (
                    f"its shard was {drop.cause} {times} times, last from {drop.host or 'an unknown host'}"
                )

    def summary(self) -> list[str]:
        """Return one line for each host and cause, if tasks were given up."""
        if not self.given_up:
            return []
        return [
            f"{count} shards from {host or 'an unknown host'} were dropped, {cause}; the last one: "
            f"{self._last[host, cause]}"
            for (host, cause), count in self._by_cause.most_common()
        ] + [
            f"{len(self.given_up)} tasks are not enqueued again by this command: mend or stop the machines "
            "named above, then collect again"
        ]

"""How fast tasks of one kind are done by those who are there, and how long the rest takes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from shared.stores.records import Record


def seconds_by_host(records: Iterable[Record]) -> dict[str, float]:
    """Return the mean seconds a task, by host."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if 0 < record.seconds < float("inf"):
            found[record.host].append(record.seconds)
    return {host: fmean(seconds) for host, seconds in sorted(found.items())}


def tasks_per_hour(seconds: Mapping[str, float], workers: Mapping[str, int]) -> float | None:
    """Return how many tasks an hour the workers do together; None if nothing is known of them.

    A host without a record yet is taken to be as fast as the mean of those that have some.

    Args:
        seconds: a task, by host, as `seconds_by_host` returns them.
        workers: number of connected workers, by host.
    """
    if not seconds or not any(workers.values()):
        return None
    usual = fmean(1 / each for each in seconds.values())
    return 3600 * sum(
        number * (1 / seconds[host] if host in seconds else usual) for host, number in workers.items()
    )


def seconds_left(left: Sequence[int], rates: Sequence[float | None]) -> list[float | None]:
    """Return after how many seconds each part is done.

    Parts with tasks left share the workers evenly, as workers take the next job of the run with the fewest
    of them. A part that alone would take t_i is then done after sum_j min(t_i, t_j): until its end, each
    other part has had as much of the workers as it needed, and no more than this one.

    Args:
        left: number of tasks that are queued or running, by part.
        rates: tasks an hour if all workers did this part alone, by part; None if unknown.
    """
    alone = [
        None if rate is None and tasks else 3600 * tasks / (rate or 1)
        for tasks, rate in zip(left, rates, strict=True)
    ]
    known = [seconds for seconds in alone if seconds is not None]
    return [None if mine is None else sum(min(mine, other) for other in known) for mine in alone]

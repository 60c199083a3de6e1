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


def with_timed_hosts(
    seconds: Mapping[str, float], speeds: Mapping[str, float], flops: float | None
) -> dict[str, float]:
    """Return the seconds a task, also of hosts that have finished none but have timed a forward pass.

    What a task takes on a host of some speed is learnt from the hosts of which both are known. While there is
    none, it is what the task's passes come to.

    Args:
        seconds: a task, by host, of those that have finished some.
        speeds: floating point operations a second of a timed pass, by host.
        flops: floating point operations of a task's forward passes; None if that is not known beforehand.
    """
    learnt = [each * speeds[host] for host, each in seconds.items() if host in speeds]
    work = fmean(learnt) if learnt else flops
    if not work:
        return dict(seconds)
    return {host: work / speed for host, speed in speeds.items()} | dict(seconds)


def tasks_per_hour(seconds: Mapping[str, float], workers: Mapping[str, int]) -> float | None:
    """Return how many tasks an hour the workers do together; None if nothing is known of them.

    A host of which nothing is known is taken to be as fast as the mean of the others.

    Args:
        seconds: a task, by host, as `with_timed_hosts` returns them.
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

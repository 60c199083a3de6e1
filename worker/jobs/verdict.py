"""What follows from all endings of a job so far: another try, when and where, or none.

| ending      | seen by                                             | counts as | tries, at least |
|-------------|-----------------------------------------------------|-----------|-----------------|
| failed      | the worker: an exception                            | 1         | 4               |
| crashed     | its supervisor: abort, segmentation fault, an exit  | 1         | 4               |
| timed out   | its supervisor: over the job's time limit           | 2         | 2               |
| killed      | its supervisor: SIGKILL, most often from outside    | 1/2       | 8               |
| silent      | another worker: a lease ran out                     | 0         | 20              |
| handed back | anybody: a signal, a store or Redis in trouble      | 0         | no limit        |

Twice as many tries are made while only one host has seen the job fail and another one is connected: a task
is not to blame for what one machine does to it. A machine that fell silent slept, or lost its network; but a
task that freezes every machine must end, too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.jobs.history import Event
from shared.jobs.workers import Place

LIMIT = 4.0
LIMIT_ON_ONE_HOST = 8.0
MAX_SILENCES = 20
COST = {"failed": 1.0, "crashed": 1.0, "timed out": 2.0, "killed": 0.5}

FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 300.0
GROWTH = 3.0
PREFERENCE_SECONDS = 60.0
"""For so long after its wait a job is left to hosts that it did not fail on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be done with a job whose attempt ended."""

    give_up: bool = False
    wait_seconds: float = 0.0
    """Before the next try."""
    avoid: frozenset[str] = frozenset()
    """Hosts, or `worker start`s of one host, that leave the job to others for a while."""


def judge(events: Sequence[Event], able: Collection[Place]) -> Verdict:
    """Decide over a job.

    Args:
        events: its history, with the ending that is judged as the last.
        able: where workers are connected that have not set such tasks aside.
    """
    charged = [event for event in events if event.outcome in COST]
    silent = [event for event in events if event.outcome == "silent"]
    cost = sum(COST[event.outcome] for event in charged)
    limit = LIMIT_ON_ONE_HOST if _only_one_failed_it(_places(charged), set(able)) else LIMIT
    if cost >= limit or len(silent) >= MAX_SILENCES:
        return Verdict(give_up=True)
    # The first time that a machine fell silent or a process was killed, the job is innocent.
    last = events[-1].outcome
    past = len(silent) - 1 if last == "silent" else len(charged) - (last == "killed")
    return Verdict(
        wait_seconds=min(FIRST_WAIT_SECONDS * GROWTH ** (past - 1), LONGEST_WAIT_SECONDS) if past else 0.0,
        avoid=_to_avoid(_places([*charged, *silent]), set(able)),
    )


def _places(events: Sequence[Event]) -> set[Place]:
    return {Place(event.host, event.start) for event in events}


def _only_one_failed_it(places: set[Place], able: set[Place]) -> bool:
    hosts = {place.host for place in places}
    other_hosts = {place.host for place in able} - hosts
    return (len(hosts) == 1 and bool(other_hosts)) or (len(places) == 1 and bool(able - places))


def _to_avoid(troubled: set[Place], able: set[Place]) -> frozenset[str]:
    """Another machine is best, another `worker start` on the same one the next best."""
    hosts = frozenset(place.host for place in troubled)
    if {place.host for place in able} - hosts:
        return hosts
    if able - troubled:
        return frozenset(place.start_id for place in troubled)
    return frozenset()

"""A machine on which several different tasks of a kind failed in a row: it may be the machine."""

from shared.jobs.asides import ASIDE_SECONDS, kind_of_job

TASKS = 3
"""Different tasks of a kind that fail in a row, without one that is done."""
FIRST_PAUSE_SECONDS = 60.0


class FailureStreaks:
    """Counts them in one worker process, by kind."""

    def __init__(self) -> None:
        self._failed: dict[str, set[str]] = {}
        self._pauses: dict[str, float] = {}

    def done(self, job_id: str) -> None:
        """A task of this kind was done: this machine can."""
        self._failed.pop(kind_of_job(job_id), None)
        self._pauses.pop(kind_of_job(job_id), None)

    def failed(self, job_id: str) -> float | None:
        """Return for how many seconds to leave tasks of this kind to others; None while it is not yet so.

        After such a pause the next failure begins another, twice as long.
        """
        kind = kind_of_job(job_id)
        failed = self._failed.setdefault(kind, set())
        failed.add(job_id)
        if len(failed) < TASKS:
            return None
        pause = self._pauses.get(kind, FIRST_PAUSE_SECONDS)
        self._pauses[kind] = min(2 * pause, ASIDE_SECONDS)
        return pause

"""Retry: failed and cancelled tasks are wanted again."""

from collections.abc import Sequence
from dataclasses import dataclass

from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.jobs.reconcile import reconcile
from producer.kinds.registry import parts_of
from producer.steering.cancel import state_of
from producer.steering.selection import select


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """How many tasks were enqueued again."""

    failed: int
    cancelled: int


def retry(folder: CalibFolder, fleet: Fleet, patterns: Sequence[str], *, cancelled: bool) -> Retried:
    """Enqueue the failed tasks again, and with `cancelled` the cancelled ones; see `select` for `patterns`.

    Their histories begin anew.

    Raises:
        InputError: a pattern fits nothing.
        StoreFullError: the store has no room for what the tasks need.
    """
    failed_again = cancelled_again = 0
    with folder.locked("retry"):
        unwanted = folder.cancelled.read() if cancelled else frozenset[str]()
        for each in select(list(parts_of(folder)), patterns):
            state = state_of(each, fleet)
            again = state.failed | unwanted
            tasks = [task for task in each.tasks if task.id in again]
            if not tasks:
                continue
            each.part.supply(fleet.store)
            folder.cancelled.remove(task.id for task in tasks)
            enqueued = reconcile(
                tasks,
                state.done,
                connection=fleet.connection,
                store=fleet.store,
                retry_failed=True,
                folder=folder.root,
            ).enqueued
            failed_again += len(state.failed.intersection(enqueued))
            cancelled_again += len(unwanted.intersection(enqueued))
    return Retried(failed=failed_again, cancelled=cancelled_again)

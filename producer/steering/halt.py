"""Pause, resume, drain: how many workers are at work, and where."""

import socket
from collections.abc import Iterator

from producer.fleet import Fleet
from shared.errors import InputError
from shared.jobs.history import utc_now
from shared.jobs.orders import DRAIN, PAUSE, Order, give_order, read_orders, take_back
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import WorkerInfo, live_workers
from shared.printable import printable


def pause(fleet: Fleet) -> bool:
    """Let no worker take another job; False if none may already."""
    return give_order(fleet.connection, queue_name(fleet.store.id), PAUSE, _order())


def resume(fleet: Fleet) -> bool:
    """Let workers take jobs again; False if they may already."""
    return take_back(fleet.connection, queue_name(fleet.store.id), PAUSE)


def drain(fleet: Fleet, host: str) -> bool:
    """Let a machine's workers leave after their jobs; False if they were told so before.

    Raises:
        InputError: no worker of that machine is connected.
    """
    queue = queue_name(fleet.store.id)
    hosts = sorted({worker.host for worker in workers_of(fleet)})
    if host not in hosts and host not in read_orders(fleet.connection, queue).drains:
        there = f"connected are {', '.join(hosts)}" if hosts else "none is connected at all"
        raise InputError(
            f"no worker on {printable(host, 80)!r} is connected; {there}. Does it work with another --store?"
        )
    return give_order(fleet.connection, queue, DRAIN + host, _order())


def undo_drain(fleet: Fleet, host: str) -> None:
    """Let a machine work again.

    Raises:
        InputError: it was not drained.
    """
    queue = queue_name(fleet.store.id)
    if not take_back(fleet.connection, queue, DRAIN + host):
        drained = ", ".join(read_orders(fleet.connection, queue).drains) or "none"
        raise InputError(f"{printable(host, 80)!r} is not drained; drained are: {drained}")


def workers_of(fleet: Fleet) -> list[WorkerInfo]:
    """Return the connected workers that serve this store."""
    return live_workers(TaskQueue(queue_name(fleet.store.id), fleet.connection))


def halts(fleet: Fleet) -> Iterator[str]:
    """Yield a line for each order that holds, with the command that takes it back."""
    orders = read_orders(fleet.connection, queue_name(fleet.store.id))
    if orders.pause:
        by, at = orders.pause.host, orders.pause.at
        yield f"the fleet is paused, by {by} at {at}; `producer resume` lets it go on"
    for host, order in orders.drains.items():
        shown = printable(host, 80)
        undo = f"`producer drain --undo {shown}` lets it work again"
        yield f"{shown} is drained, by {order.host} at {order.at}; {undo}"


def _order() -> Order:
    return Order(host=socket.gethostname().split(".")[0][:200], at=utc_now())

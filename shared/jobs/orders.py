"""Orders to the workers of a queue, in one hash of Redis: all wait, or those of one machine leave.

Each stands until it is taken back. Workers look whenever they choose a job (`worker.jobs.choice`).
"""

from dataclasses import dataclass, field
from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct
from redis import Redis

from shared.decoding import decode_or_none
from shared.printable import printable

PAUSE = "pause"
DRAIN = "drain:"
"""The hash's fields: one for a pause, one for each machine that leaves."""


class Order(Struct, frozen=True, kw_only=True):
    """Who gave an order, and when."""

    host: Annotated[str, Meta(max_length=200)]
    at: Annotated[str, Meta(max_length=40)]
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The orders that hold."""

    pause: Order | None = None
    drains: dict[str, Order] = field(default_factory=dict)
    """By the name of the machine that leaves."""


_decoder = msgspec.json.Decoder(Order)
_UNKNOWN = Order(host="an unknown machine", at="an unknown time")


def orders_key(queue_name: str) -> str:
    """Return the key of the hash."""
    return f"bitfleet:orders:{queue_name}"


def read_orders(connection: Redis, queue_name: str) -> Orders:
    """Return the orders that hold. One whose words can't be read holds all the same."""
    lines = cast(dict[bytes, bytes], connection.hgetall(orders_key(queue_name)))
    orders = {name.decode("utf-8", "replace"): _decode(line) for name, line in lines.items()}
    return Orders(
        pause=orders.get(PAUSE),
        drains={
            name.removeprefix(DRAIN): order
            for name, order in sorted(orders.items())
            if name.startswith(DRAIN)
        },
    )


def is_paused(connection: Redis, queue_name: str) -> bool:
    """Return whether all workers wait."""
    return bool(connection.hexists(orders_key(queue_name), PAUSE))


def give_order(connection: Redis, queue_name: str, name: str, order: Order) -> bool:
    """Give an order; False if it holds already, which is not changed."""
    if connection.hget(orders_key(queue_name), name) is not None:
        return False
    connection.hset(orders_key(queue_name), name, msgspec.json.encode(order))
    return True


def take_back(connection: Redis, queue_name: str, name: str) -> bool:
    """Take an order back; False if it did not hold."""
    return bool(connection.hdel(orders_key(queue_name), name))


def _decode(line: bytes) -> Order:
    order = decode_or_none(_decoder, line) or _UNKNOWN
    return Order(host=printable(order.host), at=printable(order.at))

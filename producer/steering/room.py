"""Who holds the relay's room, so that somebody can empty it."""

from collections.abc import Iterator

from humanfriendly import format_size, format_timespan

from producer.fleet import Fleet
from producer.steering.runs import UNCLAIMED, RunContent, runs
from shared.printable import printable
from shared.stores.relay_store import RelayStore

FULL = 0.9
"""From this part of its limit on, the relay counts as full: the next shard may find no room."""


def crowding(fleet: Fleet) -> Iterator[str]:
    """Yield a line if the relay is full, which names the run that holds most of it, and a way out."""
    store = fleet.store
    if not isinstance(store, RelayStore) or store.used_bytes < FULL * store.limit_bytes:
        return
    found = runs(fleet)
    if not found or not found[0].size:
        return
    most = found[0]
    # No time and no size of the moment: who waits tells a line again when it has changed.
    limit = format_size(store.limit_bytes)
    yield f"the relay is full: {describe(most)} holds most of its {limit}; {way_out(most)}"


def describe(run: RunContent) -> str:
    """Return in words whose run it is."""
    if run.run == UNCLAIMED:
        return "what belongs to no run any more"
    if run.folder is None:
        return f"run {printable(run.run, 80)} of an unknown folder"
    return f"run {run.run} of {printable(run.folder)} on {printable(run.host or '?')}"


def way_out(run: RunContent) -> str:
    """Return how its room can be had."""
    forget = f"`producer forget {printable(run.run, 80)}`"
    if run.folder is None:
        return f"`producer collect` in its folder empties it, or {forget} throws it away"
    return f"`producer collect` there empties it; if that folder is gone, {forget}"


def age(seconds: float | None) -> str:
    """Return a time in words, in its two largest units."""
    return "?" if seconds is None else format_timespan(round(seconds), max_units=2)

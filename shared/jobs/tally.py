"""What a worker process has done since its start, as it stands beside its name in Redis."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode_or_none

Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=2**53)]
Speed = Annotated[float, Meta(ge=0, le=1e18)]


class Done(Struct, frozen=True, kw_only=True):
    """Finished tasks of one kind."""

    tasks: Count = 0
    seconds: Seconds = 0.0
    """All of them together, from taking each job to its end."""


class Tally(Struct, frozen=True, kw_only=True):
    """All that one worker process has done."""

    done: dict[str, Done] = {}
    """By the name of the kind."""
    failed: Count = 0
    """Attempts that ended in an error of the task."""
    leases_lost: Count = 0
    """Jobs whose result was dropped, because another worker had them by then."""

    flops_per_second: Speed = 0.0
    """Floating point operations of a forward pass by the time that it took, as timed beside the canary of the
    last model; 0 before the first."""

    def with_speed(self, flops_per_second: float) -> "Tally":
        """Return this with another speed."""
        return msgspec.structs.replace(self, flops_per_second=flops_per_second)

    def with_done(self, kind: str, seconds: float) -> "Tally":
        """Return this with one more finished task."""
        old = self.done.get(kind, Done())
        new = Done(tasks=old.tasks + 1, seconds=round(old.seconds + seconds, 3))
        return msgspec.structs.replace(self, done=self.done | {kind: new})

    def with_failed(self) -> "Tally":
        """Return this with one more failed attempt."""
        return msgspec.structs.replace(self, failed=self.failed + 1)

    def with_lost(self) -> "Tally":
        """Return this with one more lost lease."""
        return msgspec.structs.replace(self, leases_lost=self.leases_lost + 1)

    @property
    def tasks(self) -> int:
        """Number of finished tasks."""
        return sum(done.tasks for done in self.done.values())

    @property
    def tasks_per_hour(self) -> float | None:
        """Finished tasks by the hours that they took; None before the first one."""
        seconds = sum(done.seconds for done in self.done.values())
        return 3600 * self.tasks / seconds if seconds > 0 else None


_decoder = msgspec.json.Decoder(Tally)


def decode_tally(text: bytes) -> Tally:
    """Return what `encode_tally` wrote; an empty tally for anything else."""
    return decode_or_none(_decoder, text) or Tally()


def encode_tally(tally: Tally) -> bytes:
    """Return a tally as JSON."""
    return msgspec.json.encode(tally)

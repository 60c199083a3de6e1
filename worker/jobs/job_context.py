"""What a running job may ask of its worker: is it still mine, shall I stop, here is how far I am."""

from collections.abc import Callable
from dataclasses import dataclass, field


class HandBackError(BaseException):
    """The job goes back to the queue at once, for another worker; not a failure.

    A BaseException, so that no `except Exception` within a task swallows it.
    """


class NoRoomError(HandBackError):
    """The job is done, but its shard finds no room in the store, and others can be done meanwhile.

    The process keeps the shard: it puts it into the store when it has the job again.
    """


@dataclass(slots=True)
class JobContext:
    """Shared between the main thread, which computes, and the beat, which talks to Redis."""

    confirm: Callable[[], None]
    """Asks Redis whether the lease is still held; raises LeaseLostError."""
    others_wait: Callable[[], bool] = lambda: False
    """Asks Redis whether jobs of other runs wait that this machine could do."""
    tell_speed: Callable[[float], None] = lambda _: None
    """Tells the producer how many floating point operations a second a forward pass makes here."""
    progress: str = ""
    lost: bool = False
    """Set by the beat when the lease is gone."""
    hand_back: bool = False
    """Set by a second signal."""
    hand_back_reason: str = field(default="stopped by signal")

    def check(self, progress: str) -> None:
        """Called between micro-batches and denoising steps: costs nothing, may raise.

        Raises:
            HandBackError: the worker was told to stop now.
            LeaseLostError: another worker has the job.
        """
        self.progress = progress
        if self.hand_back:
            raise HandBackError(self.hand_back_reason)
        if self.lost:
            self.confirm()
            self.lost = False

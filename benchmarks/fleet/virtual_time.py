"""A clock that only events move, and fibers: threads of which one runs at a time, until it waits."""

import heapq
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import rq.utils

START = 1_800_000_000.0
"""What the clock says at first, in seconds since 1970."""


class KilledError(BaseException):
    """Raised in a fiber that was killed, wherever it waits or asks Redis for something."""


class Owner:
    """Whose events these are: a machine, which may sleep."""

    asleep_until = 0.0
    slept = 0.0
    """Seconds so far. A Mac's monotonic clock stands still meanwhile."""


@dataclass(order=True, slots=True)
class Event:
    """Something that happens at a time."""

    when: float
    number: int
    act: Callable[[], None] = field(compare=False)
    owner: Owner | None = field(compare=False)
    cancelled: bool = field(compare=False, default=False)


class Clock:
    """Moves from one event to the next."""

    def __init__(self) -> None:
        self.now = START
        self.fiber: Fiber | None = None
        """The one that runs."""
        self.moved: Callable[[float], None] = lambda now: None
        """Called with the new time before somebody uses it."""
        self.events = 0
        self._told: float | None = None
        self._used = False
        self._heap: list[Event] = []
        self._fibers: list[Fiber] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.now - START

    def after(self, seconds: float, act: Callable[[], None], owner: Owner | None = None) -> Event:
        """Let something happen later. While its owner sleeps, it waits."""
        self.events += 1
        event = Event(self.now + seconds, self.events, act, owner)
        heapq.heappush(self._heap, event)
        return event

    def start(self, body: Callable[[], None], owner: Owner | None = None) -> "Fiber":
        """Run a function as a fiber, from now on."""
        fiber = Fiber(self, body, owner)
        self._fibers.append(fiber)
        fiber.wake()
        return fiber

    def freeze(self, owner: Owner, seconds: float) -> None:
        """Put a machine to sleep: all that it waits for comes so much later."""
        owner.asleep_until = self.now + seconds
        owner.slept += seconds
        for event in self._heap:
            if event.owner is owner:
                event.when += seconds
        heapq.heapify(self._heap)

    def settle(self) -> None:
        """Called before anything is asked that depends on the time: tell Redis what time it is."""
        self._used = True
        if self._told != self.now:
            self._told = self.now
            self.moved(self.now)

    def run(
        self, is_over: Callable[[], bool], limit: float, each: Callable[[float], None] = lambda now: None
    ) -> None:
        """Let things happen until it is over; `each` is called after those that used Redis.

        Raises:
            TimeoutError: it is not over after `limit` seconds, or nothing is left to happen.
        """
        while not is_over():
            if not self._heap or self.elapsed > limit:
                raise TimeoutError(f"it is not over after {self.elapsed:,.0f} s")
            event = heapq.heappop(self._heap)
            if event.cancelled:
                continue
            self.now = max(self.now, event.when)
            self._used = False
            event.act()
            if self._used:
                each(self.now)

    def end(self) -> None:
        """Kill all fibers, so that no thread is left."""
        for fiber in self._fibers:
            fiber.kill()

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` is meanwhile."""
        assert self.fiber, "only a fiber can wait"
        self.fiber.wait(seconds)

    def monotonic(self) -> float:
        """What `time.monotonic` is meanwhile."""
        owner = self.fiber.owner if self.fiber else None
        return self.now - (owner.slept if owner else 0.0)

    def utc(self) -> datetime:
        """What RQ takes for the time meanwhile."""
        return datetime.fromtimestamp(self.now, UTC)

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Put this clock in the place of the real one, for everything in this process."""
        with ExitStack() as stack:
            for name, stand_in in (
                ("time", lambda: self.now),
                ("monotonic", self.monotonic),
                ("sleep", self.sleep),
            ):
                stack.enter_context(patch.object(time, name, stand_in))
            # Modules import it by name.
            real = rq.utils.now
            for module in [*sys.modules.values()]:
                if vars(module).get("now") is real:
                    stack.enter_context(patch.object(module, "now", self.utc))
            yield


class Fiber:
    """A function that waits on the clock."""

    def __init__(self, clock: Clock, body: Callable[[], None], owner: Owner | None) -> None:
        self.owner = owner
        self.is_over = False
        self.killed = False
        self._clock = clock
        self._body = body
        self._event: Event | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        # Each is held by whoever waits on the other's turn.
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()

    def wait(self, seconds: float | None) -> None:
        """Called within: let others go on, and return after so long, or when woken; None: only when woken.

        Raises:
            KilledError: the fiber was killed meanwhile.
        """
        self._event = None if seconds is None else self._clock.after(seconds, self._go_on, self.owner)
        self._back.release()
        self._turn.acquire()
        self.check()

    def check(self) -> None:
        """Raise KilledError if it was killed."""
        if self.killed:
            raise KilledError

    def wake(self, seconds: float = 0.0) -> None:
        """Called from outside: let it go on that soon."""
        if self._event:
            self._event.cancelled = True
        self._event = self._clock.after(seconds, self._go_on, self.owner)

    def kill(self) -> None:
        """Called from outside: end it where it waits; it can't do anything any more."""
        if self.is_over or self.killed:
            return
        self.killed = True
        if self._event:
            self._event.cancelled = True
        if self._thread:
            self._go_on()
        self.is_over = True

    def _go_on(self) -> None:
        if self.is_over:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        before, self._clock.fiber = self._clock.fiber, self
        self._turn.release()
        self._back.acquire()
        self._clock.fiber = before
        if self._error:
            raise self._error

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._body()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the clock runs
            self._error = None if self.killed else error
        self.is_over = True
        self._back.release()


def unused(*_: Any, **__: Any) -> None:
    """Do nothing, in place of what a simulation has no use for."""

"""Tells when something goes away and when it is back, to whoever waits for it."""

import time
from collections.abc import Callable

from shared.printable import printable

TELL_SECONDS = 2.0
"""A single failure is no outage: one is told of once it has lasted this long."""


class Outage:
    """One program's view of its Redis or its store: there, or away since when."""

    def __init__(
        self, name: str, tell: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`tell` gets a line once an outage has lasted, and one at its end. Both begin with `name`."""
        self._name, self._tell, self._clock = name, tell, clock
        self._since: float | None = None
        self._told = False

    def failed(self, reason: str) -> None:
        """Note that it could not be used."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif not self._told and now - self._since >= TELL_SECONDS:
            self._told = True
            self._tell(f"{self._name} does not answer ({printable(reason)}); trying on, nothing is lost")

    def answered(self) -> None:
        """Note that it could."""
        since, told = self._since, self._told
        self._since, self._told = None, False
        if told and since is not None:
            self._tell(f"{self._name} answers again, after {self._clock() - since:.0f} s")

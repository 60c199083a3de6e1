"""Memory that earlier tests of the same process left behind is given back before memory is measured."""

import gc
from functools import cache


def collect_garbage() -> None:
    """Collect what can be freed. What the process has imported by now is looked at only once: it is much."""
    _freeze_once()
    gc.collect()


@cache
def _freeze_once() -> None:
    gc.collect()
    gc.freeze()

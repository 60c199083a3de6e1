"""Importing DiffusionKit without the log lines of the converters that it brings along."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = ("argmaxtools", "coremltools", "diffusionkit")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence what logs on import, and undo the `logging.basicConfig` of a library."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        for name in logging.Logger.manager.loggerDict:
            if name.partition(".")[0] in _NOISY:
                logging.getLogger(name).setLevel(logging.WARNING)

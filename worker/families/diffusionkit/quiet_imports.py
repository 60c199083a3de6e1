"""Importing DiffusionKit without what it brings along for others: a converter to Core ML, and log lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NOISY = ("argmaxtools", "diffusionkit")
_TWICE = "huggingface_hub"
"""Prints its lines itself and hands them on as well."""
_CONVERTER = "coremltools"


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave the converter out, silence what logs on import, and let no library print its lines twice."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    logging.disable(logging.WARNING)
    placeholder = (
        None if _CONVERTER in sys.modules else sys.modules.setdefault(_CONVERTER, _Placeholder(_CONVERTER))
    )
    try:
        yield
    finally:
        if placeholder is not None:
            del sys.modules[_CONVERTER]
        logging.disable(logging.NOTSET)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        logging.getLogger(_TWICE).handlers.clear()
        for name in logging.Logger.manager.loggerDict:
            if name.partition(".")[0] in _NOISY:
                logging.getLogger(name).setLevel(logging.WARNING)


class _Placeholder(ModuleType):
    """Stands in for a module of which only names are taken, as constants: each name is another placeholder.

    DiffusionKit takes two small classes from `argmaxtools.test_utils`, which imports coremltools for others.
    That takes over half of a worker's start.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(f"{self.__name__}.{name}")

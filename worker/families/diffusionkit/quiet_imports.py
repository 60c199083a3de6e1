"""Imports DiffusionKit quickly and quietly: without libraries that it seldom uses, and without log lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType
from typing import Any

_NOISY = ("argmaxtools", "diffusionkit")
_TWICE = "huggingface_hub"
"""This library prints its log lines itself, and hands them to the root logger as well."""
_LATE = ("coremltools", "torch", "torch.nn", "torch.utils", "torch.utils.flop_counter", "transformers")
"""Modules whose names DiffusionKit and argmaxtools take when they are imported. Only T5 uses one of them."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Delay the slow libraries, silence what logs on import, and let no library print its lines twice."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    logging.disable(logging.WARNING)
    late = [name for name in _LATE if name not in sys.modules and name.partition(".")[0] not in sys.modules]
    sys.modules.update({name: _LateModule(name) for name in late})
    try:
        yield
    finally:
        for name in late:
            del sys.modules[name]
        logging.disable(logging.NOTSET)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        logging.getLogger(_TWICE).handlers.clear()
        for name in logging.Logger.manager.loggerDict:
            if name.partition(".")[0] in _NOISY:
                logging.getLogger(name).setLevel(logging.WARNING)


class _LateModule(ModuleType):
    """Stands in for a module while DiffusionKit is imported; its names are looked up when they are called.

    Importing torch, transformers and coremltools would take most of a worker's start. DiffusionKit needs
    transformers for T5 only, and the other two for nothing that a worker does.
    """

    __path__: list[str] = []  # noqa: RUF012

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _LateName(self.__name__, name)


class _LateName:
    """A name of a module, or of a class in it. The module is imported when the name is called."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, attribute: str) -> "_LateName":
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _LateName(self._module, f"{self._name}.{attribute}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return attrgetter(self._name)(import_module(self._module))(*args, **kwargs)

"""The first file of a worker process: `python -P /path/to/worker/launch.py MODULE [ARGUMENTS]`.

Python's safe path (-P) keeps the folder in which `worker start` was typed out of the imports, and the two
packages that every module of ours needs are loaded from where this file lies: a user's `worker.py` or
`shared/`, in that folder or on PYTHONPATH, is never taken for ours.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

EXIT_REFUSED = 2
"""As in worker.service.process, which can't be imported yet."""
ROOT = Path(__file__).resolve().parent.parent


def require_own_shared() -> None:
    """End the program, with one line and exit code 2, when `shared` is another one than that beside us."""
    spec = importlib.util.find_spec("shared")
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != ROOT / "shared" / "__init__.py":
        sys.stderr.write(
            f"bitfleet's `shared` is hidden by another one ({found}): start from another folder, or take "
            "that folder out of PYTHONPATH\n"
        )
        sys.exit(EXIT_REFUSED)


def load_own_packages() -> None:
    """Load `shared` and `worker` from beside this file."""
    for name in ("shared", "worker"):
        folder = ROOT / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"no package in {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def main(module: str) -> int:
    """Run `module`; return 2, after one line, when something can't be imported: trying again is of no use."""
    try:
        load_own_packages()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (ImportError, SyntaxError) as error:
        sys.stderr.write(
            f"the worker can't start ({type(error).__name__}: {error}); in bitfleet's folder: "
            "pip install '.[worker]'\n"
        )
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    # What is run sees the arguments that are meant for it.
    del sys.argv[0]
    sys.exit(main(sys.argv[0]))

"""Executes the notebook on a calibration folder."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/sensitivity.ipynb"


def execute(folder: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the notebook in `folder`; return what its last cell shows."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--HistoryManager.enabled=False"],
    )
    client.execute(env=dict(environment) | {"IPYTHONDIR": str(folder / "ipython")})
    (output,) = notebook.cells[-1].outputs
    shown: dict[str, Any] = ast.literal_eval(output["data"]["text/plain"])
    return shown

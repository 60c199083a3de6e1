"""The notebook is kept without outputs; `tests/test_end_to_end.py` executes it."""

import nbformat

from tests.notebooks import NOTEBOOK


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"{cell.id}: clear all outputs"
        assert cell.metadata == {}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}

"""The outputs of the executed chapters, as the book will show them; the execution itself is the run of notebooks/."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
pytestmark = pytest.mark.slow


@pytest.fixture(params=CHAPTERS)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    path = ROOT / "executed" / os.environ["MSD_TEACH_BUDGET"] / f"{request.param}.ipynb"
    assert path.exists(), f"{request.param} has not been executed: run `pytest notebooks` first, as `make test` does"
    return nbformat.read(path, 4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_was_executed_to_the_end(notebook: nbformat.NotebookNode):
    assert notebook.metadata.msd_teach.seconds > 0
    assert all(cell.execution_count for cell in code_cells(notebook) if cell.source)


def test_nothing_but_results_in_the_outputs(notebook: nbformat.NotebookNode):
    for cell in code_cells(notebook):
        allowed = {"stream", "display_data", "execute_result"}
        if "raises-exception" in cell.metadata.get("tags", []):
            allowed.add("error")
        assert {output.output_type for output in cell.outputs} <= allowed
        assert not [output.text for output in cell.outputs if output.get("name") == "stderr"], cell.source
        assert "execution" not in cell.metadata
        assert not any("widget-view" in mime for output in cell.outputs for mime in output.get("data", {})), cell.source


def test_every_picture_has_an_alt_text_where_the_book_looks_for_it(notebook: nbformat.NotebookNode):
    for cell in code_cells(notebook):
        # An output with HTML is shown as that; its picture is for print.
        pictures = [out for out in cell.outputs if "image/png" in out.get("data", {}) and "text/html" not in out.data]
        assert len(pictures) <= 1, cell.source
        if pictures:
            assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) >= 20, cell.source


def test_stubs_wait_and_solutions_pass(notebook: nbformat.NotebookNode):
    for cell in code_cells(notebook):
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            assert "not yet" in printed(cell)
        if "solution" in tags or "check" in tags:
            assert printed(cell).strip(), cell.source
            assert "not yet" not in printed(cell)


def test_outputs_are_light(notebook: nbformat.NotebookNode):
    """What a reader of the page loads: texts, HTML with what it embeds, pictures."""
    sizes = [
        len(value) * (3 / 4 if mime == "image/png" else 1)
        for cell in code_cells(notebook)
        for output in cell.outputs
        for mime, value in {"text": output.get("text", ""), **output.get("data", {})}.items()
    ]
    assert sum(sizes) <= 0.4e6, f"{sum(sizes) / 1e6:.2f} MB of outputs"

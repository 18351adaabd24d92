"""The contract of a chapter, and of the sources around it (CONTRIBUTING.md), checked without running anything."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from jupytext.config import load_jupytext_config

from book.length import MOST_WORDS, exercises, minutes, words
from book.length import prose as text

ROOT = Path(__file__).parent.parent
HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---
"""
CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
# Chapters that are still to be cut to their length, their answers folded, their lines to 88 columns: leave this set empty.
TO_COME = {"05_stable_solver", "06_mean_shift_distillation", "08_stable_diffusion"}
EXERCISE = re.compile(r"^### Exercise \d+\.\d+ · .+ \(★{1,3}, \d+ min\)$", re.M)
STATED = r"^\*Reading and exercises: (\d+) minutes, (\d+) of them for the exercises\."
COLUMNS = 88
Cells = list[nbformat.NotebookNode]


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def edited(chapter: Path) -> Path:
    if chapter.stem in TO_COME:
        pytest.skip("still to come")
    return chapter


@pytest.fixture
def cells(chapter: Path) -> Cells:
    return jupytext.read(chapter, fmt="py:percent").cells


def tagged(cells: Cells, tag: str) -> Cells:
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def prose(cells: Cells) -> str:
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def calls(source: str, prefix: str) -> list[ast.Call]:
    """Calls of `prefix.<something>` in the order of the source."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func).startswith(f"{prefix}.")]


def literal_length(text: ast.expr) -> int:
    """Characters of a string expression that are there before it is evaluated."""
    return sum(
        len(node.value) for node in ast.walk(text) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_header(chapter: Path):
    assert chapter.read_text().startswith(HEADER + "\n"), f"{chapter.name} does not begin with\n{HEADER}"


def test_sections(cells: Cells):
    headings = re.findall(r"^(#+) (.+)$", re.sub(r"```.*?```", "", prose(cells), flags=re.S), re.M)
    levels = [len(marks) for marks, _ in headings]
    assert cells[0].source.startswith("# ")
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels)), headings
    for section in ("What you'll learn", "Take-aways", "What's next"):
        assert ("##", section) in headings


def test_checks_and_a_cell_that_breaks(cells: Cells):
    assert tagged(cells, "break-it")
    assert tagged(cells, "check")
    for cell in tagged(cells, "check"):
        assert "assert " in cell.source, cell.source
        assert "print(" in cell.source, cell.source


def test_exercises(cells: Cells):
    assert len(EXERCISE.findall(prose(cells))) == len(tagged(cells, "exercise")) == len(tagged(cells, "solution")) >= 2
    for stub, solution in zip(tagged(cells, "exercise"), tagged(cells, "solution"), strict=True):
        assert cells.index(solution) - cells.index(stub) == 1
        assert EXERCISE.search(cells[cells.index(stub) - 1].source), "an exercise's text goes directly before its stub"
        assert "hide-cell" in solution.metadata.tags
        assert solution.metadata.get("jupyter", {}).get("source_hidden")
        assert "NotImplementedError" in stub.source
        assert "NotImplementedError" not in solution.source
        checkers = [[ast.unparse(call.func) for call in calls(cell.source, "checks")] for cell in (stub, solution)]
        assert checkers[0] == checkers[1] != [], "stub and solution are given to the same checker"


def test_figures_are_in_the_books_style(chapter: Path):
    """Nothing sets it at import; without it, lines and fonts would be matplotlib's own."""
    assert chapter.read_text().count("\nfigures.use_style()\n") == 1


def test_figures_have_alt_texts(cells: Cells):
    for cell in cells:
        if cell.cell_type == "code":
            shown = [call for call in calls(cell.source, "figures") if ast.unparse(call.func) == "figures.show"]
            assert len(shown) <= 1, "only one alt text a cell reaches the book"
            for call in shown:
                alts = [word.value for word in call.keywords if word.arg == "alt"]
                assert len(alts) == 1, ast.unparse(call)
                assert isinstance(alts[0], ast.Name) or literal_length(alts[0]) >= 20, ast.unparse(call)
            assert not re.search(r"plt\.show|display\(fig|savefig", cell.source), cell.source


def test_plotting_code_is_folded(cells: Cells):
    """In the book and in JupyterLab; what goes wrong on purpose stays in sight, with its figure."""
    for cell in tagged(cells, "hide-input"):
        assert cell.metadata.get("jupyter") == {"source_hidden": True}, cell.source
    shown = {"hide-input", "break-it", "solution"}
    for cell in cells:
        drawn = calls(cell.source, "figures") if cell.cell_type == "code" else []
        if any(ast.unparse(call.func) == "figures.show" for call in drawn):
            assert shown & set(cell.metadata.get("tags", [])), cell.source


def test_cells_are_short_and_plain(cells: Cells):
    for cell in cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
            most = 65 if "hide-input" in cell.metadata.get("tags", []) else 25
            assert len(lines) <= most, f"{len(lines)} lines:\n{cell.source}"
            assert not re.search(r"^\s*[%!]", cell.source, re.M), f"a magic:\n{cell.source}"


def test_code_fits_a_page_of_1280_pixels(edited: Path, cells: Cells):
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert not [line for line in code.splitlines() if len(line) > COLUMNS], edited


def test_words(edited: Path):
    assert words(text(jupytext.read(edited, fmt="py:percent"))) <= MOST_WORDS


def test_the_minutes_add_up(edited: Path, cells: Cells):
    """Stated to the nearest five, and the exercises' as they state them."""
    chapter = jupytext.read(edited, fmt="py:percent")
    stated = re.search(STATED, cells[0].source, re.M)
    assert stated and int(stated[1]) == 5 * round(minutes(chapter) / 5)
    assert int(stated[2]) == exercises(text(chapter))


def test_every_prediction_has_a_folded_answer(edited: Path, cells: Cells):
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    steps = re.findall(r"\*\*(Predict)\b|<summary>(Answer)</summary>", prose)
    assert [one or other for one, other in steps] == ["Predict", "Answer"] * (len(steps) // 2), edited


def test_a_save_in_jupyterlab_leaves_the_file_as_it_is(chapter: Path):
    config = load_jupytext_config(str(chapter))
    notebook = jupytext.read(chapter, fmt="py:percent", config=config)
    assert jupytext.writes(notebook, fmt="py:percent", config=config) == chapter.read_text()


def test_cells_are_formatted(chapter: Path):
    notebook = jupytext.writes(jupytext.read(chapter, fmt="py:percent"), fmt="ipynb")
    width = [] if chapter.stem in TO_COME else [f"--line-length={COLUMNS}"]
    ruff = [Path(sys.executable).with_name("ruff"), "format", *width]
    ruff += ["--diff", "--stdin-filename", "chapter.ipynb", "-"]
    run = subprocess.run(ruff, input=notebook, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + "\nTo repair: make format"


def test_the_book_has_every_chapter():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = {page["file"] for part in toc["parts"] for page in part["chapters"]}
    assert listed >= {path.stem for path in CHAPTERS}


def test_no_absolute_paths():
    sources = [
        path
        for folder in ("notebooks", "msd_teach", "tests", "book", "benchmarks")
        for path in (ROOT / folder).rglob("*")
    ]
    machine = re.compile(r"(?<![\w.:/])/(home|root|tmp|mnt|Users|var|opt)/|[A-Z]:\\\\")
    for path in sources:
        if path.suffix in {".py", ".md", ".yml", ".json", ".html", ".js"} and path != Path(__file__):
            assert not machine.search(path.read_text()), path


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_no_fenced_directives(path: Path):
    """JupyterLab and GitHub show them as code, formulas and all."""
    assert not re.search(r"^(```|:::)\s*\{", path.read_text(), re.MULTILINE)


def test_no_outputs_in_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so git cannot be asked: an unpacked archive of the sources")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert not [name for name in tracked if name.endswith(".ipynb") or name.startswith(("executed/", "_build/"))]

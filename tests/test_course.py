"""The student edition holds no solution and hangs on none; its cells of points grade as nbgrader does."""

from __future__ import annotations

import dis
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import CodeType

import jupytext
import nbformat
import pytest

from book import course
from msd_teach.lesson import checks, given

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
EVERY = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
RIGHT = "return (-(x[:, None] - points).square().sum(-1) / (2 * bandwidth**2)).softmax(-1) @ points"


@cache
def parsed(path: Path) -> nbformat.NotebookNode:
    return jupytext.read(path, fmt="py:percent")


def read(path: Path) -> nbformat.NotebookNode:
    return deepcopy(parsed(path))


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def sources(cells: list[nbformat.NotebookNode]) -> list[str]:
    return [cell.source for cell in cells]


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell makes, and those that it needs from the cells above."""
    made, needed, code = set[str](), set[str](), compile(source, "cell", "exec")
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            made.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in made:
            needed.add(step.argval)
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    for function in inner:  # grows on the way
        inner += [const for const in function.co_consts if isinstance(const, CodeType)]
        needed |= {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"} - made
    return made, needed


@EVERY
def test_editions(path: Path):
    chapter, student, solutions = read(path), course.student(read(path)), course.solutions(read(path))
    for edition in (student, solutions):
        nbformat.validate(edition)
    assert sources(solutions.cells) == sources(chapter.cells)
    assert not [cell for cell in solutions.cells if "jupyter" in cell.metadata]

    solved, text = tagged(chapter, "solution"), re.sub(r"\s+", " ", "\n".join(sources(student.cells)))
    assert not tagged(student, "solution")
    for solution in sources(solved):
        body = re.search(r"^def .*?:\n(.+?)(\n\n\n|\Z)", solution, re.M | re.S)
        assert body is not None and re.sub(r"\s+", " ", body[1]).strip() not in text, solution
    kept = sources([cell for cell in chapter.cells if cell not in solved])
    added = [source for source in sources(student.cells) if source not in kept]
    assert [source for source in sources(student.cells) if source in kept] == kept
    for line in {line for source in sources(solved) for line in source.splitlines() if line} - {
        *"".join(kept).split("\n")
    }:
        assert line not in "".join(added)


@EVERY
def test_points(path: Path):
    student = course.student(read(path))
    stubs, graded = tagged(student, "exercise"), [cell for cell in student.cells if "nbgrader" in cell.metadata]
    assert len(stubs) == len(graded) == len(tagged(read(path), "solution"))
    for stub, cell in zip(stubs, graded, strict=True):
        place = student.cells.index(stub)
        stars = re.findall(r"^### Exercise .*?(★+),", student.cells[place - 1].source, re.M)
        assert student.cells[place + 1] is cell
        assert cell.metadata.nbgrader.points == len(stars[-1])
        assert f"\nchecks.{cell.metadata.nbgrader.grade_id}(" in stub.source


def test_the_library_gives_what_later_cells_need():
    """Of all that solutions make, later cells need five functions: those that `unless_solved` guards."""
    needed, guarded = set[str](), set[str]()
    for chapter in map(read, CHAPTERS):
        from_solutions = set[str]()
        for cell in (cell for cell in chapter.cells if cell.cell_type == "code"):
            made, asked = names(cell.source)
            if cell in tagged(chapter, "solution"):
                from_solutions |= made
                guarded |= set(re.findall(r"^@checks\.unless_solved\ndef (\w+)", cell.source, re.M))
            else:
                needed |= asked & from_solutions
                from_solutions -= made
    assert needed == guarded == set(given.__all__)


@pytest.mark.parametrize("name", given.__all__)
def test_what_the_library_gives_is_right(name: str):
    getattr(checks, name)(getattr(given, name))


@pytest.fixture
def cells():
    """Runs cells in a shell as a kernel has it; returns what they gave, and then the function in use."""
    from IPython.core.interactiveshell import InteractiveShell

    def run(*cells: nbformat.NotebookNode):
        shell = InteractiveShell()
        shell.run_cell("import torch\nfrom msd_teach.lesson import checks")
        return [shell.run_cell(cell.source) for cell in cells], shell.user_ns["mean_shift_step"]

    return run


ANSWERS = pytest.mark.parametrize(
    ("answer", "points"),
    [
        (RIGHT, 1),
        (RIGHT.replace("(2 * bandwidth**2)", "bandwidth**2"), 0),
        ("return unknown", 0),
        ("raise NotImplementedError", 0),
    ],
    ids=["right", "wrong", "broken", "unsolved"],
)


def submitted(notebook: nbformat.NotebookNode, answer: str, then: int) -> list[nbformat.NotebookNode]:
    """The first stub with an answer in it, and the cells that follow."""
    (stub, *_), cells = tagged(notebook, "exercise"), notebook.cells
    stub.source = stub.source.replace("raise NotImplementedError  # your code", answer)
    assert answer in stub.source
    return cells[(place := cells.index(stub)) : place + 1 + then]


@ANSWERS
def test_a_submission_is_graded(cells, capsys, answer: str, points: int):
    """By nbgrader's rule: an error gives 0, a number is the points."""
    (stub, graded, kept), used = cells(*submitted(course.student(read(CHAPTERS[1])), answer, 2))
    assert stub.success == (points == 1 or "NotImplemented" in answer)
    assert graded.success and kept.success, "also an unsolved chapter runs to its end"
    assert graded.result == points
    assert (used.__module__ == given.__name__) == (points == 0)
    assert f"mean_shift_step: the cells below use {'yours' if points else 'ours'}" in capsys.readouterr().out


@ANSWERS
def test_a_solution_does_not_replace_a_right_answer(cells, capsys, answer: str, points: int):
    stub, solution = submitted(read(CHAPTERS[1]), answer, 1)
    (_, first, again), used = cells(stub, solution, solution)
    assert first.success and again.success
    assert hasattr(used, "solution") == (points == 0)
    assert capsys.readouterr().out.count("use yours") == 2 * points


@pytest.mark.slow
@EVERY
def test_an_unsolved_chapter_runs_to_its_end(path: Path):
    from nbclient import NotebookClient

    student = course.student(read(path))
    NotebookClient(student, timeout=600).execute()
    graded = [cell.outputs[0].data["text/plain"] for cell in student.cells if "nbgrader" in cell.metadata]
    assert graded and set(graded) == {"0"}

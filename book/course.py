"""The chapters for a course, without solutions and with them, in course/: `python book/course.py`, or `make course`."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).parent.parent
NOTE = """\
*Student edition: there are no solutions in it, also where the text speaks of one. The cell below an exercise gives its \
points, as many as it has stars; please leave it as it is.*"""
KEPT = """\
# Later cells need this function: yours if it is right, else the library's.
from msd_teach.lesson import given

{name} = checks.yours_or({name}, given.{name})"""


def student(chapter: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The chapter without its solutions, with a cell below each stub that nbgrader grades.

    A solution that later cells need (`@checks.unless_solved`) leaves a cell in which the library stands in for it.
    """
    cells, text = [chapter.cells[0], new_markdown_cell(NOTE)], ""
    for cell in chapter.cells[1:]:
        tags = cell.metadata.get("tags", [])
        if "solution" not in tags:
            cells.append(cell)
        elif name := re.match(r"@checks\.unless_solved\ndef (\w+)", cell.source):
            cells.append(new_code_cell(KEPT.format(name=name[1])))
        if "exercise" in tags:
            cells.append(points(cell.source, re.findall(r"★+", text)[-1]))
        text = cell.source
    return numbered(chapter, cells)


def points(stub: str, stars: str) -> nbformat.NotebookNode:
    """The cell whose value are the points: a number, since an error would end `Run All` at the first open exercise.

    nbgrader restores a locked cell's source before it runs a submission, and takes a number for the points.
    """
    ((check, name),) = re.findall(r"^checks\.(\w+)\((\w+)\)$", stub, re.M)
    graded = {"grade": True, "locked": True, "solution": False, "task": False, "points": len(stars)}
    cell = new_code_cell(f"{len(stars)} * checks.solved(checks.{check}, {name})  # points")
    cell.metadata["nbgrader"] = {**graded, "grade_id": check, "cell_type": "code", "schema_version": 3}
    return cell


def solutions(chapter: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The whole chapter, its solutions unfolded."""
    for cell in chapter.cells:
        cell.metadata.pop("jupyter", None)
    return numbered(chapter, chapter.cells)


def numbered(chapter: nbformat.NotebookNode, cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # jupytext draws random ones
    return nbformat.NotebookNode(chapter, cells=cells)


if __name__ == "__main__":
    for edition in (student, solutions):
        folder = ROOT / "course" / edition.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted((ROOT / "notebooks").glob("*.py")):
            nbformat.write(edition(jupytext.read(source, fmt="py:percent")), folder / f"{source.stem}.ipynb")
        print(f"Written anew, so work on a copy: {folder.relative_to(ROOT)}/")

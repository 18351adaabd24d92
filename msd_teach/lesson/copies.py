"""The chapters as notebooks of the reader's own, from a checkout or from the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..files import whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

PACKAGE = Path(__file__).parents[1]
SOURCES = PACKAGE / "notebooks" if (PACKAGE / "notebooks").is_dir() else PACKAGE.parent / "notebooks"  # as for results
INSTALL = f"""\
# Installs the book's package where it is missing, as on a hosted notebook server. Elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("msd_teach") is None:
    %pip install -q "msd_teach[notebooks,diffusion]=={__version__}"\
"""


def add_install_cell(chapter: NotebookNode) -> None:
    """Puts a cell before all others that installs the package where it is missing; the book's pages leave it out."""
    from nbformat.v4 import new_code_cell

    chapter.cells.insert(0, new_code_cell(INSTALL, id="install", metadata={"tags": ["remove-cell"]}))


def copy_chapters(folder: Path) -> list[Path]:
    """Writes every chapter that `folder` does not hold yet, as a notebook; returns what it wrote.

    Raises:
        ModuleNotFoundError: without jupytext, which the extra `notebooks` brings.
        ValueError: a folder that cannot be written to.
    """
    import jupytext
    import nbformat

    written = []
    for source in sorted(SOURCES.glob("*.py")):
        path = folder / f"{source.stem}.ipynb"
        if not path.exists():  # it may hold the reader's answers
            chapter = jupytext.read(source, fmt="py:percent")
            for number, cell in enumerate(chapter.cells):
                cell.id = f"cell-{number}"  # jupytext draws random ones
            add_install_cell(chapter)
            with whole(path) as partial:
                nbformat.write(chapter, partial)
            written.append(path)
    return written

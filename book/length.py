"""How long a chapter is, in words and minutes, by the rule of chapter 00: `python book/length.py` prints a table."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).parent.parent
MOST_WORDS = 3000
WORDS_A_MINUTE = 180
MINUTES_AN_EQUATION = 0.75
MINUTES_A_LINE = 1 / 12
FOLDED = {"hide-input", "solution", "exercise"}  # what a reader opens, or writes, is in an exercise's own minutes
ASIDE = re.compile(r"<details>\s*<summary>(?!Answer</summary>).*?</details>", re.S)


def prose(chapter: nbformat.NotebookNode) -> str:
    """All Markdown of a chapter but its asides: folds that are not the answer to a question."""
    text = "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    return ASIDE.sub("", text)


def words(text: str) -> int:
    """Words of Markdown without displayed equations, tags and addresses; an inline formula is one."""
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"\$[^$]+\$", "formula", text)
    text = re.sub(r"</?[a-z][^>]*>|\]\([^)]*\)", "", text)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def equations(text: str) -> int:
    return text.count("$$") // 2


def lines(chapter: nbformat.NotebookNode) -> int:
    """Lines of code in sight, brackets alone not counted."""
    code = (cell for cell in chapter.cells if cell.cell_type == "code")
    shown = (cell for cell in code if not FOLDED & {*cell.metadata.get("tags", ())})
    return sum(bool(re.search(r"\w", line)) for cell in shown for line in cell.source.splitlines())


def exercises(text: str) -> int:
    """The minutes that the exercises state."""
    return sum(map(int, re.findall(r"^### Exercise .*, (\d+) min\)$", text, re.M)))


def minutes(chapter: nbformat.NotebookNode) -> float:
    """What a chapter takes to read, with its exercises."""
    text = prose(chapter)
    reading = words(text) / WORDS_A_MINUTE + equations(text) * MINUTES_AN_EQUATION + lines(chapter) * MINUTES_A_LINE
    return reading + exercises(text)


if __name__ == "__main__":
    print(f"{'':28}{'words':>7}{'equations':>11}{'lines':>7}{'exercises':>11}{'minutes':>9}")
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        chapter = jupytext.read(path, fmt="py:percent")
        text = prose(chapter)
        print(f"{path.stem:28}{words(text):7}{equations(text):11}{lines(chapter):7}", end="")
        print(f"{exercises(text):11}{minutes(chapter):9.0f}")

"""The docstrings as Sphinx reads them: `words` in backticks are code, and no other sign is markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def escaped(text: str) -> str:
    """Docstring as reStructuredText."""
    pieces = re.split(r"`([^`]+)`", text)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"[\\*|]|_(?!\w)", r"\\\g<0>", pieces[i])
    for i in range(1, len(pieces), 2):
        glued = pieces[i + 1][:1].isalnum()  # the plural in "`x`s"
        pieces[i] = "``" + " ".join(pieces[i].split()) + "``" + "\\ " * glued
    return "".join(pieces)


def rewrite(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = escaped("\n".join(lines)).split("\n")


def skip(_app: Sphinx, _what: str, _name: str, member: Any, skipped: bool, _options: Any) -> bool | None:
    """What a tuple says of its own fields is no documentation."""
    return True if str(member.__doc__).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", rewrite, priority=400)  # before napoleon makes fields of "Raises:"
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}

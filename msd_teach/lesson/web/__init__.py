"""The pages that work without a kernel: scripts and style of this folder put together with their data."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

SCRIPTS = {
    "meanShift": ("mixture.js", "controls.js", "stage.js", "marks.js", "mean_shift.js"),
    "distillation": ("mixture.js", "controls.js", "stage.js", "marks.js", "distillation.js"),
    "replay": ("controls.js", "marks.js", "replay.js"),
    "frames": ("controls.js", "frames.js"),
}


class Page:
    """HTML that works without a kernel, with a picture in its place where there is no HTML (LaTeX, GitHub)."""

    def __init__(self, html: str, png: bytes, alt: str):
        self.html, self.png, self.alt = html, png, alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"text/html": self.html, "image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def assemble(main: str, data: dict[str, Any]) -> str:
    """A root element that holds the style, and one script that calls `main(root, data)`, a function of SCRIPTS[main].

    Its id is a hash of the content, so that the same input gives the same output.
    """
    folder = files(__name__)
    style = _squeeze((folder / "explore.css").read_text("utf-8"))
    program = "\n".join(_squeeze((folder / name).read_text("utf-8")) for name in SCRIPTS[main])
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    name = "explore-" + hashlib.sha256((style + program + payload).encode()).hexdigest()[:12]
    return (
        f'<div data-explore="{main}" id="{name}" role="group">'
        "<p>This figure moves where scripts may run: in the book, or once its cell has been run.</p>"
        f"<style>{style}</style>"
        f"<script>(() => {{\n{program}\n{main}(document.currentScript.parentElement, {payload});\n}})()</script></div>"
    )


def _squeeze(source: str) -> str:
    """The source without indentation, empty lines and lines that hold only a // comment."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))

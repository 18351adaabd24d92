r"""References of the chapters become links while the book is built; sources and downloads stay plain.

"chapter 04", "chapters 03 to 05", "(M3.2)" and "[Cheng (1995)](https://doi.org/…)" lead to the page, to the display
with `\tag{M3.2}` and to the entry of refs.bib with that address. Titles get the number of their chapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Key = TypeVar("Key", bound=Hashable)

PLANNED = {9, 10, 11}  # the text announces these chapters; plain until they are written
TAG = re.compile(r"\\tag\{([^}]*)\}")
# One pass, first match first. What has no name here is matched so that nothing inside it is: code, math, links.
SCAN = re.compile(
    r"""
      \\[\\`$\[]                                                            # an escaped character
    | (?P<title>^\#\ [^\n]*) | ^[ >]*\#{2,6}\ [^\n]*
    | ^[ >]*(?P<fence>```+|~~~+).*?^[ >]*(?P=fence)
    | (?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)                            # code, or what a role is about
    | (?P<display>^[ >]*\$\$.*?\$\$) | \$\$.*?\$\$
    | \$(?:\\.|[^$\\\n]|\n(?!\s*\n))+\$
    | \[(?P<cited>[^\[\]]*\d{4}\)?)\]\((?P<url>https?:[^)\s]+)\)            # [author (year)](url), [author, year](url)
    | !?\[(?:[^\[\]\n]|\n(?!\s*\n)|\[[^\[\]]*\])*\][(\[][^)\]]*[)\]]        # a link, an image
    | ^\[[^\]\n]+\]:[^\n]*                                                  # where a link leads
    | <a\s.*?</a> | <!--.*?--> | </?[a-zA-Z][^>]*>
    | (?P<chapter>\b[Cc]hapter[\s>]+\d+\b)
    | (?P<chapters>\b[Cc]hapters[\s>]+\d+\b(?:(?:–|,?[\s>]+(?:(?:and|or|to)[\s>]+)?)\d+\b)*)
    | (?P<equation>\(M\d+\.\d+\)|\bM\d+\.\d+\b)
    """,
    re.X | re.M | re.S,
)


@dataclass(frozen=True)
class Places:
    """Where references lead: pages by chapter number, labels by an equation's tag, keys of refs.bib by address."""

    pages: Mapping[int, str]
    labels: Mapping[str, str]
    papers: Mapping[str, str]


def number(page: str) -> int | None:
    """The chapter number with which a page's name begins."""
    found = re.match(r"(\d\d)_", page)
    return int(found[1]) if found else None


def label(page: str, tag: str) -> str:
    return re.sub(r"\W+", "-", f"eq-{page[:2]}-{tag}".lower())


def places(chapters: Mapping[str, str], papers: Mapping[str, str]) -> Places:
    """What a book has, from its chapters' Markdown by page; (M3.2) is at home in chapter 03, repeated elsewhere."""
    pages = {n: page for page in chapters if (n := number(page)) is not None}
    tags = [(tag, n, page) for n, page in pages.items() for tag in TAG.findall(chapters[page])]
    return Places(pages, {tag: label(page, tag) for tag, n, page in tags if tag.startswith(f"M{n}.")}, papers)


def link(text: str, page: str, to: Places) -> str:
    """Markdown of a page with its references as links, a target at each tagged display and its number in the title.

    Raises:
        ValueError: a chapter, an equation or a paper that is not there, by its words and the page.
    """

    def find(where: Mapping[Key, str], key: Key, words: str) -> str:
        if key not in where:
            raise ValueError(f"{page}: {words!r} leads nowhere")
        return where[key]

    def chapter(words: str) -> str:
        n = int(words.split()[-1])
        if n == number(page) or n in PLANNED - set(to.pages):
            return words
        return f"[{words}]({find(to.pages, n, words)}.ipynb)"

    def replace(match: re.Match[str]) -> str:
        words = match[0]
        match match.lastgroup:
            case "title" if (n := number(page)) is not None:
                return f"# {n:02} · {words[2:]}"
            case "display" if tag := TAG.search(words):
                return f"{words[: words.index('$')]}({label(page, tag[1])})=\n{words}"
            case "url":
                key = find(to.papers, match["url"], words)
                textual = match["cited"].endswith(")")
                return f"{{cite:author}}`{key}` ({{cite:year}}`{key}`)" if textual else f"{{cite:alp}}`{key}`"
            case "chapter":
                return chapter(words)
            case "chapters":
                return re.sub(r"\d+", lambda digits: chapter(digits[0]), words)
            case "equation":
                return f"[{words}](#{find(to.labels, words.strip('()'), words)})"
        return words

    return SCAN.sub(replace, text)


def papers(bibliography: Path) -> dict[str, str]:
    """Keys of a bibliography by the addresses of its papers."""
    from pybtex.database import parse_file

    entries = parse_file(str(bibliography)).entries
    return {entry.fields["url"]: key for key, entry in entries.items() if "url" in entry.fields}


def prose(notebook: Mapping) -> str:
    """All Markdown of a notebook."""
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx reads the pages through `link`; the files stay as they are, and with them the downloads."""
    source = Path(app.srcdir)
    chapters = {path.stem: prose(json.loads(path.read_text("utf-8"))) for path in source.glob("*.ipynb")}
    to = places(chapters, papers(source / "refs.bib"))

    def read(_: Sphinx, page: str, content: list[str]) -> None:
        if page not in chapters:
            content[0] = link(content[0], page, to)
            return
        notebook = json.loads(content[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = link("".join(cell["source"]), page, to)
        content[0] = json.dumps(notebook)

    app.connect("source-read", read)
    return {"parallel_read_safe": True}

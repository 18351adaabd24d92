"""References become links in the book: exact texts, what must stay as it is, and every reference of every chapter."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import pytest

from book.links import PLANNED, TAG, Places, link, papers, places, prose

ROOT = Path(__file__).parent.parent
CHAPTERS = {path.stem: jupytext.read(path, fmt="py:percent") for path in sorted((ROOT / "notebooks").glob("*.py"))}
TEXTS = {page: prose(notebook) for page, notebook in CHAPTERS.items()}
PAPERS = papers(ROOT / "book" / "refs.bib")
CHENG = "https://doi.org/10.1109/34.400568"
TO = places(
    {
        "03_score": r"$$a \tag{M3.2}$$",
        "04_product": r"$$b \tag{M4.5}$$ and $$a \tag{M3.2}$$",
        "06_distil": "",
    },
    {CHENG: "cheng1995"},
)


def test_places():
    labels = {"M3.2": "eq-03-m3-2", "M4.5": "eq-04-m4-5"}  # what a chapter repeats has its home elsewhere
    assert Places({3: "03_score", 4: "04_product", 6: "06_distil"}, labels, {CHENG: "cheng1995"}) == TO


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("As chapter 03 said.", "As [chapter 03](03_score.ipynb) said."),
        ("Chapter 3's law", "[Chapter 3](03_score.ipynb)'s law"),
        ("**chapter\n03**", "**[chapter\n03](03_score.ipynb)**"),
        ("> see chapter\n> 03", "> see [chapter\n> 03](03_score.ipynb)"),
        ("chapter 03, 5 points", "[chapter 03](03_score.ipynb), 5 points"),
        ("chapters 03 to 06", "chapters [03](03_score.ipynb) to [06](06_distil.ipynb)"),
        ("Chapters 03, 04 and 06: 16", "Chapters [03](03_score.ipynb), 04 and [06](06_distil.ipynb): 16"),
        ("(chapters 03–06)", "(chapters [03](03_score.ipynb)–[06](06_distil.ipynb))"),
        ("By (M3.2) and (M4.5):", "By [(M3.2)](#eq-03-m3-2) and [(M4.5)](#eq-04-m4-5):"),
        ("| M3.2 |", "| [M3.2](#eq-03-m3-2) |"),
        ("so\n\n$$a \\tag{M4.5}$$\n", "so\n\n(eq-04-m4-5)=\n$$a \\tag{M4.5}$$\n"),
        ("> $$\n> a\n> \\tag{3, 4}\n> $$", "> (eq-04-3-4)=\n> $$\n> a\n> \\tag{3, 4}\n> $$"),
        ("a price of \\$5, chapter 03, \\$6", "a price of \\$5, [chapter 03](03_score.ipynb), \\$6"),
        ("[0, 1] (chapter 03)", "[0, 1] ([chapter 03](03_score.ipynb))"),
        (
            f"in [0, 1), chapter 03 [Cheng, 1995]({CHENG})",
            "in [0, 1), [chapter 03](03_score.ipynb) {cite:alp}`cheng1995`",
        ),
        (f"[Cheng (1995)]({CHENG}) says", "{cite:author}`cheng1995` ({cite:year}`cheng1995`) says"),
        (f"shift ([Cheng, 1995]({CHENG})).", "shift ({cite:alp}`cheng1995`)."),
        ("# A title (M3.2)\n\n## chapter 03", "# 04 · A title (M3.2)\n\n## chapter 03"),
    ],
)
def test_what_becomes_a_link(text: str, expected: str):
    assert link(text, "04_product", TO) == expected


@pytest.mark.parametrize(
    "text",
    [
        "This is chapter 04.",
        f"Chapter {max(PLANNED)} will tell.",
        "`chapter 03`, ``a ` (M3.2)`` and {cite}`(M3.2)`",
        "```\n# chapter 03\n(M3.2)\n```",
        "$x \\text{ of chapter 03}$, $$y \\text{ (M3.2)}$$",
        "[the last page, chapter 03](x.md) and ![alt of (M3.2)](x.png)",
        '<a href="x">chapter 03</a> <img alt="(M3.2)"> <!-- chapter 03 -->',
        "### Exercise 1.2 · chapter 03 once more",
        "> ## chapter 03",
        "three chapters, 03 of them; M3 and chapter 03b",
        "[the paper](https://example.org/1995)",
    ],
)
def test_what_stays(text: str):
    assert link(text, "04_product", TO) == text


@pytest.mark.parametrize("words", ["chapter 07", "chapters 03 and 07", "(M3.9)", "[Yi (1995)](https://doi.org/1)"])
def test_a_dead_reference_is_an_error(words: str):
    reference = re.escape(repr("07" if "chapters" in words else words))
    with pytest.raises(ValueError, match=f"04_product: {reference} leads nowhere"):
        link(f"As {words} says", "04_product", TO)


def test_pages_without_a_number_are_linked_too():
    assert link("# Title\n\nchapter 03", "intro", TO) == "# Title\n\n[chapter 03](03_score.ipynb)"


@pytest.mark.parametrize("page", [*TEXTS, "intro"])
def test_every_reference_of_the_book_leads_somewhere(page: str):
    to = places(TEXTS, PAPERS)
    text = TEXTS.get(page) or (ROOT / "book" / "intro.md").read_text("utf-8")
    linked = link(text, page, to)
    assert linked.count(".ipynb)") + linked.count("](#eq-") >= 3
    assert linked.count("(eq-") == len(TAG.findall(text)) == len(set(TAG.findall(text))), "one target for each tag"


def test_every_paper_has_an_address_of_its_own():
    assert len(PAPERS) == (ROOT / "book" / "refs.bib").read_text("utf-8").count("\n@") + 1


@pytest.mark.parametrize("page", TEXTS)
def test_citations_say_whom(page: str):
    """What JupyterLab shows is what the book computes from refs.bib."""
    from pybtex.database import parse_file

    entries = parse_file(str(ROOT / "book" / "refs.bib")).entries
    for words, url in re.findall(r"\[([^\[\]]*\d{4}\)?)\]\((https?:[^)\s]+)\)", TEXTS[page]):
        entry = entries[PAPERS[url]]
        names = [str(person.rich_last_names[-1]) for person in entry.persons["author"]]
        assert re.split(r" et al\.| and |,? \(?\d", words)[0].endswith(names[0]), words
        assert entry.fields["year"] in words, words


@pytest.mark.parametrize("page", TEXTS)
def test_no_roles(page: str):
    """JupyterLab and GitHub show them raw."""
    assert not re.findall(r"\{[a-z:]+\}`[^`]*`", TEXTS[page])

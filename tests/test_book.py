"""The built book, opened page by page in a browser. `make test` has just built it, warnings being errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser import browser, violations, watch
from playwright.sync_api import BrowserContext, Page

ROOT = Path(__file__).parent.parent
HTML = ROOT / "_build" / os.environ["MSD_TEACH_BUDGET"] / "_build" / "html"
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]
pytestmark = pytest.mark.slow

# What reaches beyond a phone's right edge and is not inside something that scrolls.
STICKING_OUT = """() => {
  const scrolls = (node) => node && !node.matches(".bd-main, .bd-content, html, body")
    && (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
  return [...document.querySelectorAll(".bd-article *")]
    .filter((node) => node.getBoundingClientRect().right > 401 && !scrolls(node.parentElement))
    .map((node) => node.outerHTML.slice(0, 120));
}"""

DRAWN = "node => node.matches('canvas') ? node.toDataURL() : node.currentSrc"


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserContext]:
    assert (HTML / "index.html").exists(), (
        "the book has not been built: `python book/build.py smoke`, as `make test` does"
    )
    with browser() as context:
        yield context


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, chromium: BrowserContext) -> Iterator[tuple[Page, list[str]]]:
    """A page of the book after its scripts have run, and its complaints."""
    page = chromium.new_page()
    complaints = watch(page)
    page.goto((HTML / f"{request.param}.html").as_uri(), wait_until="load")
    page.wait_for_function("!window.MathJax?.startup?.promise || window.MathJax.startup.promise.then(() => true)")
    yield page, complaints
    page.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Page:
    return opened[0]


def test_asks_for_nothing_outside_and_logs_no_error(opened: tuple[Page, list[str]]):
    assert opened[1] == []


def test_formulas_are_rendered(page: Page):
    formulas = page.locator("div.math, span.math")
    assert formulas.locator("mjx-container > svg").count() == formulas.count()
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert page.locator("mjx-container[tabindex]").count() == 0, "Tab goes from link to link, not through formulas"
    assert "$$" not in page.locator(".bd-article").inner_text()


def test_formulas_fit_between_the_side_bars(page: Page):
    page.set_viewport_size({"width": 1280, "height": 900})
    wide = "nodes => nodes.filter(n => n.scrollWidth > n.clientWidth + 2).map(n => n.textContent.slice(0, 40))"
    assert page.locator("div.math").evaluate_all(wide) == []


def test_every_image_says_what_it_shows(page: Page):
    images = page.locator(".bd-article img").evaluate_all(
        "images => images.map(image => [image.alt, image.naturalWidth])"
    )
    for alt, width in images:
        assert len(alt) >= 20
        assert "_images/" not in alt
        assert width > 0, f"a broken image: {alt}"


def test_explorables_move_with_the_keyboard(page: Page):
    explorables = page.locator("[data-explore]").all()
    assert explorables or "01_mean_shift" not in page.url
    for explorable in explorables:
        picture = explorable.locator("canvas, img").first
        picture.scroll_into_view_if_needed()
        drawn = []
        for key in ("Home", "End"):
            explorable.locator("input[type=range]").first.press(key)
            page.wait_for_timeout(500)
            drawn.append(picture.evaluate(DRAWN))
        assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_nothing_stands_in_a_readers_way(page: Page, theme: str, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    page.wait_for_timeout(200)
    assert violations(page) == []


def test_fits_a_phone(page: Page):
    page.set_viewport_size({"width": 400, "height": 800})
    try:
        assert page.evaluate(STICKING_OUT) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    finally:
        page.set_viewport_size({"width": 1200, "height": 900})


def test_wide_formulas_show_that_they_scroll(page: Page):
    """Covers move with the formula, shadows stay at the edges of its box: a shadow is seen where it goes on."""
    attached = "nodes => nodes.map(node => getComputedStyle(node).backgroundAttachment)"
    assert set(page.locator("div.math").evaluate_all(attached)) <= {"local, local, scroll, scroll"}


def test_links_lead_somewhere():
    places = {path.name: set(re.findall(r'\bid="([^"]+)"', path.read_text())) for path in HTML.glob("*.html")}
    for name in places:
        for page, place in re.findall(r'href="([^":/?#]*)#([^"]+)"', (HTML / name).read_text()):
            assert place in places[page or name], f"{name}: {page}#{place}"


def test_titles_are_numbered():
    chapters = [page for page in PAGES if (ROOT / "notebooks" / f"{page}.py").exists()]
    index = (HTML / f"{TOC['root']}.html").read_text()
    for name in chapters:
        title = re.search(r"<h1>(\d\d · [^<]+)<", (HTML / f"{name}.html").read_text())
        assert title and title[1].startswith(name[:2])
        assert index.count(title[1]) >= 1, "the side bar has the same title"


def test_downloads_give_the_executed_notebook():
    chapters = [page for page in PAGES if (ROOT / "notebooks" / f"{page}.py").exists()]
    assert chapters
    for name in chapters:
        page = (HTML / f"{name}.html").read_text()
        assert f'href="_sources/{name}.ipynb"' in page
        download = (HTML / "_sources" / f"{name}.ipynb").read_text()
        assert '"msd_teach"' in download
        assert "%pip install" in download and "%pip install" not in page, "it installs what is missing, unseen here"
        assert "](#eq-" not in download, "links are made for the book only"


def test_a_partial_book_says_what_is_missing(tmp_path: Path):
    """After one chapter of them all, and one that stopped in the middle: names and a command, not a traceback."""
    for folder in ("book", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    done = tmp_path / "executed" / "smoke"
    done.mkdir(parents=True)
    chapters = [page for page in PAGES if (ROOT / "notebooks" / f"{page}.py").exists()]
    (done / f"{chapters[0]}.ipynb").write_text(NOTEBOOK.format('{"msd_teach": {"key": "an older one"}}'))
    (done / f"{chapters[1]}.ipynb").write_text(NOTEBOOK.format("{}"))

    run = subprocess.run([sys.executable, "book/build.py", "smoke"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[0].endswith(f"at the budget smoke: {', '.join(chapters[1:])}.")
    assert "make book BUDGET=smoke" in run.stderr
    assert "Traceback" not in run.stderr


NOTEBOOK = '{{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}}'

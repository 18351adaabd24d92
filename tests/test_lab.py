"""JupyterLab opens a chapter as a notebook on a double click, and runs it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser, serving
from playwright.sync_api import expect

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the chapters: running one marks it as changed."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with serving([sys.executable, "-m", "jupyterlab", "--allow-root"], tmp_path, os.environ) as address:
        yield address


def test_a_double_click_opens_a_chapter_that_runs(lab: str):
    with browser() as chromium:
        page = chromium.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{lab}/lab/tree/notebooks?reset")
        page.locator(".jp-DirListing-item", has_text="01_mean_shift.py").dblclick()
        page.locator(".jp-NotebookPanel .jp-MarkdownOutput h1").first.wait_for()
        expect(page.locator(".jp-FileEditor")).to_have_count(0)

        page.locator(".jp-NotebookPanel .jp-Cell").first.click()
        output = page.locator(".jp-CodeCell .jp-OutputArea-output")
        for _ in range(120):  # cell by cell, until one of them prints or draws
            page.keyboard.press("Shift+Enter")
            page.wait_for_timeout(500)
            if output.count():
                break
        expect(output.first).to_be_visible()
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0

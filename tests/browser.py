"""A headless Chromium for the tests that look at pages: `with browser() as chromium: …`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from book.npm import fetched

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
OWN = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1", "http://localhost", "ws://localhost")

AXE = "axe-core@4.14.1", "axe.min.js", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"


def violations(page: Page, within: str = "html") -> list[str]:
    """What axe-core finds wrong within a selector, one line each; skipped where axe-core cannot be had, but not in CI."""
    script = fetched(*AXE)
    if script is None:
        message = f"{AXE[0]} could not be fetched: accessibility was not looked at"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    page.add_script_tag(content=script.read_text())
    found = page.evaluate("within => axe.run(within, { resultTypes: ['violations'] })", within)["violations"]
    return [f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@contextmanager
def browser() -> Iterator[BrowserContext]:
    """Chromium with an empty profile; the test is skipped where there is none, and fails in continuous integration."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        message = "no Chromium on this machine: the pages were not looked at"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=path, headless=True, args=FLAGS.split(), viewport={"width": 1200, "height": 900}
        )
        yield context
        context.close()


def watch(page: Page) -> list[str]:
    """A list that fills with what `page` should not do: ask for anything outside (that is refused), or log an error."""
    complaints: list[str] = []

    def route(route, request) -> None:
        if request.url.startswith(OWN):
            route.continue_()
        else:
            complaints.append(f"asked for {request.url}")
            route.abort()

    page.route("**/*", route)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints

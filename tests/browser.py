"""For the tests that look at pages: a headless Chromium, and a JupyterLab to look at."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")  # colours on their way
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


@contextmanager
def serving(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """The address of a JupyterLab that `command` starts in `folder`, which also holds its settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--IdentityProvider.token="]
    home = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    server = subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env={**env, **home, "MSD_TEACH_STATIC": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)

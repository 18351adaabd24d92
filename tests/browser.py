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

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
OWN = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1", "http://localhost", "ws://localhost")

# The WCAG contrast between each text's colour and the first opaque colour behind it: the five lowest, with their place.
CONTRAST = """(selector) => {
  const rgba = (css) => { const v = css.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const linear = (c) => (c <= 10.31 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const v = rgba(getComputedStyle(node).backgroundColor);
      if (v[3] > 0.5) return v;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll(selector)) {
    const text = [...node.childNodes].map((child) => (child.nodeType === 3 ? child.textContent : "")).join("");
    const seen = node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!text.trim() || !seen || node.closest("svg, mjx-container")) continue;
    const levels = [luminance(rgba(getComputedStyle(node).color)), luminance(behind(node))].sort((a, b) => b - a);
    found.push([(levels[0] + 0.05) / (levels[1] + 0.05), node.outerHTML.slice(0, 120)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
}"""


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

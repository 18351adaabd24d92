"""What a run of the chapters says while it lasts, instead of dots: what began, what is done, the time left.

How long a chapter takes is known from its last execution; before the first one, from `seconds.json`: at `smoke` as
once measured, two at a time on two cores, at `laptop` what the chapters themselves say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def said(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def expected(chapter: str, budget: str, root: Path = ROOT) -> float:
    """Seconds that a chapter will take; a minute where nothing is known."""
    last = root / "executed" / budget / f"{chapter}.ipynb"
    if last.exists():
        metadata = json.loads(last.read_text("utf-8"))["metadata"]
        if seconds := metadata.get("msd_teach", {}).get("seconds"):
            return seconds
    known = json.loads((root / "book" / "seconds.json").read_text("utf-8"))
    return known.get(budget, known["laptop"]).get(chapter, 60)


class Progress:
    """A plugin of pytest. The time left assumes that what is open will be as much slower as what is done was."""

    def __init__(
        self, budget: str, workers: int, say: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ):
        self.budget, self.workers, self.say, self.now = budget, workers, say, now
        self.open = dict[str, float]()
        self.began = dict[str, float]()
        self.planned = self.spent = 0.0
        self.done = self.total = 0

    def expect(self, nodes: Iterable[str]) -> None:
        names = [Path(node.split("::")[0]).stem for node in nodes if node.startswith("notebooks/")]
        self.open = {name: expected(name, self.budget) for name in names}
        self.total = len(names)

    def left(self) -> float:
        """Seconds until all chapters are done, shared by the workers, but no less than the longest of them."""
        slower = self.spent / self.planned if self.planned else 1.0
        running = {name: self.now() - began for name, began in self.began.items()}
        rest = [max(slower * seconds - running.get(name, 0.0), 0.0) for name, seconds in self.open.items()]
        return max(sum(rest) / self.workers, *rest) if rest else 0.0

    def begin(self, name: str) -> None:
        self.began[name] = self.now()
        self.say(f"{name}: began, about {said(self.open[name])}")

    def end(self, name: str, how: str) -> None:
        seconds, planned = self.now() - self.began.pop(name), self.open.pop(name)
        if how != "kept":
            self.spent, self.planned = self.spent + seconds, self.planned + planned
        self.done += 1
        what = "as it was, nothing that it reads has changed" if how == "kept" else f"{how} in {said(seconds)}"
        rest = f"; about {said(self.left())} left" if self.open else ""
        self.say(f"{name}: {what}. {self.done} of {self.total}{rest}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self.total:  # each worker says the same
            self.expect(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if (name := Path(nodeid.split("::")[0]).stem) in self.open:
            self.begin(name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and (name := Path(report.nodeid.split("::")[0]).stem) in self.began:
            self.end(name, "kept" if ("kept", True) in report.user_properties else report.outcome)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot for a chapter: it has its line."""
        if report.when == "call" and report.nodeid.startswith("notebooks/"):
            return report.outcome, "", ""
        return None

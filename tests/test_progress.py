"""The lines that stand for dots while chapters run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from book import progress
from book.progress import Progress, expected

ROOT = Path(__file__).parent.parent


def test_every_chapter_has_a_time_before_its_first_run():
    known = json.loads((ROOT / "book" / "seconds.json").read_text())
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.py")}
    assert known.keys() == {"smoke", "laptop"}
    assert all(times.keys() == chapters for times in known.values())


def test_a_chapter_takes_as_long_as_the_last_time(tmp_path: Path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "seconds.json").write_text('{"laptop": {"a": 7}}')
    assert [expected("a", "gpu", tmp_path), expected("b", "gpu", tmp_path)] == [7, 60]
    last = tmp_path / "executed" / "gpu" / "a.ipynb"
    last.parent.mkdir(parents=True)
    last.write_text('{"metadata": {}}')
    assert expected("a", "gpu", tmp_path) == 7
    last.write_text('{"metadata": {"msd_teach": {"seconds": 90.5}}}')
    assert expected("a", "gpu", tmp_path) == 90.5


def test_the_time_left_follows_what_was_measured(monkeypatch: pytest.MonkeyPatch):
    """Two at a time; the first chapter takes twice as long as expected, and so will the others, one of them kept."""
    monkeypatch.setattr(progress, "expected", lambda name, _: {"a": 10.0, "b": 40.0, "c": 30.0, "d": 1.0}[name])
    clock, lines = [0.0], list[str]()
    run = Progress("laptop", 2, lines.append, lambda: clock[0])
    run.expect(f"notebooks/{name}.py::{name}.py" for name in "abcd")
    assert run.left() == 40.5
    run.begin("a")
    run.begin("b")
    clock[0] = 20.0
    run.end("a", "passed")
    assert run.left() == max((60 + 60 + 2) / 2, 60)
    run.begin("d")
    run.end("d", "kept")
    run.begin("c")
    assert run.left() == 60
    clock[0] = 100.0
    run.end("b", "failed")
    run.end("c", "passed")
    assert run.left() == 0
    assert lines[:3] == ["a: began, about 10 s", "b: began, about 40 s", "a: passed in 20 s. 1 of 4; about 61 s left"]
    assert lines[-2:] == ["b: failed in 2 min. 3 of 4; about 0 s left", "c: passed in 80 s. 4 of 4"]

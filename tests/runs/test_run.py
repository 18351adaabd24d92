import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import walk
from walk import go

from msd_teach.runs import run


def same(a: Path, b: Path) -> None:
    """Two runs that ended alike: result, previews, metrics but for the seconds."""
    for name in ("result.png", "previews/000010.png", "previews/000030.png", "settings.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    columns = run.metrics(a), run.metrics(b)
    for name in columns[0].keys() - {"seconds"}:
        assert torch.equal(columns[0][name], columns[1][name]), name


def test_a_run_leaves_its_settings_its_metrics_and_its_pictures(tmp_path):
    x, last = go(tmp_path / "run")
    found = run.metrics(tmp_path / "run")
    assert found["step"].tolist() == list(range(30))
    assert found["calls"][-1] == last.calls == 30
    assert run.settings_of(tmp_path / "run")["steps"] == 30
    assert (tmp_path / "run" / "result.png").read_text() == str(x.tolist())
    assert sorted(path.name for path in (tmp_path / "run" / "previews").iterdir()) == [f"0000{k}0.png" for k in "123"]
    again, _ = go(tmp_path / "run")
    assert torch.equal(again, x), "a finished run is read, not repeated"
    assert len(run.metrics(tmp_path / "run")["step"]) == 30


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_where_an_unbroken_one_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, walk.__file__, tmp_path / "killed"], stderr=subprocess.DEVNULL)
        begun = time.monotonic()
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.01)
        time.sleep(0.5 * torch.rand((), generator=generator).item())
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills > 2
    go(tmp_path / "killed")
    go(tmp_path / "unbroken")
    same(tmp_path / "killed", tmp_path / "unbroken")


def test_nan_stops_a_run_and_the_last_checkpoint_stays(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 17 .*not finite; .*checkpoint.pt is good, of step 14;"):
        go(tmp_path / "run", break_at=17)
    assert not (tmp_path / "run" / "result.png").exists()
    go(tmp_path / "run")  # the network was at fault, not the settings
    go(tmp_path / "unbroken")
    same(tmp_path / "run", tmp_path / "unbroken")


def test_a_kill_between_checkpoint_and_preview_loses_neither(tmp_path, monkeypatch):
    save = run.Checkpoint.save

    def killed(checkpoint, **numbers):
        save(checkpoint, **numbers)
        if numbers["step"] == 9:  # a preview is due at this step, too
            raise SystemExit("killed")

    monkeypatch.setattr(run.Checkpoint, "save", killed)
    with pytest.raises(SystemExit):
        go(tmp_path / "killed")
    monkeypatch.setattr(run.Checkpoint, "save", save)
    go(tmp_path / "killed")
    go(tmp_path / "unbroken")
    same(tmp_path / "killed", tmp_path / "unbroken")


def test_a_second_process_is_refused_while_the_first_is_at_work(tmp_path, monkeypatch):
    refused = []

    def second(pause):
        if not refused:
            with pytest.raises(ValueError, match=r"run is in use by another process; wait for it, or name another"):
                refused.append(go(tmp_path / "run"))
            refused.append("yes")

    monkeypatch.setattr(walk.time, "sleep", second)
    go(tmp_path / "run")
    assert refused == ["yes"]
    go(tmp_path / "alone")
    same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "METRICS", "/dev/full")
    monkeypatch.setattr(run, "_cut", lambda path, count: None)
    with pytest.raises(ValueError, match=r"/dev/full cannot be written: No space left"):
        go(tmp_path / "run")


def test_folders_of_other_runs_and_damaged_ones_are_refused(tmp_path):
    folder = tmp_path / "run"
    go(folder)
    with pytest.raises(ValueError, match=r"run is of other settings: seed was 3 and is 4; name another folder"):
        go(folder, seed=4)
    (folder / "result.png").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:20]))
    with pytest.raises(ValueError, match=r"metrics.jsonl has 20 lines and the checkpoint is of step 30"):
        go(folder)
    (folder / "metrics.jsonl").write_text("{" + "".join(lines))
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
        go(folder)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        run.settings_of(folder)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"letters holds thesis.tex and no settings.json; name an empty one"):
        go(tmp_path / "letters")
    for read in (run.metrics, run.settings_of):
        with pytest.raises(ValueError, match=r"nowhere'; it must be that of a run"):
            read(tmp_path / "nowhere")


def test_a_line_that_a_kill_left_half_written_does_not_count(tmp_path):
    go(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30})[:7])
    assert len(run.metrics(tmp_path / "run")["step"]) == 30

"""Files that are whole or not there, and checkpoints that know the settings they belong to."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msd_teach.files import Checkpoint, load, save_atomically
from msd_teach.schedules import annealed


class Averaged:
    """A method with a memory, as a low-rank copy of a network is one."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.mean + torch.randn(x.shape, generator=generator)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


class Run:
    """The shape of a text-to-2D run: a renderer, Adam, a method with a state, a generator, and what the last step said."""

    def __init__(self, path: Path, **changed: object):
        self.renderer = nn.Linear(2, 3)
        with torch.no_grad():
            self.renderer.weight.copy_(torch.arange(6.0).reshape(3, 2))
            self.renderer.bias.zero_()
        self.optimizer = torch.optim.Adam(self.renderer.parameters(), 0.1)
        self.method, self.generator = Averaged(), torch.Generator().manual_seed(1)
        parts = {"renderer": self.renderer, "optimizer": self.optimizer, "method": self.method}
        settings = {"prompt": "a red house", "rate": 0.1, "method": "Averaged()", "stop_level": math.nan} | changed
        self.checkpoint = Checkpoint(path, settings, **parts, generator=self.generator)
        self.done = self.checkpoint.load()

    def go(self, steps: int, stop: int | None = None) -> dict[str, Any]:
        """To the end, or killed in the middle of step `stop`."""
        for step in range(self.done["step"] + 1 if self.done else 0, steps):
            x = self.renderer(torch.randn(4, 2, generator=self.generator))
            loss = (x - self.method(x, self.generator)).square().sum() / 2
            if step == stop:
                raise KeyboardInterrupt
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.done = {"step": step, "loss": loss.item(), "level": None}
            self.checkpoint.save(**self.done)
        assert self.done is not None
        return self.done


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, stop):
    whole, again, broken = (Run(tmp_path / f"{name}.pt") for name in ("whole", "again", "broken"))
    last = whole.go(7)
    assert again.go(7) == last
    with pytest.raises(KeyboardInterrupt):
        broken.go(7, stop)
    resumed = Run(tmp_path / "broken.pt")
    assert resumed.done is not None and resumed.done["step"] == stop - 1
    assert resumed.go(7) == last
    for a, b, c in zip(*(run.renderer.parameters() for run in (whole, again, resumed)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert torch.equal(resumed.method.mean, whole.method.mean)


def test_tensors_are_parts_too(tmp_path):
    x, other = torch.rand(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    Checkpoint(tmp_path / "x.pt", {}, x=x).save()
    assert Checkpoint(tmp_path / "x.pt", {}, x=other).load() == {}
    assert torch.equal(other, x) and other.requires_grad
    with pytest.raises(ValueError, match=r"x\.pt is of another x; delete it"):
        Checkpoint(tmp_path / "x.pt", {}, x=torch.zeros(4, 2)).load()
    with pytest.raises(ValueError, match=r"x\.pt is of another x; delete it"):  # a cast would not go on bit for bit
        Checkpoint(str(tmp_path / "x.pt"), {}, x=torch.zeros(3, 2, dtype=torch.float16)).load()


def test_other_settings_are_refused_by_name_and_value(tmp_path):
    path = tmp_path / "run.pt"
    Run(path).go(2)
    with pytest.raises(ValueError, match=r"run\.pt is of other settings: rate was 0.1 and is 0.2; delete it"):
        Run(path, rate=0.2)
    with pytest.raises(ValueError, match='prompt was "a red house" and is "a blue house", views was None and is true'):
        Run(path, prompt="a blue house", views=True)
    assert Run(path).done is not None  # a refusal leaves the file, and NaN is the same setting as NaN


def test_other_parts_are_refused(tmp_path):
    path, settings = tmp_path / "run.pt", {"rate": 1.0}
    Checkpoint(path, settings, network=nn.Linear(2, 3)).save()
    with pytest.raises(ValueError, match=r"run\.pt is of another network; delete it"):
        Checkpoint(path, settings, network=nn.Linear(3, 3)).load()
    with pytest.raises(ValueError, match=r"run\.pt has the parts network; delete it"):
        Checkpoint(path, settings, net=nn.Linear(2, 3)).load()


def test_a_part_of_another_kind_is_refused(tmp_path):
    """Each kind says it with an error of its own: a TypeError, an AttributeError, a RuntimeError."""
    kinds = [torch.zeros(2), torch.Generator(), nn.Linear(2, 2), torch.optim.Adam([torch.zeros(2)])]
    for old, new in itertools.permutations(kinds, 2):
        Checkpoint(tmp_path / "run.pt", {}, part=old).save()
        with pytest.raises(ValueError, match=r"run\.pt is of another part; delete it"):
            Checkpoint(tmp_path / "run.pt", {}, part=new).load()


def test_a_flipped_bit_is_found(tmp_path):
    """Anywhere in the numbers of a part, which torch reads without looking at the checksums of its own file."""
    path, x = tmp_path / "x.pt", torch.randn(64, generator=torch.Generator().manual_seed(0))
    Checkpoint(path, {}, x=x).save()
    whole = path.read_bytes()
    start = whole.index(x.numpy().tobytes())
    for place in range(start, start + 4 * 64, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.pt is damaged \(.* fails its checksum\); delete it"):
            Checkpoint(path, {}, x=torch.zeros(64)).load()


@pytest.mark.parametrize("damage", ["0 bytes", "half", "text", "foreign", "another file"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "run.pt"
    Run(path).go(2)
    content = path.read_bytes()
    path.write_bytes({"0 bytes": b"", "half": content[: len(content) // 2]}.get(damage, b"hello\n"))
    if damage == "foreign":
        torch.save(Averaged(), path)  # a class, which only running code could read
    elif damage == "another file":
        torch.save({"step": 3, "network": {}}, path)
    with pytest.raises(
        ValueError, match=r"run\.pt is (damaged|no checkpoint, or one of an older version).*; delete it"
    ):
        Run(path)
    path.unlink()
    assert Run(path).done is None


@pytest.mark.parametrize(
    ("settings", "part", "numbers", "message"),
    [
        ({"rate": torch.ones(2)}, torch.zeros(1), {}, r"rate is tensor.*; it must be of JSON's types"),
        ({}, lambda: None, {}, r"part is <function.*; it must be a tensor, a generator, or have a state_dict"),
        ({}, torch.zeros(1), {"step": np.int64(3)}, r"step is np.int64\(3\); it must be of JSON's types"),
    ],
)
def test_what_could_not_be_read_again_is_refused_before_it_is_written(tmp_path, settings, part, numbers, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path / "run.pt", settings, part=part).save(**numbers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [lambda: None, [torch.zeros(1000), np.float64(1)], Path("a")])
def test_a_value_that_cannot_be_kept_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "value.pt"
    save_atomically([1.0], path)
    with pytest.raises(ValueError, match=r"value for .*value\.pt (holds|cannot be kept)"):
        save_atomically([torch.zeros(1000), value], path)
    assert load(path) == [1.0] and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_a_file_and_a_full_disk_are_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match=r"cache/run\.pt cannot be written: .*; make room for it, or choose another"):
        save_atomically(1, tmp_path / "cache" / "run.pt")
    # a limit on the size of files stands for a full disk
    program = """
import resource, sys, torch
from pathlib import Path
from msd_teach.files import save_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_atomically(torch.zeros(10), Path(sys.argv[1]))
try:
    save_atomically(torch.zeros(100_000), Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""
    path = tmp_path / "full" / "value.pt"
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "value.pt cannot be written: File too large" in run.stdout
    assert torch.equal(load(path), torch.zeros(10)) and len(list(path.parent.iterdir())) == 1


def write_for_ever(path: Path) -> None:
    for value in itertools.count():
        save_atomically([torch.full((20_000,), float(value)) for _ in range(10)], path)


def test_killed_at_any_moment_a_writer_leaves_a_whole_file(tmp_path):
    """Two writers of one file, killed without warning while they write: what they leave can always be read."""
    path, chance, fork = tmp_path / "value.pt", random.Random(0), multiprocessing.get_context("fork")
    for _ in range(15):
        path.unlink(missing_ok=True)
        writers = [fork.Process(target=write_for_ever, args=(path,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        while not path.exists():
            time.sleep(0.001)
        for writer in writers:
            time.sleep(0.05 * chance.random())
            writer.kill()
            writer.join()
            value = torch.stack(load(path))
            assert value.shape == (10, 20_000) and (value == value[0, 0]).all()
    assert list(tmp_path.glob("*.partial"))  # some were killed in the middle of a write


def test_a_setting_that_is_a_lambda_is_refused(tmp_path):
    """Two lambdas say the same whatever they do, so that a run of other settings would be taken for this one."""
    for schedule in (lambda progress: 0.1, lambda progress: 0.2):
        with pytest.raises(ValueError, match=r"method is .*<lambda>.*; a lambda does not say what it does"):
            Checkpoint(tmp_path / "run.pt", {"method": repr(annealed(schedule))})

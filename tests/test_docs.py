"""The programs of the README and of CONTRIBUTING run as printed, and what the documents point at is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import msd_teach

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/course.md",
    "docs/design.md",
    "docs/drop-in.md",
    "docs/invariants.md",
    "docs/studies.md",
)


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_smallest_program_prints_what_the_readme_says():
    program = programs("README.md")[0]
    promised = re.search(r"ends at \((\S+), (\S+)\), where the log-density is (\S+); it began at (\S+)\.\n", README)
    assert promised is not None
    x, y, end, start = (float(number.replace("−", "-")) for number in promised.groups())
    scope: dict = {}
    exec(program, scope)
    assert torch.allclose(scope["x"], torch.tensor([[x, y]], dtype=torch.float64), atol=1e-4)
    assert abs(scope["density"].log_prob(scope["x"]).item() - end) < 0.01
    first = re.search(r"x = (torch.tensor.*?\))\s+#", program)
    assert first is not None
    assert abs(scope["density"].log_prob(eval(first.group(1), scope)).item() - start) < 0.01


def test_the_readme_has_every_public_name():
    assert not [name for name in msd_teach.__all__ if f"`{name}`" not in README and f"`msd_teach.{name}`" not in README]


def test_a_method_in_twenty_lines():
    """It runs, climbs and is priced; its noise cancels to first order: no draw is far from mean shift at its level."""
    program, clipping = programs("CONTRIBUTING.md")
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    scope: dict = {}
    exec(program, scope)
    density, x, optimizer = scope["density"], scope["x"], scope["optimizer"]
    start = density.sample(100, sigma=0.3, generator=torch.Generator().manual_seed(0))
    assert scope["info"].calls == 2 * 100
    assert optimizer.param_groups[0]["lr"] < 1e-6, "the schedule has run to its end"
    assert density.log_prob(x).mean() > density.log_prob(start).mean() + 5
    # One Gaussian N(0, 1) has the linear denoiser z/(1 + σ²), for which the noise cancels entirely.
    points = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = scope["antithetic"](lambda z, sigma: z / (1 + sigma**2), points, 0.5, torch.Generator().manual_seed(2))
    torch.testing.assert_close(target.value, points / (1 + 0.11**2))
    exec(clipping, scope)
    before = x.detach().clone()
    x.grad = torch.full_like(x, 100.0)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert abs((x.detach() - before).norm() - 1) < 1e-6


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_is_there(page: str):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    files = re.findall(r"`([\w/]+\.(?:py|md|yml|toml|txt))`", text)
    anywhere = [ROOT, ROOT / "msd_teach"]
    assert not [
        file for file in files if not any((folder / file).exists() for folder in anywhere) and "NN_" not in file
    ]


def test_every_invariant_names_tests_that_exist():
    text = (ROOT / "docs" / "invariants.md").read_text()
    entries = re.findall(r"^(\d+)\. (.*)$", text, re.M)
    assert [int(number) for number, _ in entries] == list(range(1, 13))
    for number, entry in entries:
        held = re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", entry)
        assert held, number
        for file, names in held:
            tree = ast.parse((ROOT / file).read_text())
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert set(re.findall(r"`(test_\w+)`", names)) <= there, (number, file)


def test_the_table_of_places_names_what_is_there():
    """`targets.py` (`MSD`) in docs/design.md means that MSD is defined in targets.py."""
    text = (ROOT / "docs" / "design.md").read_text()
    named = re.findall(r"`([\w/]+\.py)` \((.*?)\)", text)
    assert len(named) > 8
    for file, words in named:
        source = (ROOT / "msd_teach" / file).read_text()
        for word in re.findall(r"`(\w+)(?:\.(\w+))?`", words):
            for name in filter(None, word):
                assert re.search(rf"(def|class) {name}\b", source), (file, name)

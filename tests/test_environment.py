"""What gets installed and published: pyproject.toml, constraints.txt, conda, pixi and the workflows agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"torch": "pytorch"}


def requirements(*extras: str) -> list[Requirement]:
    """The core dependencies and those of `extras`."""
    return [
        Requirement(line) for lines in (PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras)) for line in lines
    ]


def environment(name: str) -> dict[str, Requirement]:
    """The packages of a conda environment file, whether conda or pip installs them."""
    entries = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    conda = [entry for entry in entries if isinstance(entry, str)]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"] if not line.startswith("-")]
    return {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, conda + pip)}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and line[0] != "#")
    }


@pytest.mark.parametrize("file", ["environment.yml", "environment-gpu.yml"])
def test_conda_environment_has_what_pyproject_asks_for(file: str):
    offered = environment(file)
    for wanted in requirements("notebooks", "book", "diffusion", "dev"):
        name = CONDA_NAMES.get(wanted.name, canonicalize_name(wanted.name))
        assert name in offered
        assert offered[name].specifier == wanted.specifier, name
    assert str(offered["python"].specifier) == PROJECT["requires-python"]


def test_gpu_environment_extends_the_other_by_what_comes_compiled():
    small, large = environment("environment.yml"), environment("environment-gpu.yml")
    assert small.items() <= large.items()
    assert large.keys() - small.keys() == {"cuda-version", "pytorch-gpu", "tiny-cuda-nn"}
    assert all(large["cuda-version"].specifier.contains(version) for version in ("12.9", "13.0"))


def test_the_package_index_can_take_every_requirement():
    """It refuses a wheel whose extra names an address."""
    assert not [wanted for wanted in requirements(*EXTRAS) if wanted.url]


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins()
    for wanted in requirements("notebooks", "book", "diffusion", "dev"):
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted


def test_pixi_knows_the_extras_and_takes_the_same_from_conda():
    pixi, gpu = PYPROJECT["tool"]["pixi"], environment("environment-gpu.yml")
    assert {"cpu", "cuda"} <= pixi["environments"].keys()
    for features in pixi["environments"].values():
        assert set(features) <= EXTRAS.keys() | pixi["feature"].keys()
    for feature in pixi["feature"].values():
        assert feature["dependencies"].keys() == {"cuda-version", "pytorch-gpu", "tiny-cuda-nn"}
        for name in ("pytorch-gpu", "tiny-cuda-nn"):
            assert feature["dependencies"][name] == str(gpu[name].specifier)


def test_one_version():
    import msd_teach

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert PROJECT["version"] == msd_teach.__version__ == cited["version"]
    assert PROJECT["license"].split(" AND ") == cited["license"]


def test_workflows_and_pages_ask_for_targets_and_extras_that_exist():
    targets = set(re.findall(r"^([\w.]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    asked = list[str]()
    for path in [*(ROOT / ".github" / "workflows").iterdir(), ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        text = path.read_text("utf-8")
        asked += re.findall(r"(?:run: |^|\| `)make (\w+)", text, re.M)
        for extras in re.findall(r"(?:msd_teach|\.)\[([\w,]+)\]", text):
            assert set(extras.split(",")) <= EXTRAS.keys(), path
    assert len(asked) > 8
    assert set(asked) <= targets


def test_what_a_windows_reader_types_has_windows_paths():
    page = (ROOT / "book" / "install.md").read_text("utf-8")
    (windows,) = re.findall(r"```powershell\n(.*?)```", page, re.S)
    assert "/bin/" not in windows and "\\Scripts\\" in windows
    assert ".venv/bin" not in page

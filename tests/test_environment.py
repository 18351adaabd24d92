"""What gets installed: pyproject.toml, constraints.txt and the conda environments agree."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
    conda = [entry.replace("cuda-version=", "cuda-version==") for entry in entries if isinstance(entry, str)]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"] if not line.startswith("-")]
    return {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, conda + pip)}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and line[0] != "#")
    }


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("environment.yml", ("notebooks", "book", "diffusion", "dev")),
        ("environment-gpu.yml", ("notebooks", "book", "diffusion", "dev", "gpu")),
    ],
)
def test_conda_environment_has_what_pyproject_asks_for(file: str, extras: tuple[str, ...]):
    offered = environment(file)
    for wanted in requirements(*extras):
        name = CONDA_NAMES.get(wanted.name, canonicalize_name(wanted.name))
        assert name in offered
        assert offered[name].specifier == wanted.specifier, name
        assert offered[name].url == wanted.url
    assert str(offered["python"].specifier) == PROJECT["requires-python"]


def test_gpu_environment_extends_the_other():
    small, large = environment("environment.yml"), environment("environment-gpu.yml")
    assert small.items() <= large.items()
    assert {"cuda-toolkit", "ninja", "tinycudann"} <= large.keys() - small.keys()


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins()
    for wanted in requirements("notebooks", "book", "diffusion", "dev"):
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted

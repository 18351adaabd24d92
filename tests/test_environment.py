"""What gets installed: pyproject.toml, constraints.txt and the conda environments agree, and the wheel is whole."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
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


@pytest.mark.slow
def test_the_wheel_holds_what_the_package_reads(tmp_path: Path):
    """Stored results, weights, scripts and the type marker; and nothing of the tests or the chapters."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
    ]
    subprocess.run([*pip, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {path for path in (ROOT / "msd_teach").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in package} <= inside
    assert {f"msd_teach/results/{path.name}" for path in (ROOT / "results").glob("*.json")} <= inside
    assert {"msd_teach/results/paper.json", "msd_teach/lesson/web/controls.js", "msd_teach/py.typed"} <= inside
    assert "msd_teach/pocket/weights/unet/diffusion_pytorch_model.safetensors" in inside
    own = {name.split("/")[0] for name in inside}
    assert own == {"msd_teach", f"msd_teach-{PROJECT['version']}.dist-info", f"msd_teach-{PROJECT['version']}.data"}

    unpacked = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(unpacked)
    program = "from msd_teach.runs import records; print(records.RESULTS, len(records.read('paper')['table2']))"
    run = subprocess.run([sys.executable, "-c", program], cwd=unpacked, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(unpacked / "msd_teach" / "results"), "18"]

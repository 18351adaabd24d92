"""The wheel is whole: in an empty environment and an empty folder the chapters are there, and one of them runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import pytest
from browser import serving

from msd_teach.lesson import copies

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
BIN = "Scripts" if os.name == "nt" else "bin"
EXECUTE = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=600).execute()
nbformat.write(notebook, sys.argv[1])
"""
READ = """
import msd_teach
from msd_teach.pocket import WEIGHTS
from msd_teach.runs import records
print(records.RESULTS, WEIGHTS, len(records.read('paper')['table2']))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    subprocess.run([*pip, ROOT], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def empty(wheel: Path) -> Path:
    """An environment with the wheel, which cannot be written to; other packages are lent by this one, not our own."""
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (package,) = environment.rglob("site-packages/msd_teach")
    (package.parent / "lent.pth").write_text(sysconfig.get_path("purelib"))
    for path in (package, *package.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return environment


def outside(**more: str) -> dict[str, str]:
    """The variables of a shell that knows nothing of this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MSD_TEACH_STATIC")} | more


def said(command: list[str | Path], folder: Path, **variables: str) -> str:
    run = subprocess.run(command, cwd=folder, env=outside(**variables), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_install_cell_does_nothing_where_the_package_is(tmp_path: Path):
    """It is the first cell of every copy, in words that IPython can run and that ask for this version."""
    from IPython.core.inputtransformer2 import TransformerManager

    for path in copies.copy_chapters(tmp_path):
        cell = nbformat.read(path, 4).cells[0]
        scope: dict = {}
        exec(TransformerManager().transform_cell(cell.source), scope)  # get_ipython is not defined
        assert f"msd_teach[notebooks,diffusion]=={VERSION}" in cell.source
    assert len(list(tmp_path.iterdir())) == len(list((ROOT / "notebooks").glob("*.py")))


def test_copies_leave_the_readers_work_alone(tmp_path: Path):
    first, *others = copies.copy_chapters(tmp_path)
    first.write_text("answers")
    others[0].unlink()
    assert copies.copy_chapters(tmp_path) == [others[0]]
    assert first.read_text() == "answers"


@pytest.mark.slow
def test_the_wheel_holds_what_the_package_reads(wheel: Path):
    """Chapters, stored results, weights, scripts and the type marker; and nothing of the tests."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {path for path in (ROOT / "msd_teach").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in package} <= inside
    assert {f"msd_teach/results/{path.name}" for path in (ROOT / "results").glob("*.json")} <= inside
    assert {f"msd_teach/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.py")} <= inside
    assert {"msd_teach/results/paper.json", "msd_teach/lesson/web/controls.js", "msd_teach/py.typed"} <= inside
    assert "msd_teach/pocket/weights/unet/diffusion_pytorch_model.safetensors" in inside
    own = {name.split("/")[0] for name in inside}
    assert own == {"msd_teach", f"msd_teach-{VERSION}.dist-info", f"msd_teach-{VERSION}.data"}


@pytest.mark.slow
def test_a_chapter_runs_from_the_wheel_alone(empty: Path, tmp_path: Path):
    """In an empty folder, and the package stays as it was installed."""
    (package,) = empty.rglob("site-packages/msd_teach")
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    results, weights, rows = said([empty / BIN / "python", "-c", READ], tmp_path).split()
    assert (Path(results), Path(weights), rows) == (package / "results", package / "pocket" / "weights", "18")

    copied = said([empty / BIN / "msd-teach", "chapters", "here"], tmp_path)
    assert "Next: msd-teach lab here" in copied
    chapter = tmp_path / "here" / "00_start_here.ipynb"
    python = [empty / BIN / "python", "-c", EXECUTE, chapter]
    said(python, tmp_path, MSD_TEACH_BUDGET="smoke", MSD_TEACH_CACHE=str(tmp_path / "cache"))
    code = [cell for cell in nbformat.read(chapter, 4).cells if cell.cell_type == "code"]
    assert code[0].outputs == []
    assert all(cell.execution_count for cell in code if cell.source)
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before


@pytest.mark.slow
def test_the_lab_serves_the_chapters(empty: Path, tmp_path: Path):
    app = outside(JUPYTERLAB_DIR=str(Path(sys.prefix) / "share" / "jupyter" / "lab"))  # it is looked for beside Python
    with serving([str(empty / BIN / "msd-teach"), "lab", "here"], tmp_path, app) as address:
        assert urllib.request.urlopen(f"{address}/lab/tree/00_start_here.ipynb").status == 200
        listed = json.load(urllib.request.urlopen(f"{address}/api/contents"))["content"]
    assert {entry["name"] for entry in listed} == {f"{path.stem}.ipynb" for path in (ROOT / "notebooks").glob("*.py")}

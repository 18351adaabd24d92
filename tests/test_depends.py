"""A chapter is executed again when what it depends on has changed, and only then."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from book.depends import ROOT, dependencies, fingerprint

SMALL = {
    "msd_teach/__init__.py": "from .climb import walk\nfrom .far.away import moon\n",
    "msd_teach/climb.py": "from . import ground\ndef walk(): return ground.flat\n",
    "msd_teach/ground.py": "flat = 0\n",
    "msd_teach/far/__init__.py": "",
    "msd_teach/far/away.py": "moon = 1\n",
    "msd_teach/show/__init__.py": '"""Figures."""\n',
    "msd_teach/show/plot.py": "def plot():\n    from ..ground import flat\n    from .web import page\n",
    "msd_teach/show/other.py": "",
    "msd_teach/show/web/__init__.py": "page = 1\n",
    "msd_teach/show/web/page.js": "",
    "msd_teach/show/data/numbers.bin": "",
    "msd_teach/runs/__init__.py": "",
    "msd_teach/runs/records.py": 'RESULTS = "results"\ndef read(name): ...\n',
    "msd_teach/latent/__init__.py": "",
    "msd_teach/latent/loading.py": "",
    "msd_teach/pocket/__init__.py": "from ..latent.loading import BUNDLED\n",
    "msd_teach/pocket/weights/unet/net.bin": "",
    "results/one.json": "",
    "results/two.json": "",
    "notebooks/chapter.py": "",
    "constraints.txt": "torch==1\n",
}
EVERYTHING = {name for name in SMALL if name.startswith(("msd_teach", "results"))}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in SMALL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


INIT, CLIMB, GROUND = (f"msd_teach/{name}.py" for name in ("__init__", "climb", "ground"))
RECORDS = {INIT, "msd_teach/runs/__init__.py", "msd_teach/runs/records.py"}
PLOT = {name for name in SMALL if name.startswith("msd_teach/show/web")} | {
    *(INIT, GROUND, "msd_teach/show/__init__.py", "msd_teach/show/plot.py", "msd_teach/show/data/numbers.bin")
}
LOADED = {name for name in SMALL if name.startswith(("msd_teach/latent", "msd_teach/pocket"))} | {INIT}


@pytest.mark.parametrize(
    ("chapter", "wanted"),
    [
        ("import math", set()),
        ("from msd_teach import walk", {INIT, CLIMB, GROUND}),
        ("from msd_teach import climb as up", {INIT, CLIMB, GROUND}),
        ("from msd_teach.climb import walk", {INIT, CLIMB, GROUND}),
        ("import msd_teach.climb as up", {INIT, CLIMB, GROUND}),
        ("from msd_teach.show import plot", PLOT),
        ("from msd_teach.show.web import page", {name for name in PLOT if "plot" not in name} - {GROUND}),
        ("from msd_teach.latent.loading import load", LOADED),  # the bundled model hands itself to the loader
        ("import msd_teach", EVERYTHING),
        ("import msd_teach.climb", EVERYTHING),
        ("from msd_teach import *", EVERYTHING),
        ("from msd_teach import nothing_known", EVERYTHING),
        ("from msd_teach.gone import x", EVERYTHING),
        ("import importlib; importlib.import_module(name)", EVERYTHING),
        ("from msd_teach.runs import records", RECORDS),
        ("from msd_teach.runs import records; records.read('two')", RECORDS | {"results/two.json"}),
        ("from msd_teach.runs import records; [records.read(n) for n in names]", RECORDS | {"results/*.json"}),
        ("from msd_teach.runs import records; [*map(records.read, names)]", RECORDS | {"results/*.json"}),
        ("from msd_teach.runs import records as r; r.read('one')", RECORDS | {"results/*.json"}),
        ("from msd_teach.runs.records import read; read('one')", RECORDS | {"results/*.json"}),
        ("import msd_teach.runs.records as r; r.read('one')", RECORDS | {"results/*.json"}),
    ],
)
def test_imports_are_followed(small: Path, chapter: str, wanted: set[str]):
    (path := small / "notebooks" / "chapter.py").write_text(chapter)
    found = {file.relative_to(small).as_posix() for file in dependencies(path, small)}
    wanted = {match.relative_to(small).as_posix() for name in wanted for match in small.glob(name)}
    # A room's data come with each of its modules.
    data = {"msd_teach/show/data/numbers.bin"} if "show" in chapter else set()
    assert found - data == (wanted | {"notebooks/chapter.py", "constraints.txt"}) - data


def test_an_edit_counts_where_it_is_read(small: Path):
    (chapter := small / "notebooks" / "chapter.py").write_text("from msd_teach import walk")
    for name, counts in {
        "msd_teach/ground.py": True,  # two imports away
        "msd_teach/__init__.py": True,
        "notebooks/chapter.py": True,
        "constraints.txt": True,
        "msd_teach/far/away.py": False,
        "msd_teach/pocket/weights/unet/net.bin": False,
        "results/one.json": False,
    }.items():
        before = fingerprint(chapter, "smoke", small)
        with (small / name).open("a") as file:
            file.write("\n")
        assert (fingerprint(chapter, "smoke", small) != before) == counts, name
    assert fingerprint(chapter, "laptop", small) != fingerprint(chapter, "smoke", small)


own = cache(dependencies)  # of the chapters, while the tests run


@pytest.mark.parametrize(
    ("edited", "again"),
    [
        ("msd_teach/tensors.py", "00 01 02 03 04 05 06 07 08"),
        ("msd_teach/lesson/figures.py", "00 01 02 03 04 05 06 07 08"),
        ("msd_teach/lesson/web/controls.js", "01 02 03 05 06 08"),
        ("msd_teach/render/cameras.py", "08"),
        ("msd_teach/latent/prior.py", "08"),
        ("msd_teach/pocket/weights/unet/diffusion_pytorch_model.safetensors", "08"),
        ("results/table2.json", "06 07"),
    ],
)
def test_the_chapters_of_an_edit(edited: str, again: str):
    """On the tree as it is: 00 to 07 know neither the latent rooms nor a renderer."""
    chapters = sorted((ROOT / "notebooks").glob("0[0-8]_*.py"))
    assert (ROOT / edited).exists()
    assert [path.name[:2] for path in chapters if ROOT / edited in own(path)] == again.split()


@pytest.mark.slow
def test_a_unit_test_needs_no_notebook_tools():
    """`pip install -e .[dev]` suffices: collected and run where all that the other extras bring cannot be imported."""
    extras = "jupytext nbmake nbformat nbclient IPython ipykernel matplotlib scipy skimage sklearn PIL ipywidgets tqdm"
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "{extras} diffusers transformers accelerate torchmetrics".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_tensors.py"]))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

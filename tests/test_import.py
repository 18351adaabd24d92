"""`import msd_teach` is light, and gives the names that it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msd_teach

HEAVY = "matplotlib scipy skimage sklearn PIL IPython ipywidgets diffusers transformers torchmetrics tinycudann tqdm"


def test_import_loads_torch_and_numpy_only():
    code = "import sys, torch, numpy; before = set(sys.modules); import msd_teach; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) & set(HEAVY.split()) == set()


def test_public_names_exist():
    assert [name for name in msd_teach.__all__ if not hasattr(msd_teach, name)] == []


def test_is_typed():
    assert (Path(msd_teach.__file__).parent / "py.typed").exists()

"""`import msd_teach` is light, and no import changes what others draw."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "matplotlib scipy skimage sklearn PIL IPython ipywidgets diffusers peft transformers torchmetrics tinycudann tqdm"
)
PROGRAM = """
import sys, torch, numpy
before = set(sys.modules)
import msd_teach
print(*set(sys.modules) - before)
import matplotlib
before = dict(matplotlib.rcParams)
import msd_teach.lesson.explore, msd_teach.lesson.figures
print(*[name for name, value in matplotlib.rcParams.items() if value != before[name]])
"""


def test_imports_load_torch_and_numpy_only_and_set_no_style():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded, set_at_import = run.stdout.split("\n")[:2]
    assert set(loaded.split()) & set(HEAVY.split()) == set()
    assert set(set_at_import.split()) <= {"backend", "backend_fallback"}


def test_the_command_line_opens_with_torch_and_numpy_alone():
    """`pip install msd_teach` brings no more, and `tables` needs no more."""
    program = f"import sys\nfor name in {HEAVY.split()!r}: sys.modules[name] = None\nimport msd_teach.__main__"
    subprocess.run([sys.executable, "-c", program], check=True)

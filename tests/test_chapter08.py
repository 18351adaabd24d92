"""Nothing in chapter 08 is tied to the pocket model: it runs on any pipeline of the Stable Diffusion 1 and 2 family."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import pytest

pytest.importorskip("diffusers")

from nbclient import NotebookClient
from tiny import tiny

CHAPTER = Path(__file__).parent.parent / "notebooks" / "08_stable_diffusion.py"


@pytest.mark.slow
def test_the_chapter_runs_on_a_tiny_random_v_prediction_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny(tmp_path, "2")
    monkeypatch.setenv("MSD_TEACH_MODEL", str(folder))
    monkeypatch.setenv("MSD_TEACH_BUDGET", "smoke")
    notebook = jupytext.read(CHAPTER, fmt="py:percent")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(out.text for cell in cells for out in cell.outputs if out.get("name") == "stdout")
    assert f"This page was made by {folder}." in printed
    assert "It predicts v_prediction, latents (4, 8, 8)" in printed
    agreement = re.search(r"against StableDiffusionPipeline: relative error (\S+)", printed)
    assert agreement and float(agreement[1]) < 1e-4

"""What of the book is for the public: addresses from one place, texts for machines, the library's names."""

from __future__ import annotations

import copy
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import msd_teach
from book.docstrings import escaped
from book.public import configure, llms, sitemap

ROOT = Path(__file__).parent.parent
HTML = ROOT / "_build" / os.environ["MSD_TEACH_BUDGET"] / "_build" / "html"
CONFIG = yaml.safe_load((ROOT / "book" / "_config.yml").read_text("utf-8"))
URLS = {"Repository": "https://github.com/someone/something", "Documentation": "https://someone.github.io/something/"}
MODULES = re.findall(r"automodule:: (\S+)\n   :members:(.*)", (ROOT / "book" / "api.md").read_text("utf-8"))


def options(tmp_path: Path, urls: Mapping[str, str]) -> dict[str, Any]:
    """What Sphinx is told, by way of Jupyter Book."""
    from jupyter_book.config import get_final_config

    config = copy.deepcopy(CONFIG)
    configure(config, urls)
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    command = {"latex_individualpages": False}
    return get_final_config(user_yaml=tmp_path / "_config.yml", cli_config=command, sourcedir=tmp_path)[0]


def test_without_an_address_the_book_leads_nowhere(tmp_path: Path):
    theme = options(tmp_path, {})["html_theme_options"]
    assert not {"repository_url", "launch_buttons"} & theme.keys()
    assert theme["use_download_button"]


def test_one_address_brings_every_button(tmp_path: Path):
    told = options(tmp_path, URLS)
    theme, meta = told["html_theme_options"], told["myst_html_meta"]
    assert (theme["repository_url"], theme["repository_branch"]) == (URLS["Repository"], "ipynb")
    assert theme["use_repository_button"] and theme["use_issues_button"] and theme["use_download_button"]
    assert {"colab_url", "binderhub_url"} <= theme["launch_buttons"].keys()
    assert told["html_baseurl"] == URLS["Documentation"]
    assert meta["property=og:image"] == "https://someone.github.io/something/_static/hero.png"
    assert (ROOT / "book" / "static" / "hero.png").exists()


def test_the_repositorys_address_is_in_one_place():
    """No file names a repository of ours: workflows and templates ask the host."""
    named = re.compile(r"github\.com/[\w-]+/msd_teach|github\.io/msd_teach")
    files = [*ROOT.glob("*.*"), *(ROOT / "book").glob("*.*"), *(ROOT / ".github").rglob("*.*")]
    assert not [
        path for path in files if path.suffix in {".md", ".yml", ".cff"} and named.search(path.read_text("utf-8"))
    ]


def test_texts_for_machines():
    pages = {"intro.md": "A book", "01_a.ipynb": "Climb"}
    text = llms(pages, "What it is.", "")
    assert text.startswith("# Mean-shift distillation\n\n> What it is.\n")
    assert "- [Climb](_sources/01_a.ipynb)\n" in text
    places = ElementTree.fromstring(sitemap(pages, URLS["Documentation"]))
    assert [place.text for place in places.iter() if place.tag.endswith("loc")] == [
        "https://someone.github.io/something/intro.html",
        "https://someone.github.io/something/01_a.html",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x has shape (*batch, 3)", r"x has shape (\*batch, 3)"),
        ("`|x|` of the `point`s, |y|", r"``|x|`` of the ``point``\ s, \|y\|"),
        ("x_ and x_next", r"x\_ and x_next"),
        ("over `two\n    lines`", "over ``two lines``"),
    ],
)
def test_docstrings_are_plain_text_with_code(text: str, expected: str):
    assert escaped(text) == expected


def documented() -> set[str]:
    """The names that the page takes from its modules: those listed, or all that a module defines."""
    names = set[str]()
    for name, chosen in MODULES:
        module = importlib.import_module(name)
        own = {key for key, value in vars(module).items() if key[0] != "_" and getattr(value, "__module__", "") == name}
        names |= {f"{name}.{key}" for key in (chosen.replace(",", " ").split() or own)}
    return names


def test_every_public_name_has_its_place_on_the_page():
    names = documented()
    for name in set(msd_teach.__all__) - {"pocket"}:
        home = getattr(msd_teach, name).__module__
        assert f"{home}.{name}" in names or name == "Denoiser", name
    assert "msd_teach.pocket" in dict(MODULES)


@pytest.mark.slow
def test_the_built_page_has_every_name_with_its_source():
    page = (HTML / "api.html").read_text("utf-8")
    missing = [
        name for name in set(msd_teach.__all__) - {"pocket"} if not re.search(rf'id="msd_teach\.[\w.]*\b{name}"', page)
    ]
    assert not missing
    assert page.count("viewcode-link") > 60


@pytest.mark.slow
def test_a_language_model_finds_every_page():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    pages = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
    links = re.findall(r"\]\((_sources/.*?)\)", (HTML / "llms.txt").read_text("utf-8"))
    assert [Path(link).stem for link in links] == pages
    assert all((HTML / link).exists() for link in links)

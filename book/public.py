"""What the book needs in public: the repository's address from pyproject.toml, launch buttons, and what machines read.

Without `[project.urls]` there the book is whole, and has nothing that leads anywhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOKS = "ipynb"  # the branch of executed notebooks, which the release workflow makes


def urls(root: Path = ROOT) -> Mapping[str, str]:
    """The addresses in pyproject.toml, or none."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})


def configure(config: dict[str, Any], urls: Mapping[str, str]) -> None:
    """Adds the theme's buttons and the addresses of the social card to Jupyter Book's configuration.

    Its own keys for them would be lost: `html_theme_options` in `sphinx.config` replaces what they become.
    """
    sphinx = config["sphinx"]["config"]
    if repository := urls.get("Repository"):
        sphinx["html_theme_options"] |= {
            "repository_url": repository,
            "repository_branch": NOTEBOOKS,
            "path_to_docs": "",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
                "notebook_interface": "jupyterlab",
            },
        }
    if home := urls.get("Documentation"):
        sphinx["html_baseurl"] = home
        sphinx["myst_html_meta"] |= {"property=og:url": home, "property=og:image": f"{home}_static/hero.png"}


def llms(titles: Mapping[str, str], summary: str, home: str) -> str:
    """The book's contents for a language model (llms.txt): title, summary, and a link to each page's text."""
    pages = [f"- [{title}]({home}_sources/{page})" for page, title in titles.items()]
    return "\n".join(["# Mean-shift distillation", "", f"> {summary}", "", "## Pages", "", *pages, ""])


def sitemap(pages: Mapping[str, str], home: str) -> str:
    places = "".join(f"<url><loc>{home}{Path(page).stem}.html</loc></url>\n" for page in pages)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}</urlset>\n'

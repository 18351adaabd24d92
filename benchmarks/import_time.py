"""`import msd_teach` against `import torch` alone, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from _timing import best_times, report


def main() -> None:
    def load(name: str):
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

    seconds = best_times({"torch": load("torch"), "msd_teach": load("msd_teach")}, repeats=10)
    ratio = seconds["msd_teach"] / seconds["torch"]
    report([{"torch, s": seconds["torch"], "msd_teach, s": seconds["msd_teach"], "ratio": ratio}])


if __name__ == "__main__":
    main()

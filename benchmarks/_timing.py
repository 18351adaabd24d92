"""What the benchmarks share: the best of several runs, alternating between the rivals, and the machine's description."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent.parent / "results"


def best_times(rivals: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Seconds of the fastest run of each rival; they take turns, so that a busy moment hits all of them."""
    for run in rivals.values():
        run()
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(repeats):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def machine() -> dict[str, str | int]:
    """Processor, cores, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_memory() -> float:
    """Peak resident memory of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep(name: str, rows: list[dict]) -> None:
    """Writes results/<name>.json and prints the rows as a Markdown table."""
    RESULTS.mkdir(exist_ok=True)
    record = {"command": f"python benchmarks/{name}.py", "machine": machine(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")

"""What every benchmark records and how it writes it down."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_info, threadpool_limits

import nettrim

RESULTS = Path(__file__).parent / "results"


def environment(threads: int) -> dict[str, Any]:
    """Versions, processor, BLAS and thread counts."""
    import numba

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "nettrim": nettrim.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "numba": numba.__version__,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "blas": sorted({f"{p.get('internal_api')} {p.get('version')} {p.get('architecture')}" for p in _blas()}),
    }


def _blas() -> list[dict[str, Any]]:
    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def fix_threads(threads: int | None) -> int:
    """One thread count for all BLAS pools of the process, for its lifetime; default all cores."""
    threads = threads or os.cpu_count() or 1
    threadpool_limits(threads)
    return threads


def write(name: str, record: dict[str, Any]) -> Path:
    """Write a record to bench/results/NAME.json, through a temporary file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, suffix=".tmp", delete=False) as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path


def read(name: str) -> dict[str, Any] | None:
    """The record of an earlier run, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None

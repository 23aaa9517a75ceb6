"""What `nettrim doctor` looks at: versions, BLAS, threads, GPUs, optional packages, data, and a small solve."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.extras import OPTIONAL

__all__ = ["examine"]

#: folders that are looked for in $NETTRIM_DATA
DATA_SETS = ("mnist", "cifar10")


def examine() -> dict[str, Any]:
    """Everything that matters for speed and for what can be run, as plain values.

    Returns
    -------
    dict
        "versions", "cores", "numba_threads", "blas", "gpus", "optional", "data" and "self_check".
    """
    check = _self_check()  # loads the BLAS libraries and Numba that the rest looks at
    return {
        "versions": _versions(),
        "cores": _cores(),
        "numba_threads": _numba_threads(),
        "blas": _blas(),
        "gpus": _gpus(),
        "optional": [
            {
                "name": package.name,
                "version": _version_if_importable(package.name, package.module),
                "extra": ", ".join(package.extras),
                "for": package.purpose,
            }
            for package in OPTIONAL
        ],
        "data": _data(),
        "self_check": check,
    }


def _versions() -> dict[str, str]:
    from nettrim import __version__

    packages = ("numpy", "scipy", "numba", "threadpoolctl", "typer", "rich")
    versions = {name: _distribution_version(name) or "unknown" for name in packages}
    return {"nettrim": __version__, "python": platform.python_version(), "system": platform.platform()} | versions


def _distribution_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_if_importable(name: str, module: str) -> str | None:
    """Version of an optional package, without importing it (torch takes seconds); None if it is not there."""
    if importlib.util.find_spec(module) is None:
        return None
    if version := _distribution_version(name):
        return version
    # CuPy's distributions are called after the CUDA version
    owners = importlib.metadata.packages_distributions().get(module, [])
    return (_distribution_version(owners[0]) if owners else None) or "unknown"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numba_threads() -> int:
    import numba

    return int(numba.get_num_threads())


def _blas() -> list[dict[str, Any]]:
    """BLAS libraries that are loaded; NumPy's and SciPy's wheels each bring their own."""
    from threadpoolctl import threadpool_info

    found = []
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            folder = Path(pool["filepath"]).parent.name
            used_by = {"numpy.libs": "of NumPy", "scipy.libs": "of SciPy"}.get(folder, pool["filepath"])
            found.append(
                {
                    "library": pool["internal_api"],
                    "version": pool["version"] or "unknown version",
                    "threads": pool["num_threads"],
                    "used_by": used_by,
                }
            )
    return found


def _gpus() -> list[str]:
    """Names of the GPUs, through CuPy where it works, else through nvidia-smi."""
    if importlib.util.find_spec("cupy") is not None:
        try:
            import cupy

            runtime = cupy.cuda.runtime
            names = []
            for i in range(runtime.getDeviceCount()):
                properties = runtime.getDeviceProperties(i)
                names.append(
                    f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, seen by CuPy"
                )
            return names
        except Exception as error:
            # a driver that is missing or too old shows as one of many error types
            return [f"CuPy is installed but finds no GPU: {' '.join(str(error).split())}"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ["nvidia-smi is installed but does not answer"]
    return [f"{line.strip()}, not usable without CuPy" for line in listed.stdout.splitlines() if line.strip()]


def _data() -> dict[str, Any]:
    folder = os.environ.get("NETTRIM_DATA")
    if not folder:
        return {"folder": None, "found": [], "message": "NETTRIM_DATA is not set (only studies and benchmarks need it)"}
    if not Path(folder).is_dir():
        return {"folder": folder, "found": [], "message": f"NETTRIM_DATA is {folder}, which is not a folder"}
    found = [name for name in DATA_SETS if (Path(folder) / name).is_dir()]
    held = " and ".join(found) if found else f"none of {', '.join(DATA_SETS)}"
    return {"folder": folder, "found": found, "message": f"NETTRIM_DATA is {folder}, which holds {held}"}


def _self_check() -> dict[str, Any]:
    """A small layer solved twice: the first time compiles (or loads what Numba has cached)."""
    from nettrim.problem import Problem
    from nettrim.solver import Solver

    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 1000))
    Y = np.maximum((rng.standard_normal((100, 20)) * (rng.random((100, 20)) < 0.2)).T @ X, 0)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        solution = Solver(Problem(X, Y, epsilon=0.1)).solve()
        times.append(time.perf_counter() - began)
    return {
        "layer": "100 inputs, 20 neurons, 1000 samples, float64, epsilon = 0.1",
        "status": solution.status.value,
        "message": solution.message,
        "gap": solution.certificate.gap,
        "violation": solution.certificate.violation,
        "iterations": solution.iterations,
        "first_seconds": times[0],
        "seconds": times[1],
    }

"""`import nettrim` is light: no optional package, and under half a second."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "torch",
    "distributed",
    "cupy",
    "cvxpy",
    "matplotlib",
    "dask",
    "sklearn",
    "pandas",
    "numba",
    "typer",
    "rich",
    "scipy",
}

PROGRAM = """
import json, sys, time
# processor time: what other programs do meanwhile is not the import's
began = time.process_time()
import nettrim
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def fresh_import() -> dict:
    # away from the working directory: the installed package, not a folder that happens to be here
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd="/")
    return json.loads(out.stdout)


def test_import_is_light_and_quick():
    runs = [fresh_import() for _ in range(3)]
    assert not HEAVY & set(runs[0]["modules"])
    assert min(run["seconds"] for run in runs) < 0.5


def test_reference_is_part_of_the_package():
    """`nt.reference.solve` works without a further import, and still loads cvxpy only when it is used."""
    program = """
import sys, nettrim as nt
assert callable(nt.reference.solve)
assert "cvxpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_reference_is_importable_without_cvxpy():
    """The package is only needed by a solve, whose ImportError names the extra."""
    program = """
import sys
sys.modules["cvxpy"] = None
import numpy as np, nettrim as nt, nettrim.reference
assert nettrim.reference
try:
    nt.reference.solve(nt.Problem(np.ones((2, 3)), np.ones((1, 3)), 0.1))
except ImportError as error:
    assert "nettrim[reference]" in str(error), error
else:
    raise SystemExit("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")

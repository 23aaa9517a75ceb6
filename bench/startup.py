"""What `import nettrim` costs beside NumPy's own import, in fresh processes.

python bench/startup.py     writes bench/results/startup.json

Processor time, so that what other programs do meanwhile counts for little; the ratio is to NumPy's import in the same
process. Byte code is written by a first import: a process that may not write it compiles the package at every start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from common import environment, write

PROGRAM = """
import json, time
began = time.process_time()
import numpy
between = time.process_time()
import nettrim
print(json.dumps({"numpy": between - began, "nettrim": time.process_time() - between}))
"""


def measure(repeats: int, cache: str) -> list[dict[str, float]]:
    allowed = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    call = [sys.executable, "-X", f"pycache_prefix={cache}", "-c", PROGRAM]
    runs = [
        json.loads(subprocess.run(call, env=allowed, cwd="/", capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats + 1)
    ]
    return runs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        runs = measure(arguments.repeats, cache)
    record = {
        "environment": environment(1),
        "repeats": arguments.repeats,
        "numpy_seconds": statistics.median(run["numpy"] for run in runs),
        "nettrim_seconds": statistics.median(run["nettrim"] for run in runs),
        "ratio": statistics.median((run["nettrim"] + run["numpy"]) / run["numpy"] for run in runs),
    }
    print(f"NumPy {record['numpy_seconds']:.3f} s, nettrim another {record['nettrim_seconds']:.3f} s: ", end="")
    print(f"{record['ratio']:.2f} times NumPy's import in all; {write('startup', record)}")


if __name__ == "__main__":
    main()

"""Time, iterations and peak memory against P, M and N.

python bench/scaling.py [--method admm|working_set]     writes bench/results/scaling.json

Every point is a process of its own, so that its peak memory is its own. Layer 3 of the MNIST network (1000 inputs) is
solved in float32 to the default tolerances; N takes the first inputs only, with outputs recomputed from them. The
memory promise, which is ADMM's, is inputs + 3 M x P arrays of the working dtype + 4 N x N float64 + 50 MB, measured as
the growth of the resident peak over the process with its inputs loaded and the solver compiled (inputs are then in the
baseline).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from common import environment, fix_threads, read, write

POINTS = {
    "P": [(1001, 100, P) for P in (1000, 2000, 5000, 10000, 20000, 50000)],
    "M": [(1001, M, 5000) for M in (10, 20, 50, 100)],
    "N": [(N, 100, 5000) for N in (126, 251, 501, 1001)],
    "M wide": [(301, M, 5000) for M in (125, 250, 500, 1000)],
}


def data(N: int, M: int, P: int) -> tuple[np.ndarray, np.ndarray]:
    from mnist import layer, network

    index = 2 if N != 301 else 1
    X, Y, _ = layer(index, P, neurons=M)
    if X.shape[0] != N:
        weights, biases = network()
        X = np.ascontiguousarray(np.vstack([X[: N - 1], X[-1:]]))
        W = np.vstack([weights[index][: N - 1], biases[index][None]])[:, :M].astype(np.float32)
        Y = np.maximum(W.T @ X, 0)
    return X, Y


def child(N: int, M: int, P: int, method: str, threads: int) -> None:
    """Solve one point and print a JSON line."""
    import psutil

    import nettrim as nt

    fix_threads(threads)
    rng = np.random.default_rng(0)
    small = rng.standard_normal((20, 100)).astype(np.float32)
    nt.solve(small, np.maximum(small[:5], 0), epsilon=0.05, method=method)  # compile
    X, Y = data(N, M, P)
    process = psutil.Process()
    peak, running = [process.memory_info().rss], True
    baseline = peak[0]

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    solution = nt.solve(X, Y, epsilon=0.1, method=method)
    seconds = time.perf_counter() - began
    running = False
    watcher.join()
    promised = 3 * M * P * 4 + 4 * N * N * 8 + 50e6
    print(
        json.dumps(
            {
                "N": N,
                "M": M,
                "P": P,
                "method": method,
                "status": str(solution.status),
                "iterations": solution.iterations,
                "seconds": seconds,
                "ms_per_iteration": 1e3 * solution.seconds["iterate"] / max(solution.iterations, 1),
                "polish_seconds": solution.seconds["polish"],
                "peak_megabytes": (peak[0] - baseline) / 1e6,
                "promised_megabytes": promised / 1e6,
                "within_promise": bool(peak[0] - baseline <= promised),
            }
        )
    )


def slope(rows: list[dict], variable: str, value: str) -> float:
    """Least-squares slope of log value against log variable."""
    x, y = np.log([r[variable] for r in rows]), np.log([r[value] for r in rows])
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--series", default=",".join(POINTS), help="which of: " + ", ".join(POINTS))
    parser.add_argument("--largest", type=int, default=50000, help="largest number of samples (default 50000)")
    parser.add_argument("--method", choices=["admm", "working_set"], default="admm")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    if args.point:
        child(*map(int, args.point.split(",")), args.method, threads)
        return
    # a run replaces its own method's series and leaves the other's
    record: dict = read("scaling") or {}
    record |= {"environment": record.get("environment", {}), "seed": 0, "epsilon": 0.1}
    record["environment"][args.method] = environment(threads)
    record.setdefault("series", {})[args.method] = {}
    for name in args.series.split(","):
        rows = []
        for point in (p for p in POINTS[name] if p[2] <= args.largest):
            command = [
                sys.executable,
                str(Path(__file__)),
                "--threads",
                str(threads),
                "--method",
                args.method,
                "--point",
                ",".join(map(str, point)),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            r = rows[-1]
            print(
                f"N {r['N']:5d} M {r['M']:5d} P {r['P']:6d}  {r['status']:8s} {r['iterations']:5d} iterations "
                f"{r['seconds']:7.2f} s  {r['ms_per_iteration']:7.2f} ms each  peak {r['peak_megabytes']:6.0f} MB of "
                f"{r['promised_megabytes']:.0f} promised",
                flush=True,
            )
        variable = name[0]
        slopes = {v: slope(rows, variable, v) for v in ("seconds", "ms_per_iteration", "iterations")}
        record["series"][args.method][name] = {"rows": rows, "slopes": slopes}
        print(f"  slope against {variable}: " + ", ".join(f"{k} {v:.2f}" for k, v in slopes.items()))
        write("scaling", record)


if __name__ == "__main__":
    main()

"""ADMM on samples that exceed the memory: seconds and bytes per iteration against the disk's own speed.

python bench/outofcore.py [-P 1000000] [--memory 2GB]     writes bench/results/outofcore.json

A random layer is written to disk a part at a time and deleted afterwards. The disk's own speed is measured by reading
and writing files in pieces of the solver's chunks, with nothing else to do. Iterations are timed between two checks, so
that neither a check nor an adaptation is among them. The kernel keeps files in its cache as far as there is memory:
`--cold` drops the samples' files from it before each pass, and the record says how much of them was in it. The state
was written a moment ago, and may be in the cache in either case.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import environment, fix_threads, read, write

import nettrim as nt
from nettrim.settings import Settings
from nettrim.units import as_bytes

#: samples that are made at a time
PART = 5000


def make(folder: Path, P: int, N: int, M: int, samples: str) -> None:
    """X.npy and Y.npy of a random layer with a bias, in float32."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((N, M), np.float32) ** 3
    shapes = {name: (P, rows) if samples == "rows" else (rows, P) for name, rows in (("X", N), ("Y", M))}
    files = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, s) for name, s in shapes.items()}
    for p in range(0, P, PART):
        X = np.maximum(rng.standard_normal((min(PART, P - p), N), np.float32), 0)
        X[:, -1] = 1
        for name, a in (("X", X), ("Y", np.maximum(X @ W, 0))):
            if samples == "rows":
                files[name][p : p + PART] = a
            else:
                files[name][:, p : p + PART] = a.T
    for a in files.values():
        a.flush()


def drop(path: Path) -> None:
    """Take a file out of the kernel's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path: Path) -> float | None:
    """Part of a file that is in the kernel's cache, by util-linux's fincore; None without it."""
    if shutil.which("fincore") is None:
        return None
    command = ["fincore", "--bytes", "--noheadings", "--output", "PAGES,SIZE", str(path)]
    pages, size = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return min(pages * mmap.PAGESIZE / size, 1.0)


def reading(path: Path, piece: int, cold: bool) -> float:
    """Bytes a second of reading a file from one end to the other."""
    if cold:
        drop(path)
    buffer, total = bytearray(piece), 0
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while done := file.readinto(buffer):
            total += done
    return total / (time.perf_counter() - began)


def writing(folder: Path, piece: int, size: int, cold: bool) -> float:
    """Bytes a second of writing a file over and over, as the state is; with `cold` until it is on the disk."""
    values = os.urandom(piece)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        began = time.perf_counter()
        total = 0
        while total < size:
            total += file.write(values)
        if cold:
            os.fsync(file.fileno())
        return total / (time.perf_counter() - began)


class Peak:
    """Context that watches the largest resident memory of this process, beyond that at its start, in bytes."""

    def __enter__(self) -> Peak:
        import psutil

        self._process = psutil.Process()
        self.base = self._process.memory_info().rss
        self.bytes, self._running = 0, True
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, self._process.memory_info().rss - self.base)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        self._running = False
        self._watcher.join()


def product_flops(N: int, M: int, width: int) -> float:
    """Flops a second of the two products with a chunk, alone."""
    from nettrim.backends.gemm import gemm

    rng = np.random.default_rng(0)
    X = rng.standard_normal((width, N), np.float32).T
    T, F, R = (rng.standard_normal(s, np.float32) for s in ((M, width), (N, M), (N, M)))
    times = []
    for _ in range(4):
        began = time.perf_counter()
        gemm(X, T.T, R, 1.0, 0.0)
        gemm(F.T, X, T, 1e-9, 1.0)
        times.append(time.perf_counter() - began)
    return 4.0 * N * M * width / min(times[1:])


def measure(folder: Path, args: argparse.Namespace) -> dict:
    """Solve for some iterations, and time them."""
    warm = np.random.default_rng(0).standard_normal((8, 60)).astype(np.float32)
    nt.solve(warm, np.maximum(warm[:3], 0), epsilon=0.1, method="admm")
    paths = [folder / f"{name}.npy" for name in "XY"]
    with Peak() as peak:
        began = time.perf_counter()
        X, Y = (nt.Chunked(path, args.samples) for path in paths)
        problem = nt.Problem(X, Y, epsilon=0.1)
        door = time.perf_counter() - began
        solver = nt.Solver(problem, memory=args.memory, scratch=folder, n_threads=args.threads)
        began = time.perf_counter()
        loop = solver._loop()
        state = loop.start()
        setup = time.perf_counter() - began
        plan = solver._disk_plan
        print(plan.table(), flush=True)
        sweep, dropping = loop.samples._sweep, [0.0]

        def cold_sweep(*arguments, **options) -> None:
            before = time.perf_counter()
            for path in paths:
                drop(path)
            dropping[0] += time.perf_counter() - before
            sweep(*arguments, **options)

        if args.cold:
            loop.samples._sweep = cold_sweep
        times, last, busy = [], [time.perf_counter()], [time.process_time()]

        def tick() -> str | None:
            # asked once an iteration
            now = time.perf_counter()
            times.append(now - last[0] - dropping[0])
            busy.append(time.process_time())
            last[0], dropping[0] = now, 0.0
            return "limit" if len(times) > args.iterations else None

        quiet = Settings(max_iterations=10**9, check_every=10**9, adapt=False)
        loop.run(state, quiet, lambda check: True, tick, lambda check: None)
        # the first one also measures the distances that the start has
        iterations = times[1:]
        began = time.perf_counter()
        certificate = nt.certify(problem, state.W)
        certify = time.perf_counter() - began
    if args.cold:
        for path in paths:
            drop(path)
    there = [cached(path) for path in paths]
    state.T.close()
    piece = plan.width * 4 * (args.N if args.samples == "rows" else 1)
    piece = min(max(piece, 1 << 20), 64 << 20)
    disk_read = reading(paths[0], piece, args.cold)
    size = min(max(plan.width * args.M * 4, 1 << 20), 64 << 20)
    disk_write = writing(folder, size, max(plan.scratch, 1 << 28), args.cold)
    flops = product_flops(args.N, args.M, max(plan.width, 256))
    seconds = statistics.median(iterations)
    return {
        "P": args.P,
        "N": args.N,
        "M": args.M,
        "samples": args.samples,
        "cold": args.cold,
        "threads": args.threads,
        "memory": plan.available,
        "stored": sum(path.stat().st_size for path in paths),
        "planned": plan.needed,
        "peak": peak.bytes,
        "kept": plan.kept,
        "width": plan.width,
        "scratch": plan.scratch,
        "read": plan.read,
        "written": plan.written,
        "flops": plan.flops,
        "door_seconds": door,
        "setup_seconds": setup,
        "iteration_seconds": seconds,
        # of all threads: on a machine that others use, the wall clock shows them too
        "processor_seconds": statistics.median(np.diff(busy[2:])),
        "iterations": len(iterations),
        "certify_seconds": certify,
        "discrepancy": certificate.discrepancy,
        "bytes_per_second": (plan.read + plan.written) / seconds,
        "disk_read_per_second": disk_read,
        "disk_write_per_second": disk_write,
        "product_flops_per_second": flops,
        "disk_seconds": plan.read / disk_read + plan.written / disk_write,
        "product_seconds": plan.flops / flops,
        "predicted_seconds": plan.seconds(flops, disk_read, disk_write),
        "cached": there,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-P", type=int, default=1_000_000, help="samples (default 1000000)")
    parser.add_argument("-N", type=int, default=785, help="inputs (default 785)")
    parser.add_argument("-M", type=int, default=300, help="outputs (default 300)")
    parser.add_argument("--memory", default="2GB", help="of the solve (default 2GB)")
    parser.add_argument("--samples", choices=["rows", "columns"], default="rows")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cold", action="store_true", help="drop the samples from the kernel's cache before iterations"
    )
    parser.add_argument("--folder", type=Path, help="where the data are made (default: the system's temporary folder)")
    args = parser.parse_args()
    args.threads = fix_threads(args.threads)
    needed = 4 * args.P * (args.N + 2 * args.M)
    folder = Path(tempfile.mkdtemp(prefix="nettrim-outofcore-", dir=args.folder))
    try:
        if shutil.disk_usage(folder).free < 1.1 * needed:
            sys.exit(f"{folder} has too little space: {as_bytes(1.1 * needed)} are needed")
        make(folder, args.P, args.N, args.M, args.samples)
        row = measure(folder, args)
    finally:
        shutil.rmtree(folder)
    print(
        f"iteration {row['iteration_seconds']:.2f} s ({row['processor_seconds']:.2f} s of processors), predicted "
        f"{row['predicted_seconds']:.2f} s (disk "
        f"{row['disk_seconds']:.2f} s, products {row['product_seconds']:.2f} s)\n"
        f"{as_bytes(row['bytes_per_second'])}/s of {as_bytes(row['disk_read_per_second'])}/s read and "
        f"{as_bytes(row['disk_write_per_second'])}/s written by the disk alone; "
        f"in the cache before a pass: {row['cached']}\n"
        f"peak {as_bytes(row['peak'])} of {as_bytes(row['memory'])}, planned {as_bytes(row['planned'])}"
    )
    # a run replaces its own row and leaves the others
    record = read("outofcore") or {"seed": 0, "rows": []}
    key = ("P", "N", "M", "memory", "samples", "cold")
    rows = [r for r in record["rows"] if any(r[name] != row[name] for name in key)]
    rows.append(row)
    print(write("outofcore", {**record, "environment": environment(args.threads), "rows": rows}))


if __name__ == "__main__":
    main()

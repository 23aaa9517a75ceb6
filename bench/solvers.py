"""Time to a certificate: nettrim against Algorithm 5.1 as published, and against cvxpy with CLARABEL and SCS.

python bench/solvers.py published     all four layers, epsilon .03 .1 .2, P = 5000, gap and violation 1e-3
python bench/solvers.py cvxpy         N = 301, M = 10 and 50, P = 1000 and 2000, gap 1e-6
python bench/solvers.py methods       working sets against ADMM, gap 1e-6 in float64 and 1e-3 in float32 (--samples)

All write bench/results/solvers.json as they go and skip what is already there (--fresh starts anew). Every solver's
answer is judged by the same certificate (nettrim.certify), whose time is not charged to the baselines but is to
nettrim. Kernels are compiled before timing; one thread count for everything.

The published algorithm runs with rho = 1 and rho = 100, and the better one is the baseline. A run that has not reached
the certificate is stopped when it has taken --cap times nettrim's seconds, or 600 s: it is charged the time it ran, so
its ratio is a lower bound (marked >=). To spend the time where it matters, both rhos first run to 10 times nettrim's
seconds; then only the one with the better certificate goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from common import environment, fix_threads, read, write
from mnist import layer, network
from published import published_admm

import nettrim as nt
from nettrim.settings import Settings

EPSILONS = (0.1, 0.2, 0.03)
LIMIT = 600.0
GAP, FEAS = 1e-3, 1e-3
#: what is timed beside the default, "auto"
METHODS = ("admm", "working_set")
#: seconds below which a cell of the part methods is measured this many times, the methods in turn: medians count
SHORT, TURNS = 0.2, 15


def compile_kernels() -> None:
    X = np.random.default_rng(0).standard_normal((30, 200))
    for dtype in (np.float32, np.float64):
        for method in METHODS:
            nt.solve(X, np.maximum(X[:6], 0), epsilon=0.1, dtype=dtype, gap_tol=1e-8, method=method)


def ours(problem: nt.Problem, repeats: int, **settings) -> dict:
    """Median seconds of cold solves, setup and certificate included."""
    seconds = []
    for _ in range(repeats):
        if problem.linear:
            problem = problem.replace(X=problem.X)  # forget the accumulated moments
        began = time.perf_counter()
        solution = nt.Solver(problem, **settings).solve()
        seconds.append(time.perf_counter() - began)
    c = solution.certificate
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "status": str(solution.status),
        "method": solution.settings["method"],
        "iterations": solution.iterations,
        "phases": solution.seconds,
        "gap": c.gap,
        "violation": c.violation,
        "kept": c.density,
    }


class Published:
    """One run of the published algorithm that can be stopped and gone on with."""

    def __init__(self, problem: nt.Problem, rho: float, check_every: int = 50):
        mask = np.ones(problem.Y.shape, bool) if problem.mask is None else problem.mask
        X, Y = problem.X.astype(np.float64), problem.Y.astype(np.float64)
        self.problem, self.rho = problem, rho
        # the certificate of a linear layer asks for multipliers in another form: judge on the samples
        self.judge = nt.Problem(X, Y, epsilon_abs=problem.epsilon, omega=mask if problem.mask is not None else "linear")
        self.steps = published_admm(X, Y, mask, problem.epsilon, rho, check_every)
        self.seconds, self.iterations, self.accepted, self.score = 0.0, 0, False, np.inf
        self.gap = self.violation = np.inf

    def run(self, limit: float) -> None:
        while not self.accepted and self.seconds < limit:
            self.iterations, self.seconds, W, multiplier = next(self.steps)
            if self.judge.compact:
                # multipliers of a linear layer in the span of the data: mu from the ball, D by least squares
                multiplier = compact_multiplier(self.judge, W, multiplier)
            c = nt.certify(self.judge, W, multiplier)
            self.gap, self.violation = c.gap, c.violation
            self.score = max(abs(c.gap) / GAP, c.violation / FEAS)
            self.accepted = c.holds(GAP, FEAS)

    def record(self) -> dict:
        return {
            "rho": self.rho,
            "seconds": self.seconds,
            "iterations": self.iterations,
            "accepted": self.accepted,
            "gap": self.gap,
            "violation": self.violation,
        }


def in_turn(problem: nt.Problem, turns: int, options: tuple, common: dict, first: dict) -> list[dict]:
    """Records of `ours` with each of the options, cold solves that take turns; one turn keeps the first's."""
    runs: list[list[dict]] = [[] for _ in options]
    for _ in range(turns):
        for k, option in enumerate(options):
            known = k == 0 and turns == 1
            runs[k].append(first if known else ours(problem, 1, **common, **option))
    records = []
    for found in runs:
        seconds = [r["seconds"] for r in found]
        records.append(found[-1] | {"seconds": statistics.median(seconds), "all_seconds": seconds})
    return records


def compact_multiplier(problem: nt.Problem, W: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """lambda (W^T X - Y), the form the optimum has, with lambda the size of the algorithm's own multipliers."""
    size = np.linalg.norm(multiplier) / problem.epsilon
    return size * np.vstack([W, np.ones((1, W.shape[1]))])


def published(threads: int, cap: float, repeats: int, record: dict) -> None:
    rows = record.setdefault("published", [])
    done = {(r["layer"], r["epsilon"]) for r in rows}
    for epsilon in EPSILONS:
        for index in (3, 2, 0, 1):
            if (index + 1, epsilon) in done:
                continue
            X, Y, linear = layer(index, 5000)
            problem = nt.Problem(X, Y, epsilon, omega="linear" if linear else "active")
            mine = ours(problem, repeats, gap_tol=GAP, feas_tol=FEAS)
            methods = {m: ours(problem, repeats, gap_tol=GAP, feas_tol=FEAS, method=m) for m in METHODS}
            runs = [Published(problem, rho, 50) for rho in (1.0, 100.0)]
            for run in runs:
                run.run(min(10 * mine["seconds"], LIMIT))
            if not any(run.accepted for run in runs):
                best = min(runs, key=lambda run: run.score)
                best.run(min(cap * mine["seconds"], LIMIT))
            else:
                best = min((run for run in runs if run.accepted), key=lambda run: run.seconds)
            row = {
                "layer": index + 1,
                "N": problem.N,
                "M": problem.M,
                "P": problem.P,
                "epsilon": epsilon,
                "nettrim": mine,
                "methods": methods,
                "published": [run.record() for run in runs],
                "baseline_rho": best.rho,
                "cap": cap,
                "ratio": best.seconds / mine["seconds"],
                "lower_bound": not best.accepted,
            }
            rows.append(row)
            print(
                f"layer {index + 1} epsilon {epsilon:<4}  nettrim {mine['seconds']:6.2f} s "
                f"({mine['method']}, gap {mine['gap']:.0e}, {mine['status']}, kept {mine['kept']:.1%}; admm "
                f"{methods['admm']['seconds']:.2f} s, working sets {methods['working_set']['seconds']:.2f} s)  "
                f"published rho {best.rho:g} {best.seconds:7.1f} s "
                f"({best.iterations} iterations, gap {best.gap:.1e})  ratio {'>=' if row['lower_bound'] else ''}"
                f"{row['ratio']:.1f}",
                flush=True,
            )
            record["published_summary"] = {
                "median_ratio": statistics.median(r["ratio"] for r in rows),
                "min_ratio": min(r["ratio"] for r in rows),
                "lower_bounds": sum(r["lower_bound"] for r in rows),
            }
            write("solvers", record)
    print(record["published_summary"])


def methods(args: argparse.Namespace, threads: int, record: dict) -> None:
    """Both methods on every cell; ADMM stops at `cap` times the working sets' seconds: its ratio is then a bound."""
    samples, layers, cap = args.samples, args.layers, args.cap
    rows = record.setdefault("methods", [])
    done = {(r["layer"], r["epsilon"], r["P"], r["dtype"]) for r in rows}
    for dtype, gap in ((np.float32, 1e-3), (np.float64, 1e-6)):
        name = np.dtype(dtype).name
        if name not in args.dtypes:
            continue
        for epsilon in args.epsilons:
            for index in (3, 2, 0, 1):
                if index + 1 not in layers or (index + 1, epsilon, samples, name) in done:
                    continue
                X, Y, linear = layer(index, samples, dtype=dtype)
                problem = nt.Problem(X, Y, epsilon, omega="linear" if linear else "active")
                common = {"gap_tol": gap, "feas_tol": gap, "memory_limit": args.memory_limit}
                exact = ours(problem, 1, method="working_set", **common)
                limit = max(cap * exact["seconds"], 1.0)
                options = ({"method": "working_set"}, {"method": "admm", "time_limit": limit}, {})
                turns = TURNS if exact["seconds"] < SHORT else 1
                exact, admm, auto = in_turn(problem, turns, options, common, exact)
                row = {
                    "layer": index + 1,
                    "N": problem.N,
                    "M": problem.M,
                    "P": samples,
                    "epsilon": epsilon,
                    "dtype": name,
                    "threads": threads,
                    "cap": cap,
                    "memory_limit": args.memory_limit,
                }
                row |= {"gap_tol": gap, "working_set": exact, "admm": admm, "auto": auto}
                row |= {"ratio": admm["seconds"] / exact["seconds"], "lower_bound": admm["status"] != "solved"}
                rows.append(row)
                print(
                    f"layer {index + 1} epsilon {epsilon:<4} P {samples} {name}  working sets "
                    f"{exact['seconds']:6.2f} s (gap {exact['gap']:.0e})  ADMM {admm['seconds']:6.2f} s "
                    f"(gap {admm['gap']:.0e})  auto {auto['seconds']:.2f} s  "
                    f"ratio {'>= ' if row['lower_bound'] else ''}{row['ratio']:.1f}",
                    flush=True,
                )
                write("solvers", record)


def cvxpy_rows(threads: int, limit: float, repeats: int, solvers: list[str], record: dict) -> None:
    from nettrim import reference

    rows = record.setdefault("cvxpy", [])
    done = {(r["M"], r["P"], r["solver"]) for r in rows}
    for solver in solvers:
        for M, P in ((10, 1000), (10, 2000), (50, 1000), (50, 2000)):
            if (M, P, solver) in done:
                continue
            X, Y, _ = layer(1, P, dtype=np.float64, neurons=M)
            problem = nt.Problem(X, Y, 0.1)
            mine = ours(problem, repeats, gap_tol=1e-6, feas_tol=1e-6)
            option = {"CLARABEL": "time_limit", "SCS": "time_limit_secs"}[solver]
            began = time.perf_counter()
            sol = reference.solve(problem, solver, **{option: limit})
            seconds = time.perf_counter() - began
            solved = sol.certificate.holds(1e-6, 1e-6)
            charged = seconds if solved else limit
            rows.append(
                {
                    "solver": solver,
                    "N": problem.N,
                    "M": M,
                    "P": P,
                    "epsilon": 0.1,
                    "nettrim": mine,
                    "seconds": seconds,
                    "charged": charged,
                    "solved": solved,
                    "message": sol.message,
                    "gap": sol.certificate.gap,
                    "violation": sol.certificate.violation,
                    "limit": limit,
                    "ratio": charged / mine["seconds"],
                    "objective_difference": mine_difference(problem, sol) if solved else None,
                }
            )
            r = rows[-1]
            print(
                f"{solver:8s} M {M:3d} P {P:5d}  nettrim {mine['seconds']:6.2f} s (gap {mine['gap']:.0e})  {solver} "
                f"{seconds:7.1f} s ({sol.message}, gap {r['gap']:.0e}, violation {r['violation']:.0e})  "
                f"ratio {r['ratio']:.0f}",
                flush=True,
            )
            write("solvers", record)


def mine_difference(problem: nt.Problem, sol) -> float:
    """Relative difference of the objectives."""
    value = nt.Solver(problem, gap_tol=1e-6, feas_tol=1e-6).solve().certificate.objective
    return abs(value - sol.certificate.objective) / sol.certificate.objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["published", "cvxpy", "methods"])
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cap", type=float, default=40.0, help="stop the published algorithm at this ratio (default 40)"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for cvxpy's solvers (default 600)")
    parser.add_argument("--solvers", default="CLARABEL,SCS", help="cvxpy's, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=5000, help="samples of the part methods (default 5000)")
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 3, 4], help="of the part methods")
    parser.add_argument("--epsilons", type=float, nargs="*", default=EPSILONS, help="of the part methods")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "float64"], help="of the part methods")
    parser.add_argument(
        "--memory-limit", type=float, default=Settings().memory_limit, help="bytes of the working sets (part methods)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the part's earlier results")
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    compile_kernels()
    network()
    record = read("solvers") or {}
    if args.fresh:
        record.pop(args.part, None)
    environments = record.setdefault("environment", {})
    for row in record.get("published", []):
        # rows of an earlier run, which may have had another cap
        row.setdefault("cap", environments["published"]["cap"])
    for row in record.get("methods", []):
        row.setdefault("cap", environments["methods"]["cap"])
        row.setdefault("threads", environments["methods"]["threads"])
    environments[args.part] = environment(threads) | {"cap": args.cap, "limit": args.limit}
    if args.part == "published":
        published(threads, args.cap, args.repeats, record)
    elif args.part == "methods":
        methods(args, threads, record)
    else:
        cvxpy_rows(threads, args.limit, args.repeats, args.solvers.split(","), record)


if __name__ == "__main__":
    main()

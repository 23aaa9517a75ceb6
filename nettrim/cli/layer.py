"""``nettrim solve`` and ``nettrim verify``: one layer, from and into npz files."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nettrim import __version__, files, show
from nettrim.cli.common import CERTIFIED, INFEASIBLE, NOT_CONVERGED, FeasTol, GapTol, Json, app, complain, door
from nettrim.cli.networks import Data, Model, Weights, verify_run
from nettrim.files import Precision, Refused
from nettrim.path import FIRST, count_of, to_count
from nettrim.problem import Problem
from nettrim.report import to_json
from nettrim.reweight import check_rounds, reweight
from nettrim.settings import Settings
from nettrim.solution import Solution, Status, certify, verify_ray
from nettrim.solver import Solver

Penalty = Annotated[
    str,
    typer.Option(
        help="l1, rows, columns, nuclear, ridge, k_support, or with parameters elastic_net:ridge=0.1, "
        "total_variation:shape=28x28,weight=2."
    ),
]


@app.command("solve")
def _solve(
    problem_file: Annotated[
        Path, typer.Argument(metavar="IN.npz", help="Holds X (N x P), Y (M x P) and, if wanted, omega, V and C.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.npz", help="Receives W, the multipliers and the certificate."),
    ],
    epsilon: Annotated[float | None, typer.Option(help="Error allowed, relative to the norm of Y on Omega.")] = None,
    density: Annotated[
        float | None,
        typer.Option(help="In place of an error, the part of the weights to keep at most.", show_default="none"),
    ] = None,
    epsilon_abs: Annotated[float | None, typer.Option(help="Error allowed, in the units of Y.")] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="A layer without a ReLU: every entry of Y is to be met.")
    ] = False,
    neuronwise: Annotated[bool, typer.Option("--neuronwise", help="An equal share of the error per neuron.")] = False,
    unpenalised_row: Annotated[
        int | None,
        typer.Option(
            help="Row of X whose weights cost nothing, such as the row of ones of a bias; -1 is the last.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="Of reweighted l1, at most; more keep fewer weights within the same error.")
    ] = 1,
    penalty: Penalty = "l1",
    gap_tol: GapTol = 1e-3,
    feas_tol: FeasTol = 1e-4,
    max_iterations: Annotated[int, typer.Option(help="Limit on the iterations.")] = 20000,
    time_limit: Annotated[float, typer.Option(help="Limit on the seconds.", show_default="none")] = math.inf,
    threads: Annotated[int | None, typer.Option(help="Threads to use.", show_default="all cores")] = None,
    method: Annotated[str, typer.Option(help="auto, working_set or admm.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, numba, numpy or cupy.")] = "auto",
    device_memory: Annotated[
        float | None,
        typer.Option(help="Bytes of a GPU's memory to use, such as 8e9.", show_default="what is free, less a reserve"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Leave the samples in IN.npz, which numpy.savez wrote, and read them in parts within so much memory, "
            "such as 2GB.",
            show_default="all in memory",
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --memory, for the solver's state where it does not fit.",
            show_default="the system's",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep ADMM's state there, so that the same command goes on after it was stopped.",
            show_default="none",
        ),
    ] = None,
    checkpoint_every: Annotated[float, typer.Option(metavar="SECONDS", help="Between two checkpoints.")] = 60.0,
    dtype: Annotated[
        Precision | None, typer.Option(help="Working precision.", show_default="the wider one of X and Y")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Find the sparsest weights of one layer within a stated error, with a certificate.

    Ctrl-C stops at the next iteration; the best weights so far are written with their certificate, and with
    --checkpoint the same command goes on from there.
    """
    if sum(value is not None for value in (epsilon, epsilon_abs, density)) != 1:
        raise Refused("give one of --epsilon (relative to the norm of Y on Omega), --epsilon-abs and --density")
    files.check_output(output, problem_file)
    if scratch is not None and memory is None:
        raise Refused("--scratch is for samples that are read in parts: give --memory too")
    with door():
        limits: dict[str, Any] = {} if memory is None else {"memory": memory}
        limits |= {"scratch": scratch, "checkpoint": checkpoint, "checkpoint_every": checkpoint_every}
        Settings(**limits)
    in_parts = () if memory is None else ("X", "Y", "omega", "V")
    arrays = files.load(problem_file, required=("X", "Y"), optional=("omega", "V", "C"), chunked=in_parts)
    with door():
        problem = layer_problem(
            arrays,
            epsilon=epsilon if density is None else FIRST,
            epsilon_abs=epsilon_abs,
            linear=linear,
            neuronwise=neuronwise,
            unpenalised_row=unpenalised_row,
            penalty=penalty,
            dtype=dtype.value if dtype else None,
        )
        check_rounds(rounds)
        if rounds > 1 and not problem.penalty.counts:
            raise ValueError(f"rounds need a penalty that stands for a count; {penalty} does not")
        nnz = None if density is None else count_of(problem, density, None)
        display = show.Display(gap_tol, quiet)
        stage = f"solving {problem_file.name}"
        settings = Settings(
            gap_tol=gap_tol,
            feas_tol=feas_tol,
            max_iterations=max_iterations,
            time_limit=time_limit,
            n_threads=threads,
            method=method,
            backend=backend,
            device_memory=device_memory,
            **limits,
            callback=lambda check: display(stage, check),
        )
    try:
        solver = Solver(problem, settings)
    except (ImportError, RuntimeError, ValueError) as error:
        # the settings themselves have been checked: it is what they and the penalty, or the machine, allow
        raise Refused(f"--backend {backend}, --method {method}: {error}") from error
    plan = solver.memory_plan()
    if plan is not None and not quiet:
        print(plan.table(), file=sys.stderr)
    with display, door():
        display(stage, None)
        solution = reweight(solver, rounds) if nnz is None else to_count(solver, nnz, rounds)
    if nnz is not None:
        problem = problem.replace(epsilon=solution.settings["epsilon"])
    about = {
        "nettrim": __version__,
        "epsilon_abs": problem.epsilon,
        "epsilon_relative": problem.epsilon / problem.y_norm if problem.y_norm > 0 else None,
        "linear": linear,
        "neuronwise": neuronwise,
        "unpenalised_row": unpenalised_row,
        "penalty": problem.penalty.to_dict(),
        **solution.to_dict(),
    }
    files.write_solution(output, solution, about)
    code = _code(solution.status)
    if as_json:
        print(to_json(about | {"input": problem_file, "output": output}))
    elif not quiet:
        show.print_solution(problem, solution, output)
    if code != CERTIFIED:
        complain(_shortfall(solution))
    return code


@app.command("verify")
def _verify(
    problem_file: Annotated[
        Path,
        typer.Argument(metavar="IN.npz|RUN", help="The problem that was solved, or the folder of a pruned network."),
    ],
    solution_file: Annotated[
        Path | None, typer.Argument(metavar="OUT.npz", help="What `nettrim solve` wrote, for a problem.")
    ] = None,
    bound: Annotated[
        bool,
        typer.Option(
            "--bound", help="Of a network, solve every layer again and recompute its gap too, but of reweighted ones."
        ),
    ] = False,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Recompute certificates from the weights and the samples alone.

    Of a layer (IN.npz OUT.npz), in float64 from X, Y, W and the multipliers; of a network (RUN), each layer's
    violations from the saved weights, the model that the run began with and its samples; the code that builds the
    model, as the run names it, is run. What was stored is only shown beside it. Exit code 0 if all is within the
    tolerances that were claimed (or the proof of infeasibility holds), else 2.
    """
    if solution_file is None:
        if not problem_file.is_dir():
            raise Refused(f"{problem_file} is not a folder: give IN.npz and OUT.npz of a layer, or the folder of a run")
        return verify_run(problem_file, model, weights, data, bound, as_json)
    if bound or model or weights or data:
        raise Refused("--bound, --model, --weights and --data are for networks: a layer's files hold all of it")
    arrays = files.load(problem_file, required=("X", "Y"), optional=("omega", "V", "C"))
    stored = files.load(solution_file, required=("W", "problem"), optional=("dual", "ray", "C"))
    for name in stored.keys() - {"problem"}:
        if stored[name].dtype.kind != "f":
            raise Refused(f"{name} in {solution_file} must be of a floating dtype; got {stored[name].dtype}")
    about = files.read_about(stored["problem"], solution_file)
    claimed = about["certificate"]
    with door(f"{problem_file} and {solution_file} do not fit: "):
        problem = layer_problem(
            arrays,
            epsilon_abs=about["epsilon_abs"],
            linear=about["linear"],
            neuronwise=about["neuronwise"],
            unpenalised_row=about["unpenalised_row"],
            penalty=about.get("penalty"),
            dtype=np.result_type(about["settings"]["dtype"], *(arrays[k] for k in "XY" if arrays[k].dtype.kind == "f")),
        )
        if "C" in stored:
            # the norm of a later round of reweighting
            problem = problem.replace(C=stored["C"])
        certificate = certify(problem, stored["W"], stored.get("dual"))
        infeasible = about["status"] == Status.INFEASIBLE.value
        forced = verify_ray(problem, stored["ray"]) if infeasible and "ray" in stored else None
    gap_tol, feas_tol = about["settings"]["gap_tol"], about["settings"]["feas_tol"]
    if infeasible:
        holds = forced is not None and forced >= show.RAY_PROVES
    else:
        holds = certificate.holds(gap_tol, feas_tol)
    if as_json:
        print(
            to_json(
                {
                    "holds": holds,
                    "status": about["status"],
                    "epsilon_abs": problem.epsilon,
                    "epsilon_relative": problem.epsilon / problem.y_norm if problem.y_norm > 0 else None,
                    "gap_tol": gap_tol,
                    "feas_tol": feas_tol,
                    "ray_forces": forced,
                    "recomputed": certificate,
                    "stored": claimed,
                }
            )
        )
    else:
        show.print_verdict(problem, certificate, claimed, gap_tol, feas_tol, infeasible, forced)
    if holds:
        return CERTIFIED
    if infeasible:
        complain("does not hold: the ray does not prove that nothing is feasible")
    elif "dual" not in stored:
        complain(
            f"no gap: {solution_file} has no multipliers, as those of samples that were read in parts; "
            f"violation {certificate.violation:.2e}"
        )
    else:
        complain(f"does not hold: gap {certificate.gap:.2e}, violation {certificate.violation:.2e}")
    return NOT_CONVERGED


def layer_problem(
    arrays: dict[str, np.ndarray],
    *,
    epsilon: float | None = None,
    epsilon_abs: float | None = None,
    linear: bool,
    neuronwise: bool,
    unpenalised_row: int | None,
    penalty: Any,
    dtype: Any,
) -> Problem:
    """The problem of a file's arrays and the options of the command line."""
    X, Y = arrays["X"], arrays["Y"]
    if linear and "omega" in arrays:
        raise ValueError("--linear cannot be combined with an array omega: it says that every entry is in Omega")
    omega = "linear" if linear else arrays.get("omega", "active")
    C = arrays.get("C", np.float32(1))
    if unpenalised_row is not None:
        N, M = (X.shape[0], Y.shape[0]) if X.ndim == Y.ndim == 2 else (0, 0)
        if not -N <= unpenalised_row < N:
            raise ValueError(f"--unpenalised-row must be between {-N} and {N - 1}; got {unpenalised_row}")
        # a wrong C is left to the library's own check
        if C.ndim == 0:
            C = np.full((N, 1), C, np.result_type(C.dtype, np.float32))
        elif C.shape == (N,):
            C = C.reshape(N, 1)
        if C.shape in ((N, 1), (N, M)):
            C = C.copy()
            C[unpenalised_row] = 0
    return Problem(
        X,
        Y,
        epsilon,
        epsilon_abs=epsilon_abs,
        omega=omega,
        V=arrays.get("V", 0.0),
        C=C,
        penalty=penalty,
        neuronwise=neuronwise,
        dtype=dtype,
    )


def _shortfall(solution: Solution) -> str:
    """Why a solution is not certified, and which option would help."""
    advice = {
        Status.SOLVED_INACCURATE: "raise --max-iterations, or try --dtype float64",
        Status.MAX_ITERATIONS: "raise --max-iterations, or loosen --gap-tol or --feas-tol",
        Status.TIME_LIMIT: "raise --time-limit",
        Status.INTERRUPTED: "the best weights so far were written",
    }
    if solution.status not in advice:
        return f"{solution.status}: {solution.message}"
    c, s = solution.certificate, solution.settings
    if c.holds(s["gap_tol"], s["feas_tol"]):
        return f"{str(solution.status).replace('_', ' ')}: {solution.message}"
    return (
        f"{str(solution.status).replace('_', ' ')}: gap {c.gap:.1e} (asked {s['gap_tol']:g}),"
        f" violation {c.violation:.1e} (asked {s['feas_tol']:g}); {advice[solution.status]}"
    )


def _code(status: Status) -> int:
    if status is Status.SOLVED:
        return CERTIFIED
    return INFEASIBLE if status is Status.INFEASIBLE else NOT_CONVERGED

"""The command line: ``nettrim demo | solve | verify | doctor``.

Exit codes: 0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible. With ``--json`` the
standard output holds JSON and nothing else; progress and errors go to the standard error.

What is slow to import (Numba, scikit-learn, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nettrim import __version__, files, show
from nettrim.files import Precision, Refused
from nettrim.problem import Problem
from nettrim.report import table, to_json
from nettrim.settings import Settings
from nettrim.solution import Solution, Status, certify, verify_ray
from nettrim.solver import Solver

__all__ = ["app", "main"]

CERTIFIED, USAGE, NOT_CONVERGED, INFEASIBLE = 0, 1, 2, 3

app = typer.Typer(
    add_completion=False,
    help="Prune trained neural networks layer by layer by convex optimisation, with a certificate.",
    epilog="Exit codes: 0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible.",
)


Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output and nothing else.")]
GapTol = Annotated[float, typer.Option(help="Relative duality gap at which a layer counts as solved.")]
FeasTol = Annotated[float, typer.Option(help="Relative violation of the constraints that is tolerated.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; default those of the process.

    Returns
    -------
    int
        0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="nettrim", standalone_mode=False) or 0
        if code == 130:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except Refused as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return NOT_CONVERGED
    except BrokenPipeError:
        # the reader of the standard output has left; nothing more can be said there, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except MemoryError as error:
        # a memory plan is a table
        print(f"nettrim: not enough memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        return USAGE
    except Exception as error:
        # usage errors of typer, which carries its own copy of click or the package, depending on its version
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "nettrim"
        return _complain(f"{error.format_message().replace('Value error, ', '').rstrip('.')}; see {path} --help")


def _complain(message: str) -> int:
    print(f"nettrim: {' '.join(message.split())}", file=sys.stderr)
    return USAGE


#: options that are called otherwise in the library
OPTION_NAMES = {"n_threads": "--threads"} | {
    name: "--" + name.replace("_", "-")
    for name in (
        *("epsilon", "epsilon_abs", "gap_tol", "feas_tol", "max_iterations", "time_limit", "method", "backend"),
        "device_memory",
    )
}


@contextmanager
def _door(about: str = "") -> Iterator[None]:
    """Turn what the library refuses, or warns of, at its door into a line for the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except (ValueError, TypeError) as error:
            name, space, rest = str(error).partition(" ")
            raise Refused(f"{about}{OPTION_NAMES.get(name, name)}{space}{rest}") from error
        finally:
            for warning in caught:
                text = str(warning.message).replace('pass omega="linear"', "use --linear")
                _complain(f"warning: {text}")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"nettrim {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("demo")
def _demo(
    epsilon: Annotated[
        float, typer.Option(help="Error allowed in each hidden layer, relative to the norm of its outputs.")
    ] = 0.1,
    output: Annotated[Path, typer.Option(help="Folder for the picture and the pruned network.")] = Path("nettrim-demo"),
    as_json: Json = False,
) -> int:
    """Prune the hidden layers of a bundled digits classifier; print a table, write a picture and the pruned network."""
    from nettrim.demo import run_demo

    if not 0 < epsilon <= 1:
        raise Refused(f"--epsilon must be above 0 and at most 1; got {epsilon:g}")
    try:
        with show.Display(Settings().gap_tol) as display:
            report = run_demo(epsilon, output, progress=display)
    except ImportError as error:
        raise Refused(str(error)) from error
    code = CERTIFIED if report.certified else NOT_CONVERGED
    if as_json:
        print(to_json(report))
        return code
    console = show.open_console()
    samples = report.samples
    facts: dict[str, Callable[[Any], str]] = {
        "shape (inputs x neurons)": lambda layer: f"{layer.inputs} x {layer.neurons}",
        "weights before": lambda layer: f"{layer.weights}",
        "weights kept": lambda layer: f"{layer.weights_kept} ({layer.weights_kept / layer.weights:.1%})",
        "biases before": lambda layer: f"{layer.biases}",
        "biases kept": lambda layer: f"{layer.biases_kept}",
        f"error on {samples['calibration']} calibration samples": lambda layer: f"{layer.error_calibration:.2%}",
        f"error on {samples['heldout']} held-out samples": lambda layer: f"{layer.error_heldout:.2%}",
        "duality gap": lambda layer: f"{layer.gap:.1e}",
        "violation of the constraints": lambda layer: f"{layer.violation:.1e}",
        "status": lambda layer: layer.status,
        "seconds": lambda layer: f"{layer.seconds:.2f}",
    }
    rows = [{"layer": name} | {layer.name: show(layer) for layer in report.layers} for name, show in facts.items()]
    title = f"Hidden layers of a digits classifier, pruned with epsilon = {report.epsilon:g}"
    console.print(title, style="bold", markup=False)
    console.print(table(rows))
    before, after = (sum(getattr(layer, name) for layer in report.layers) for name in ("weights", "weights_kept"))
    lines = [
        f"weights kept   {after} of {before} ({after / before:.1%}); the last layer, {report.logit_weights} weights,"
        " stays dense",
        f"test accuracy  {report.accuracy_dense:.1%} dense, {report.accuracy_pruned:.1%} pruned"
        f" ({report.images['test']} images)",
        "error          ||relu(W^T X) - Y||_F / ||Y||_F, Y being the outputs of the dense layer",
        "duality gap    how far the weights' l1 norm is, at most and relatively, from the smallest one possible;",
        "               if negative, they gain that much by the violation",
        "biases         are not penalised: none is pruned for its size, and a neuron without one may get one",
        "samples        digits, and copies of them shifted by a pixel",
        f"time           {report.seconds['total']:.1f} s, of which {report.seconds['compile']:.1f} s of compilation and"
        f" {report.seconds['trade_off']:.1f} s for the trade-off curve",
    ]
    if report.picture:
        lines.append(f"picture        {report.picture}")
    lines.append(f"network        {report.network}")
    show.print_lines(console, lines)
    if not report.certified:
        _complain("interrupted" if report.interrupted else "a layer is not certified within the tolerances")
    return code


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
    dtype: Annotated[
        Precision | None, typer.Option(help="Working precision.", show_default="the wider one of X and Y")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Find the sparsest weights of one layer within a stated error, with a certificate.

    Ctrl-C stops at the next iteration; the best weights so far are written with their certificate.
    """
    if (epsilon is None) == (epsilon_abs is None):
        raise Refused("give one of --epsilon (relative to the norm of Y on Omega) and --epsilon-abs")
    files.check_output(output, problem_file)
    arrays = files.load(problem_file, required=("X", "Y"), optional=("omega", "V", "C"))
    with _door():
        problem = _problem(
            arrays,
            epsilon=epsilon,
            epsilon_abs=epsilon_abs,
            linear=linear,
            neuronwise=neuronwise,
            unpenalised_row=unpenalised_row,
            dtype=dtype.value if dtype else None,
        )
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
            callback=lambda check: display(stage, check),
        )
    try:
        solver = Solver(problem, settings)
    except (ImportError, RuntimeError) as error:
        raise Refused(f"--backend {backend}: {error}") from error
    plan = solver.memory_plan()
    if plan is not None and not quiet:
        print(plan.table(), file=sys.stderr)
    with display:
        display(stage, None)
        solution = solver.solve()
    about = {
        "nettrim": __version__,
        "epsilon_abs": problem.epsilon,
        "epsilon_relative": problem.epsilon / problem.y_norm if problem.y_norm > 0 else None,
        "linear": linear,
        "neuronwise": neuronwise,
        "unpenalised_row": unpenalised_row,
        **solution.to_dict(),
    }
    files.write_solution(output, solution, about)
    code = _code(solution.status)
    if as_json:
        print(to_json(about | {"input": problem_file, "output": output}))
    elif not quiet:
        show.print_solution(problem, solution, output)
    if code != CERTIFIED:
        _complain(_shortfall(solution))
    return code


@app.command("verify")
def _verify(
    problem_file: Annotated[Path, typer.Argument(metavar="IN.npz", help="The problem that was solved.")],
    solution_file: Annotated[Path, typer.Argument(metavar="OUT.npz", help="What `nettrim solve` wrote.")],
    as_json: Json = False,
) -> int:
    """Recompute the certificate of a solution in float64 from X, Y, W and the multipliers alone.

    The stored certificate is not used; it is only shown beside the new one. Exit code 0 if the gap and the violations
    are within the tolerances that the solution claims (or its proof of infeasibility holds), else 2.
    """
    arrays = files.load(problem_file, required=("X", "Y"), optional=("omega", "V", "C"))
    stored = files.load(solution_file, required=("W", "problem"), optional=("dual", "ray"))
    for name in stored.keys() - {"problem"}:
        if stored[name].dtype.kind != "f":
            raise Refused(f"{name} in {solution_file} must be of a floating dtype; got {stored[name].dtype}")
    about = files.read_about(stored["problem"], solution_file)
    claimed = about["certificate"]
    with _door(f"{problem_file} and {solution_file} do not fit: "):
        problem = _problem(
            arrays,
            epsilon_abs=about["epsilon_abs"],
            linear=about["linear"],
            neuronwise=about["neuronwise"],
            unpenalised_row=about["unpenalised_row"],
            dtype=np.result_type(about["settings"]["dtype"], *(arrays[k] for k in "XY" if arrays[k].dtype.kind == "f")),
        )
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
        _complain("does not hold: the ray does not prove that nothing is feasible")
    else:
        _complain(f"does not hold: gap {certificate.gap:.2e}, violation {certificate.violation:.2e}")
    return NOT_CONVERGED


@app.command("doctor")
def _doctor(as_json: Json = False) -> int:
    """Show versions, BLAS, threads, GPUs, optional packages and data, and solve a small layer as a self-check."""
    from nettrim.doctor import examine

    found = examine()
    holds = found["self_check"]["status"] == Status.SOLVED.value
    if as_json:
        print(to_json(found))
    else:
        show.print_findings(found)
    if not holds:
        _complain(f"the self-check failed: {found['self_check']['message']}")
    return CERTIFIED if holds else NOT_CONVERGED


def _problem(
    arrays: dict[str, np.ndarray],
    *,
    epsilon: float | None = None,
    epsilon_abs: float | None = None,
    linear: bool,
    neuronwise: bool,
    unpenalised_row: int | None,
    dtype: Any,
) -> Problem:
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
    return (
        f"{str(solution.status).replace('_', ' ')}: gap {c.gap:.1e} (asked {s['gap_tol']:g}),"
        f" violation {c.violation:.1e} (asked {s['feas_tol']:g}); {advice[solution.status]}"
    )


def _code(status: Status) -> int:
    if status is Status.SOLVED:
        return CERTIFIED
    return INFEASIBLE if status is Status.INFEASIBLE else NOT_CONVERGED


if __name__ == "__main__":
    sys.exit(main())

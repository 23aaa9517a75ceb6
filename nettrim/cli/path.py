"""``nettrim path``: the trade-off of one layer between error and weights kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nettrim import __version__, files, show
from nettrim.cli.common import CERTIFIED, NOT_CONVERGED, FeasTol, GapTol, Json, app, complain, door
from nettrim.cli.layer import Penalty, layer_problem
from nettrim.extras import install
from nettrim.files import Precision, Refused
from nettrim.path import EPSILONS, along
from nettrim.problem import Problem
from nettrim.report import to_json, write_atomically
from nettrim.reweight import check_rounds
from nettrim.settings import Settings
from nettrim.solution import Status
from nettrim.solver import Solver


@app.command("path")
def _path(
    problem_file: Annotated[
        Path, typer.Argument(metavar="IN.npz", help="Holds X (N x P), Y (M x P) and, if wanted, omega, V and C.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.npz", help="Receives W (one for each error) and the certificates."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Receives the curve; needs matplotlib.")] = None,
    epsilons: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Errors relative to the norm of Y on Omega, separated by commas.")
    ] = ",".join(map(str, EPSILONS)),
    heldout: Annotated[
        Path | None, typer.Option(metavar="OTHER.npz", help="X and Y of other samples, to measure the errors on.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of reweighted l1 at each error, at most.")] = 1,
    penalty: Penalty = "l1",
    linear: Annotated[
        bool, typer.Option("--linear", help="A layer without a ReLU: every entry of Y is to be met.")
    ] = False,
    neuronwise: Annotated[bool, typer.Option("--neuronwise", help="An equal share of the error per neuron.")] = False,
    unpenalised_row: Annotated[
        int | None, typer.Option(help="Row of X whose weights cost nothing, such as the row of ones of a bias.")
    ] = None,
    gap_tol: GapTol = 1e-3,
    feas_tol: FeasTol = 1e-4,
    time_limit: Annotated[
        float, typer.Option(help="Limit on the seconds of each solve.", show_default="none")
    ] = math.inf,
    threads: Annotated[int | None, typer.Option(help="Threads to use.", show_default="all cores")] = None,
    method: Annotated[str, typer.Option(help="auto, working_set or admm.")] = "auto",
    dtype: Annotated[
        Precision | None, typer.Option(help="Working precision.", show_default="the wider one of X and Y")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Trace how many weights a layer keeps at each of several errors, every point certified.

    Errors go from the largest to the smallest, each solve from the one before. After Ctrl-C the points so far are
    written.
    """
    if output is not None:
        files.check_output(output, problem_file)
    if plot is not None:
        files.check_output(plot, problem_file)
        if output is not None and plot.resolve() == output.resolve():
            raise Refused(f"--plot and --output are the same file, {plot}")
        _matplotlib()
    arrays = files.load(problem_file, required=("X", "Y"), optional=("omega", "V", "C"))
    others = None if heldout is None else files.load(heldout, required=("X", "Y"), optional=("omega", "V"))
    for name in ("omega", "V") if others is not None else ():
        if (name in arrays) != (name in others):
            raise Refused(f"--heldout: {name} must be in both files or in neither")
    try:
        values = sorted({float(e) for e in epsilons.split(",")}, reverse=True)
    except ValueError as error:
        raise Refused(f"--epsilons must be numbers separated by commas; got {epsilons!r}") from error
    display = show.Display(gap_tol, quiet)
    stage = [f"solving {problem_file.name}"]
    with door():
        check_rounds(rounds)
        problem = layer_problem(
            arrays,
            epsilon=values[0],
            linear=linear,
            neuronwise=neuronwise,
            unpenalised_row=unpenalised_row,
            penalty=penalty,
            dtype=dtype.value if dtype else None,
        )
        if rounds > 1 and not problem.penalty.counts:
            raise ValueError(f"rounds need a penalty that stands for a count; {penalty} does not")
        for epsilon in values:
            problem.replace(epsilon=epsilon)
        judge = None
        if others is not None:
            omega = "linear" if problem.linear else others.get("omega", "active")
            bounds: dict[str, Any] = {"omega": omega, "V": others.get("V", 0.0), "dtype": problem.dtype}
            judge = Problem(others["X"], others["Y"], values[0], **bounds)
        if judge is not None and (judge.N, judge.M) != (problem.N, problem.M):
            raise ValueError(
                f"--heldout has a layer of {judge.N} x {judge.M}; the problem is {problem.N} x {problem.M}"
            )
        settings = Settings(
            gap_tol=gap_tol,
            feas_tol=feas_tol,
            time_limit=time_limit,
            n_threads=threads,
            method=method,
            callback=lambda check: display(stage[0], check),
        )
        solver = Solver(problem, settings)

    def follow(epsilon: float) -> None:
        stage[0] = f"epsilon {epsilon:g}"
        display(stage[0], None)

    with display:
        curve = along(solver, values, rounds, judge, follow)
    about = {
        **{"nettrim": __version__, "linear": linear, "neuronwise": neuronwise, "unpenalised_row": unpenalised_row},
        **{"rounds": rounds, "penalty": problem.penalty.to_dict(), "y_norm": problem.y_norm, **curve.to_dict()},
    }
    if output is not None:
        with write_atomically(output) as file:
            weights = np.stack([s.W for s in curve])
            np.savez(file, W=weights, epsilons=np.array(curve.epsilons), path=np.str_(to_json(about)))
    if plot is not None:
        with write_atomically(plot) as file:
            _plot(curve, problem, file)
    if as_json:
        print(to_json(about | {"input": problem_file, "output": output, "plot": plot}))
    elif not quiet:
        print(curve.table())
        for what in (output, plot):
            if what is not None:
                print(f"written to {what}")
    short = [f"{e:g}" for e, s in zip(curve.epsilons, curve, strict=True) if s.status is not Status.SOLVED]
    if len(curve) < len(values):
        complain(f"interrupted after {len(curve)} of {len(values)} errors")
    elif short:
        complain(f"not certified within the tolerances at epsilon {', '.join(short)}")
    return NOT_CONVERGED if short or len(curve) < len(values) else CERTIFIED


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise Refused(f"--plot needs matplotlib: {install('demo')}") from error
    return matplotlib


def _plot(curve: Any, problem: Problem, file: Any) -> None:
    """Weights kept against the error, on the calibration samples and on others."""
    _matplotlib().use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    kept = [100 * d for d in curve.densities]
    axes.plot(kept, [100 * s.certificate.error for s in curve], "o-", label="samples of the problem")
    if curve.heldout is not None:
        axes.plot(kept, [100 * e for e in curve.heldout], "s--", label="held-out samples")
        axes.legend(frameon=False)
    axes.set(xlabel="weights kept [%]", ylabel="error of the outputs [% of their norm]", xlim=(0, None), ylim=(0, None))
    axes.set_title(f"{problem.N} inputs, {problem.M} neurons, {problem.P} samples", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=150)
    plt.close(figure)

"""``nettrim demo`` and ``nettrim doctor``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim import show
from nettrim.cli.common import CERTIFIED, NOT_CONVERGED, Json, app, complain
from nettrim.files import Refused
from nettrim.report import table, to_json
from nettrim.settings import Settings
from nettrim.solution import Status


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
        complain("interrupted" if report.interrupted else "a layer is not certified within the tolerances")
    return code


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
        complain(f"the self-check failed: {found['self_check']['message']}")
    return CERTIFIED if holds else NOT_CONVERGED

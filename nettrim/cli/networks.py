"""``nettrim prune`` and ``nettrim report``: whole networks, each run in a folder of its own."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim import files, show
from nettrim.cli.common import CERTIFIED, NOT_CONVERGED, FeasTol, GapTol, Json, app, complain, door, quiet_code
from nettrim.cli.job import FILE, Job, arguments
from nettrim.files import Refused
from nettrim.flow import SCHEMES
from nettrim.how import How
from nettrim.patterns import densities_for, numbers_for
from nettrim.report import to_json, write_atomically
from nettrim.settings import Settings

__all__ = ["WEIGHTS", "Data", "Model", "Weights", "verify_run"]

#: runs on one page
MOST_RUNS = 10
#: the pruned model in the folder of a run; its report is beside it, with the suffix .json
WEIGHTS = "pruned.safetensors"

Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="As for prune, if it has moved.", show_default=False)
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="As for prune, if moved.", show_default=False)
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="As for prune, if moved.", show_default=False)
]


@app.command("prune")
def _prune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:function or file.py:function; the function returns the model (a module will do too).",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Calibration samples: an .npz file with X, samples first, or an .npy file."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="RUN", help="Folder of the run; a stopped one goes on.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Safetensors file with the model's state.", show_default="the function's own"
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Arrays of the .npz file for the model's arguments, as x,mask.",
            show_default="X, or the only one",
        ),
    ] = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER",
            help="Error of each layer relative to its outputs (cascade: of the first layer); or PATTERN=NUMBER several "
            "times, of which the first that fits a layer counts.",
            show_default="0.05",
        ),
    ] = None,
    density: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER",
            help="In place of an error, the part of each layer's weights to keep; or PATTERN=NUMBER several times.",
            show_default="none",
        ),
    ] = None,
    allocate: Annotated[
        bool,
        typer.Option(
            "--allocate",
            help="--density is that of all layers together; each one's is chosen by the error at the model's end.",
        ),
    ] = False,
    scheme: Annotated[str, typer.Option(help="parallel or cascade.")] = "parallel",
    gamma: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER", help="Slackness of the cascade's further layers, as for --epsilon.", show_default="1.1"
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers to prune, such as 'encoder.*' or 're:...'; several times.",
            show_default="all",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave as they are; several times.", show_default="none"),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="Of reweighted l1 at most: more keep fewer weights within the same errors.")
    ] = 1,
    refit: Annotated[
        str | None,
        typer.Option(
            help="free or within: smaller errors on the same support, free of the constraints or within them.",
            show_default="none",
        ),
    ] = None,
    effort: Annotated[str, typer.Option(help="fast, default or thorough: of --method l0.")] = "default",
    penalty: Annotated[
        str | None,
        typer.Option(
            help="inputs or outputs: whole inputs or outputs (channels) leave, in the place of single weights.",
            show_default="none",
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Such as 2:4, at most 2 of 4 consecutive inputs, in the place of --epsilon and --density; not by l1.",
            show_default="none",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Use so many of the samples.", show_default="all")] = None,
    holdout: Annotated[float, typer.Option(help="Part of them that is held back to measure errors on.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Samples that the model runs on at once.")] = 256,
    fold: Annotated[bool, typer.Option(help="Fold batch norms into the layers before them first.")] = True,
    penalise_bias: Annotated[bool, typer.Option(help="Whether biases count in the l1 norm.")] = True,
    memory: Annotated[str, typer.Option(help="What a layer's inputs may take in memory.")] = "4GB",
    layout: Annotated[str, typer.Option(help="dense or csr, of the file with the pruned weights.")] = "dense",
    gap_tol: GapTol = 1e-3,
    feas_tol: FeasTol = 1e-4,
    time_limit: Annotated[float, typer.Option(help="Limit on the seconds of a layer.", show_default="none")] = math.inf,
    threads: Annotated[int | None, typer.Option(help="Threads to use.", show_default="all cores")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto, working_set or admm: l1 by one of its solvers. With --density also l0, a search that proves "
            "nothing and errs less, or alps, sparsegpt, wanda, magnitude, random to compare with."
        ),
    ] = "auto",
    backend: Annotated[str, typer.Option(help="auto, numba, numpy or cupy.")] = "auto",
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Solve the layers of the parallel scheme beside each other: processes or threads of this machine, or "
            "the address of a Dask scheduler, such as tcp://10.0.0.1:8786 (or its --scheduler-file).",
            show_default="one after the other",
        ),
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Only show what each layer will take, and stop.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Prune the Linear and convolution layers of a PyTorch model, with a certificate for each.

    The folder RUN receives every layer when it is finished, and at the end pruned.safetensors with its report. After
    Ctrl-C, or a crash, the same command goes on with the first unfinished layer.
    """
    if batch_size < 1:
        raise Refused(f"--batch-size must be at least 1; got {batch_size}")
    if layout not in ("dense", "csr"):
        raise Refused(f"--layout must be dense or csr; got {layout!r}")
    if output is None and not plan_only:
        raise Refused("give --output, the folder of the run (or --plan, which only shows what it will take)")
    if output is not None and output.exists() and not output.is_dir():
        raise Refused(f"--output {output} is not a folder")
    with door():
        Settings.make(gap_tol=gap_tol, feas_tol=feas_tol, time_limit=time_limit, n_threads=threads, backend=backend)
        How(method, rounds, refit, effort, penalty, pattern).density(epsilon, density)
    if scheme not in SCHEMES:
        raise Refused(f"--scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if dask is not None and scheme != "parallel":
        raise Refused("--dask is for --scheme parallel: a layer of the cascade waits for those before it")
    gammas, densities, total = _numbers("--gamma", gamma or ["1.1"]), None, None
    epsilons: float | dict[str, float] | None = None
    if density:
        densities = _numbers("--density", density)
        total = densities if isinstance(densities, float) else None
        if allocate and total is None:
            raise Refused("--allocate needs one --density, of all layers together")
    elif allocate:
        raise Refused("--allocate needs a --density")
    elif pattern is None:
        epsilons = _numbers("--epsilon", epsilon or ["0.05"])
    job = Job(
        model,
        str(Path.cwd()),
        None if weights is None else str(weights.resolve()),
        str(data.resolve()),
        tuple(name.strip() for name in inputs.split(",")) if inputs else (),
        batch_size,
    )
    with quiet_code():
        net = job.build()
        batches = job.batches(net)
    import nettrim.torch as ntt

    which: dict[str, Any] = {
        **{"targets": targets or ["*"], "ignore": ignore or [], "arguments": arguments, "samples": samples},
        **{"holdout": holdout, "fold": fold, "memory": memory},
    }
    with door(), quiet_code():
        plan = ntt.plan(net, batches, **which, n_threads=threads)
        names = [layer.name for layer in plan.layers]
        if densities is not None and not allocate:
            densities_for(names, densities)
        elif epsilons is not None:
            numbers_for(names, scheme, epsilons, gammas)
    if plan_only:
        print(to_json(plan) if as_json else plan.table())
        return CERTIFIED
    if not quiet:
        print(plan.table(), file=sys.stderr)
        if weights is None:
            print(f"nettrim: no --weights: the weights are those that {model} gives", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / FILE).exists():
        job.write(output)
    try:
        with door(), quiet_code(), show.Display(gap_tol, quiet) as display:
            there = {path.name for path in output.glob("layer_*.npz")}
            follow = _Follower(display, [layer.name for layer in plan.layers], there, beside=dask is not None)
            target: Any = densities
            if allocate:
                display.note("densities of the layers, from their errors at the model's end")
                about = {**which, "holdout": 0.5}
                target = ntt.allocate(net, batches, total, **about)
            pruned = ntt.prune(
                net,
                batches,
                **which,
                epsilon=epsilons,
                density=target,
                gamma=gammas,
                scheme=scheme,
                rounds=rounds,
                refit=refit,
                effort=effort,
                penalty=penalty,
                pattern=pattern,
                penalise_bias=penalise_bias,
                directory=output,
                progress=follow.finished,
                gap_tol=gap_tol,
                feas_tol=feas_tol,
                time_limit=time_limit,
                n_threads=threads,
                method=method,
                backend=backend,
                callback=follow.checked,
                client=dask,
            )
    except KeyboardInterrupt:
        complain(f"interrupted; {follow.count} of {len(plan.layers)} layers are finished, the same command goes on")
        return NOT_CONVERGED
    except (ImportError, RuntimeError) as error:
        raise Refused(str(error)) from error
    # it may be that of another command, which did not come to its first layer
    job.write(output)
    pruned.save(output / WEIGHTS, layout)
    sizes = ntt.sizes(pruned.model, [report.name for report in pruned.reports])["total"]
    short = [report.name for report in pruned.reports if report.status not in ("solved", "measured")]
    if as_json:
        about = {"run": output, "weights": output / WEIGHTS, "layout": layout, "bytes": sizes}
        print(to_json({**about, **pruned.to_dict()}))
    elif not quiet:
        show.print_pruned(pruned, output, WEIGHTS, sizes)
    if short:
        complain(f"not certified within the tolerances: {', '.join(short)}")
    return NOT_CONVERGED if short else CERTIFIED


@app.command("report")
def _report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs of one model.")],
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE.html", show_default="report.html in the first folder"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Draw a page of one run, or of several at other settings: kept and error per layer, weights, trade-off.

    It runs the code that builds the model, as the first run names it.

    The page is one file that needs nothing else. The error of magnitude pruning, drawn for comparison, is measured on
    samples that were held out from the first run.
    """
    target = output or runs[0] / "report.html"
    if len(runs) > MOST_RUNS:
        raise Refused(f"a page shows {MOST_RUNS} runs at most; got {len(runs)}")
    for run in runs:
        _finished(run)
    files.check_output(target, runs[0] / WEIGHTS)
    job = _job(runs[0], model, weights, data)
    with quiet_code():
        net = job.build()
        batches = job.batches(net)
    from nettrim import page
    from nettrim.torch.comparison import compare

    with door(), quiet_code():
        found = compare(net, batches, [run / WEIGHTS for run in runs], arguments)
    names = [run.resolve().name for run in runs]
    try:
        text = page.render(job.model, names if len(set(names)) == len(runs) else [str(run) for run in runs], found)
    except ImportError as error:
        raise Refused(str(error)) from error
    with write_atomically(target) as file:
        file.write(text.encode())
    if as_json:
        print(to_json({"page": target, "bytes": target.stat().st_size, "runs": runs}))
    else:
        print(f"{target}  ({target.stat().st_size / 1e3:.0f} kB)")
    return CERTIFIED


def verify_run(
    run: Path, model: str | None, weights: Path | None, data: Path | None, bound: bool, as_json: bool
) -> int:
    """`nettrim verify RUN`: recompute what a run promises from its weights, the model and the samples."""
    _finished(run)
    job = _job(run, model, weights, data)
    with quiet_code():
        net = job.build()
        batches = job.batches(net)
    import nettrim.torch as ntt

    with door(), quiet_code():
        rows = ntt.verify(run / WEIGHTS, batches, net, arguments=arguments, bound=bound)
        _, about = ntt.load(run / WEIGHTS)
    failed = [row.name for row in rows if not row.holds]
    if as_json:
        print(to_json({"holds": not failed, "run": run, "layers": [vars(row) for row in rows]}))
    else:
        show.print_verified(rows, about["settings"], bound)
    if failed:
        complain(f"does not hold: {', '.join(failed)}")
    return NOT_CONVERGED if failed else CERTIFIED


def _job(run: Path, model: str | None, weights: Path | None, data: Path | None) -> Job:
    """What a run worked on, with what the user says of it now; the code is only what the user names, or has named."""
    return Job.read(run, trusted=model is not None).elsewhere(model, weights, data)


def _finished(run: Path) -> None:
    if not (run / FILE).exists():
        raise Refused(f"{run} is not the folder of a run of nettrim prune: it has no {FILE}")
    if not (run / WEIGHTS).exists():
        raise Refused(f"{run} is not finished: it has no {WEIGHTS}; the same nettrim prune command goes on with it")


class _Follower:
    """Tells the display which layer is worked on."""

    def __init__(self, display: show.Display, names: list[str], there: set[str], beside: bool = False):
        self.display, self.names, self.there, self.beside = display, names, there, beside
        self.count, self.worked = 0, False
        self.display(self._stage(), None)

    def _stage(self) -> str:
        if self.count == len(self.names):
            return "measuring errors"
        if self.beside:
            return f"{self.count} of {len(self.names)} layers finished"
        return f"layer {self.count + 1} of {len(self.names)}, {self.names[self.count]}"

    def checked(self, check: dict[str, Any]) -> None:
        """Callback of the solver."""
        self.worked = True
        # beside each other, their checks are not those of one solve
        self.display(self._stage(), None if self.beside else check)

    def finished(self, report: Any) -> None:
        """Progress of `prune`."""
        place = self.names.index(report.name) if self.beside else self.count
        earlier = (self.beside or not self.worked) and f"layer_{place:03d}.npz" in self.there
        how = "from an earlier run" if earlier else f"{report.seconds:.1f} s"
        stage = f"layer {place + 1} of {len(self.names)}, {report.name}" if self.beside else self._stage()
        self.display.note(f"{stage}: {report.status.replace('_', ' ')}, kept {report.density:.1%}, {how}")
        self.count, self.worked = self.count + 1, False
        self.display(self._stage(), None)


def _numbers(option: str, texts: list[str]) -> float | dict[str, float]:
    """A number, or patterns with numbers."""
    found: dict[str, float] = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        if pattern in found:
            raise Refused(
                f"{option} has {pattern!r} twice" if pattern else f"{option} is given twice: {', '.join(texts)}"
            )
        try:
            found[pattern] = float(number)
        except ValueError as error:
            raise Refused(f"{option} must be a number, or PATTERN=NUMBER; got {text!r}") from error
    if "" in found:
        if len(texts) > 1:
            raise Refused(f"{option} is either one number, or PATTERN=NUMBER several times; got {', '.join(texts)}")
        return found[""]
    return found

"""Prune the layers of a torch model: what each computes is observed on calibration batches, the rest is nettrim's."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim import __version__
from nettrim.archives import open_npz
from nettrim.budget import Allocation
from nettrim.flow import SCHEMES
from nettrim.how import How
from nettrim.layer import USABLE, Layer, solve_groups
from nettrim.network import LayerReport, describe, table, warn_of_few_samples
from nettrim.path import FIRST
from nettrim.patterns import densities_for, numbers_for
from nettrim.problem import Problem
from nettrim.report import to_json, write_atomically
from nettrim.settings import Settings
from nettrim.torch.capture import (
    Arguments,
    arguments_of,
    batches_of,
    check_arguments,
    digest,
    evaluating,
    observe,
    split,
    state_digest,
)
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.graph import Target, find_targets, layer_of
from nettrim.torch.planning import plan_of
from nettrim.torch.programs import Programs
from nettrim.units import to_bytes

__all__ = ["PrunedModel", "prune"]

#: those of a layer, for each group the outputs and their problem
Problems = Iterable[tuple[slice, Problem]]


@dataclass
class PrunedModel:
    """A model after pruning, with a report for each layer.

    Attributes
    ----------
    model : nn.Module
    reports : list of LayerReport
    scheme : str
    folded : list of (str, str)
        Batch norms that were folded into layers: (layer, batch norm).
    settings : dict
    """

    model: nn.Module
    reports: list[LayerReport]
    scheme: str
    folded: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the pruned model."""
        return self.model(*args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"PrunedModel({type(self.model).__name__}, {len(self.reports)} layers, {self.scheme}, {self.kept:.1%} kept)"
        )

    @property
    def kept(self) -> float:
        """Fraction of the pruned layers' weights and biases that are not zero."""
        return sum(r.kept for r in self.reports) / sum(r.weights for r in self.reports)

    def table(self) -> str:
        """The reports as text."""
        return table(self.reports)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "nettrim": __version__,
            "scheme": self.scheme,
            "kept": self.kept,
            "folded": [list(pair) for pair in self.folded],
            "settings": self.settings,
            "layers": [asdict(r) | {"density": r.density} for r in self.reports],
        }

    def save(self, path: str | os.PathLike[str], layout: str = "dense") -> None:
        """Write the weights as safetensors, with the report in its metadata and beside it as JSON.

        Parameters
        ----------
        path : path
        layout : {"dense", "csr"}
        """
        from nettrim.torch.store import save

        save(path, self.model, self.to_dict(), layout)


def prune(
    model: nn.Module,
    loader: Iterable[Any],
    epsilon: float | Mapping[str, float] | None = None,
    scheme: str = "parallel",
    *,
    density: float | Mapping[str, float] | Allocation | None = None,
    method: str = "auto",
    gamma: float | Mapping[str, float] = 1.1,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    arguments: Arguments = arguments_of,
    samples: int | None = None,
    rounds: int = 1,
    refit: str | None = None,
    effort: str = "default",
    penalty: str | None = None,
    pattern: str | None = None,
    holdout: float = 0.1,
    fold: bool = True,
    penalise_bias: bool = True,
    memory: str | float = "4GB",
    directory: str | os.PathLike[str] | None = None,
    inplace: bool = False,
    progress: Callable[[LayerReport], Any] | None = None,
    client: Any = None,
    **settings: Any,
) -> PrunedModel:
    """Prune the Linear, Conv1d and Conv2d layers of a model, with a certificate for each.

    A layer that a ReLU follows gets the ReLU program on its outputs, any other the linear program on its
    pre-activations, which needs only second moments. See `nettrim.prune` for the schemes.

    Parameters
    ----------
    model : nn.Module
        Trained. It is copied, unless `inplace`; its mode, device and gradients are as before afterwards.
    loader : iterable of batches
        Samples to calibrate on, as for training; labels are not used. They are read once and kept.
    epsilon : float or mapping of name patterns to floats, optional
        Error of a layer relative to its outputs; in the cascade scheme that of the first layer. The first pattern that
        fits counts. 0.05 if there is no density either.
    scheme : {"parallel", "cascade"}
    density : float or mapping of name patterns to floats or Allocation, optional
        In place of an error: the fraction of each layer's weights to keep; biases stay and do not count. What
        `allocate` returns has one for each layer, and its curves become part of the report.
    method : {"auto", "admm", "working_set", "l0", "magnitude", "random", "wanda", "sparsegpt", "alps"}
        The first three are l1, with a gap in its certificate, by one of its solvers. "l0", the search of `nettrim.l0`,
        and the others need a density.
    gamma : float or mapping of name patterns to floats
        Slackness of the cascade's further layers.
    targets, ignore : sequence of str
        Patterns of module names to prune, and not to: shell-like, or regular expressions after ``re:``.
    arguments : callable, optional
        (args, kwargs) of the model for a batch. Default: a tensor, the first of a tuple, a mapping as keywords.
    samples : int, optional
        Use so many samples of the loader.
    rounds : int
        Of reweighted l1 in each layer, at most; more than 1 keeps fewer weights within the same errors, see
        `nettrim.sparsest`.
    refit : {None, "free", "within"}
        Of what l1 has found, to a smaller error on the same support, see `nettrim.prune`.
    effort : {"fast", "default", "thorough"}
        Of the search of `nettrim.l0`.
    penalty : {None, "inputs", "outputs"}
        A group norm in the place of l1: a layer stops reading whole inputs (a convolution input channels), or whole
        outputs become constant. `shrink` then makes the model physically smaller.
    pattern : str, optional
        "n:m", such as "2:4", in place of an error or a density: at most n of m consecutive inputs of a neuron. Not by
        l1. See `semi_structured` for GPUs that make use of it.
    holdout : float
        Fraction of them that is held back, to measure errors on.
    fold : bool
        Fold batch norms into the layers before them first.
    penalise_bias : bool
        Whether biases count in the l1 norm.
    memory : str or float
        What a layer's inputs may take in memory ("4GB", or bytes); larger ones go to a temporary file.
    directory : path, optional
        Where finished layers are kept, so that a run that was stopped goes on with the next one.
    inplace : bool
        Prune `model` itself.
    progress : callable, optional
        Called with the `LayerReport` of each layer; its errors are those of the layer alone.
    client : str or distributed.Client, optional
        A Dask cluster over which the layers of the parallel scheme are solved beside each other, as for
        `nettrim.prune`. The model runs here; the workers need PyTorch to round weights as the model holds them.
    **settings
        Those of `Settings`. With ``verbose=True`` the plan is printed first (see `plan`), then each solver's progress.

    Returns
    -------
    PrunedModel

    Raises
    ------
    TypeError, ValueError
        Wrong input, or a layer that cannot be pruned; the message names the argument or the module.
    RuntimeError
        Batch norms could not be folded exactly.

    Warns
    -----
    UserWarning
        The error of a layer on the samples held out is more than twice that on the others, or there were too few to
        hold any back.
    """
    Settings.make(**settings)
    how = How(method, rounds, refit, effort, penalty, pattern)
    allocation = density if isinstance(density, Allocation) else None
    wanted: Any = how.density(epsilon, density if allocation is None else allocation.densities)
    stored = {name: value for name, value in settings.items() if name not in ("callback", "verbose", "n_threads")}
    check_arguments(model, holdout, targets)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if client is not None and scheme != "parallel":
        raise ValueError('client is for scheme="parallel": a layer of the cascade waits for those before it')
    budget = to_bytes(memory)
    calibration, held_out = split(batches_of(loader, samples), holdout)
    given = state_digest(model)
    original = copy.deepcopy(model)
    args, kwargs = arguments(calibration[0])
    folded = fold_batch_norm(original, args, kwargs) if fold else []
    if inplace and folded:
        raise ValueError("inplace=True cannot fold batch norms, which changes the modules: pass fold=False")
    found = find_targets(original, args, kwargs, targets, ignore)
    how.check_inputs((target.name, layer_of(target).weight[0].size) for target in found)
    pruned = copy.deepcopy(original)
    if settings.get("verbose"):
        print(plan_of(original, found, calibration, held_out, arguments, budget, settings.get("n_threads")).table())
    programs = Programs(original, pruned, calibration, arguments, penalise_bias, budget)
    others = Programs(original, pruned, held_out, arguments, penalise_bias, budget) if held_out and refit else None
    run = _Run(programs, others, directory, how, settings)
    names = [target.name for target in found]
    if wanted is None:
        epsilon = 0.05 if epsilon is None else epsilon
        numbers, what = numbers_for(names, scheme, epsilon, gamma), "epsilon or gamma"
    else:
        numbers, what = densities_for(names, wanted), "density"
    options = {"scheme": scheme, "rounds": rounds, "penalise_bias": penalise_bias, "holdout": holdout}
    # only where they are not what they have always been: directories of earlier versions stay valid
    options |= {name: value for name, value in asdict(how).items() if value != getattr(How(), name)}
    # with other limits, a layer that is finished is the same
    limits = ("time_limit", "max_iterations")
    making = {name: value for name, value in stored.items() if name not in limits}
    run.begin(found, {what: numbers, **options, **making})
    reports = []
    if client is not None:
        from nettrim.distributed.cluster import connect

        with connect(client) as there:
            reports = run.beside(there, found, numbers, wanted is not None, progress)
    for k, (target, number) in enumerate(zip(found, numbers, strict=True) if client is None else ()):
        # with a count, small errors may be out of reach of l1 otherwise; the other methods keep to no bounds
        slack = scheme == "cascade" and k > 0 and (wanted is None or how.l1)
        reports.append(run.layer(target, k, number, scheme == "cascade", slack, wanted is not None))
        if progress is not None:
            progress(reports[-1])
    errors = [_errors(original, pruned, found, some, arguments) for some in (calibration, held_out)]
    reports = [
        replace(r, error=e, holdout=h)
        for r, e, h in zip(reports, errors[0], errors[1] or [None] * len(reports), strict=True)
    ]
    warn_of_few_samples(reports, holdout)
    if inplace:
        model.load_state_dict(pruned.state_dict())
        pruned = model
    about = {
        **{"epsilon": epsilon, "density": wanted, "gamma": gamma, "samples": samples, **options, **stored},
        **({} if allocation is None else {"allocation": allocation.to_dict()}),
        **{"calibration": digest(calibration, arguments), "original": given},
    }
    return PrunedModel(pruned, reports, scheme, folded, _plain(about))


class _Run:
    """The layers of one call of `prune`, one after the other."""

    def __init__(self, programs: Programs, others: Programs | None, directory: Any, how: How, settings: dict[str, Any]):
        self.programs, self.others, self.how, self.settings = programs, others, how, settings
        self.directory = None if directory is None else Path(directory)
        self.solved = False

    def begin(self, found: list[Target], options: dict[str, Any]) -> None:
        """Open the directory: what is in it must be of the same run."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        made = {
            "targets": [t.name for t in found],
            **options,
            "weights": state_digest(self.programs.original),
            "samples, or their order or batches": digest(self.programs.batches, self.programs.arguments),
        }
        made = json.loads(to_json(_plain(made)))
        path = self.directory / "run.json"
        if path.exists():
            try:
                earlier = dict(json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}): delete the folder, or choose another") from error
            other = [name for name in made.keys() | earlier.keys() if made.get(name) != earlier.get(name)]
            if other:
                raise ValueError(
                    f"{self.directory} holds layers of another run, which differs in its {', '.join(sorted(other))}: "
                    "choose another directory"
                )
        with write_atomically(path) as file:
            file.write(to_json(made).encode())

    def layer(
        self, target: Target, index: int, number: float, cascade: bool, slack: bool, counted: bool
    ) -> LayerReport:
        """Prune one layer of `pruned`, or take it from the directory; `counted` if the number is a density."""
        # in the cascade scheme what comes after a layer was solved for what it put out
        earlier = None if cascade and self.solved else self._earlier(target, index)
        if earlier is not None:
            return earlier
        self.solved = True
        layer = layer_of(target)
        began = time.perf_counter()
        with self._problems(target, layer, number, cascade, slack, counted) as (problems, others):
            dtypes, density = self._dtypes(target), number if counted else None
            pruned, report = _solved(layer, problems, dtypes, self.how, density, others, **self.settings)
        report = replace(report, seconds=time.perf_counter() - began)
        self._finish(target, index, pruned, report)
        return report

    def beside(
        self,
        client: Any,
        found: list[Target],
        numbers: list[float],
        counted: bool,
        progress: Callable[[LayerReport], Any] | None,
    ) -> list[LayerReport]:
        """The layers of the parallel scheme as tasks of a cluster, each kept when it comes; the reports in order."""
        reports: dict[int, LayerReport] = {}

        def finished(k: int, report: LayerReport) -> None:
            reports[k] = report
            if progress is not None:
                progress(report)

        from nettrim.distributed.fan import Job, fan_out

        for k, target in enumerate(found):
            earlier = self._earlier(target, k)
            if earlier is not None:
                finished(k, earlier)
        settings = dict(self.settings)
        threads, callback = settings.pop("n_threads", None), settings.pop("callback", None)

        def jobs() -> Iterator[Job]:
            for k, target in enumerate(found):
                if k in reports:
                    continue
                layer, density = layer_of(target), numbers[k] if counted else None
                with self._problems(target, layer, numbers[k], False, False, counted) as (problems, others):
                    held = None if others is None else list(others)
                    arguments = layer, list(problems), self._dtypes(target), self.how, density, held
                    job = Job(f"nettrim-layer-{target.name}", k, _solved, arguments, settings)
                    # what is in a temporary file is sent before the file goes
                    yield job

        for job, (pruned, report) in fan_out(client, jobs(), callback, threads):
            self._finish(found[job.index], job.index, pruned, report)
            finished(job.index, report)
        return [reports[k] for k in range(len(found))]

    def _path(self, index: int) -> Path | None:
        return None if self.directory is None else self.directory / f"layer_{index:03d}.npz"

    def _earlier(self, target: Target, index: int) -> LayerReport | None:
        """Take a layer from the directory, if it was finished earlier."""
        path, module = self._path(index), self.programs.pruned.get_submodule(target.name)
        kept = _finished(path, module) if path is not None and path.exists() else None
        if kept is None:
            return None
        report, weight, bias = kept
        _assign(module, weight, bias)
        return report

    def _finish(self, target: Target, index: int, pruned: Layer, report: LayerReport) -> None:
        """Keep a layer in the directory, and put it into the model."""
        path = self._path(index)
        # what fell short may do better with another time limit: it is not finished
        if path is not None and report.status in USABLE:
            arrays: dict[str, Any] = {"weight": pruned.weight} | ({} if pruned.bias is None else {"bias": pruned.bias})
            with write_atomically(path) as file:
                np.savez(file, report=np.array(to_json(asdict(report))), **arrays)
        _assign(self.programs.pruned.get_submodule(target.name), pruned.weight, pruned.bias)

    @contextmanager
    def _problems(
        self, target: Target, layer: Layer, number: float, cascade: bool, slack: bool, counted: bool
    ) -> Iterator[tuple[Problems, Problems | None]]:
        """The layer's problems, and those on samples that were held out, if they are needed."""
        # of a radius that the count replaces
        first = 1.0 if slack else FIRST
        with (
            evaluating(self.programs.original, self.programs.pruned),
            self.programs.of(target, layer, first if counted else number, cascade, slack) as problems,
            self._heldout(target, layer, cascade) as others,
        ):
            yield problems, others

    def _dtypes(self, target: Target) -> dict[str, torch.dtype]:
        module = self.programs.pruned.get_submodule(target.name)
        return {what: a.dtype for what, a in module.named_parameters(recurse=False)}

    def _heldout(self, target: Target, layer: Layer, cascade: bool) -> AbstractContextManager[Problems | None]:
        """The layer's problems on samples that were held out, if they are needed."""
        return nullcontext() if self.others is None else self.others.of(target, layer, FIRST, cascade, False)


def _errors(
    original: nn.Module, pruned: nn.Module, found: list[Target], batches: list[Any], arguments: Arguments
) -> list[float]:
    """Relative distance of each layer's outputs, after its ReLU, in the two models; empty without batches."""
    if not batches:
        return []
    squares, norms = np.zeros(len(found)), np.zeros(len(found))
    with evaluating(original, pruned):
        for batch in batches:
            seen = [
                observe(m, [m.get_submodule(t.name) for t in found], arguments(batch), "outputs")
                for m in (original, pruned)
            ]
            for k, (target, old, new) in enumerate(zip(found, *seen, strict=True)):
                for a, b in zip(old, new, strict=True):
                    a, b = (np.maximum(x, 0) if target.relu else x for x in (a, b))
                    squares[k] += np.sum(np.square(b - a, dtype=np.float64))
                    norms[k] += np.sum(np.square(a, dtype=np.float64))
    return np.sqrt(np.divide(squares, norms, out=np.zeros_like(norms), where=norms > 0)).tolist()


def _solved(
    layer: Layer,
    problems: Problems,
    dtypes: dict[str, torch.dtype],
    how: How,
    density: float | None,
    others: Problems | None,
    **settings: Any,
) -> tuple[Layer, LayerReport]:
    """A layer with its new weights, as its module holds them, and the report; here or on a worker."""
    made = solve_groups(layer, problems, lambda a, what: _rounded(a, dtypes[what]), how, density, others, **settings)
    return made.layer, describe(layer, made)


def _rounded(a: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """As a module of that dtype holds it."""
    return torch.from_numpy(np.ascontiguousarray(a)).to(dtype).to(torch.promote_types(dtype, torch.float32)).numpy()


def _finished(path: Path, module: Any) -> tuple[LayerReport, np.ndarray, np.ndarray | None] | None:
    """Report, weight and bias of a layer that was finished earlier; None, with a warning, if the file is damaged."""
    try:
        with open_npz(path) as archive:
            report = LayerReport(**json.loads(str(archive.read("report"))))
            weight = archive.read("weight")
            bias = archive.read("bias") if "bias" in archive.names else None
        if weight.shape != tuple(module.weight.shape):
            raise ValueError(f"its weight is {weight.shape}, the layer's {tuple(module.weight.shape)}")
    except (ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged, so that its layer is solved again: {error}", stacklevel=2)
        return None
    return report, weight, bias


def _assign(module: Any, weight: np.ndarray, bias: np.ndarray | None) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        if bias is not None:
            module.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))


def _plain(value: Any) -> Any:
    """For JSON: callables and the like by their names."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)

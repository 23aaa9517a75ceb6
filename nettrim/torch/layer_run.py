"""The layers of a torch model on their way: solved here or by a cluster, kept in a folder, put into the model."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nettrim.archives import open_npz
from nettrim.how import How
from nettrim.layer import USABLE, Layer, solve_groups
from nettrim.network import LayerReport, describe
from nettrim.path import FIRST
from nettrim.problem import Problem
from nettrim.report import to_json, write_atomically
from nettrim.torch.capture import digest, evaluating, state_digest
from nettrim.torch.graph import Target, layer_of
from nettrim.torch.programs import Programs

__all__ = ["LayerRun", "plain"]

#: those of a layer, for each group the outputs and their problem
Problems = Iterable[tuple[slice, Problem]]


class LayerRun:
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
        made = json.loads(to_json(plain(made)))
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


def plain(value: Any) -> Any:
    """For JSON: callables and the like by their names."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)

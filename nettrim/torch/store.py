"""Pruned models on disk, as safetensors with the report inside, and what sparse weights cost in bytes and in time."""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import nn

from nettrim.extras import install
from nettrim.report import to_json, write_atomically

__all__ = ["latency", "load", "save", "sizes"]

LAYOUTS = ("dense", "csr")

#: keys of the file's metadata: what the caller says of the model, and what is needed to read the tensors back
_ABOUT, _STORE = "nettrim", "nettrim.store"
_PARTS = ("crow_indices", "col_indices", "values")
_WARM_UP = 3


def save(path: str | os.PathLike[str], model: nn.Module, about: Mapping[str, Any] | Any, layout: str = "dense") -> None:
    """Write a model's state as a safetensors file, with `about` in its metadata and beside it as JSON.

    Each of the two files is written whole or not at all; neither takes its place before both are complete on the
    disk. The metadata is what `load` reads; the JSON file is the same text for people and other programs.

    Tensors that share memory, such as tied weights, are written once for each name, and noted in the metadata.

    Parameters
    ----------
    path : path
        File to create or replace, usually ``*.safetensors``. The JSON goes to `path` with the suffix ``.json``.
    model : nn.Module
        Parameters and buffers in any dtypes that safetensors has, on any devices; dtypes are kept.
    about : mapping, or object with ``to_dict()``
        As for `nettrim.report.to_json`. For "csr", ``about["layers"]`` is a sequence of mappings with a ``"name"``.
    layout : {"dense", "csr"}
        With "dense" the file holds the state dict under its own keys, and any safetensors reader can use it. With
        "csr", the weight W of each layer in ``about["layers"]``, as a matrix (outputs, everything else), is three
        tensors ``name.weight.crow_indices``, ``.col_indices`` (int32 where the numbers fit) and ``.values``. A zero
        loses its sign by that. It is smaller where fewer than about half of the weights are left; see `sizes`.

    Raises
    ------
    ImportError
        safetensors is not installed.
    TypeError
        `model` is not a module, its state holds something else than dense tensors, or `about` cannot be JSON.
    ValueError
        Unknown `layout`, a `path` that ends in ``.json``, or layers that have no weight in the model.
    OSError
        The folder does not exist or cannot be written to, or `path` is there and not a regular file.
    """
    write = _safetensors().torch.save
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    text = to_json(about)
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise TypeError(f"about must be a mapping; got {type(about).__name__}")
    target, beside = _targets(path)
    state, tied = _detached(_state(model))
    names = _layer_names(plain) if layout == "csr" else []
    shapes = {key: list(state[key].shape) for key in _weight_keys(state, names)}
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        made = _csr(tensor).parts(key) if key in shapes else {key: tensor}
        if not made.keys().isdisjoint(tensors):
            raise ValueError(f"the model has other tensors named {', '.join(made)}")
        tensors |= made
    store = {"version": 1, "layout": layout, "csr": shapes, "tied": tied}
    data = write(tensors, {"format": "pt", _ABOUT: text, _STORE: json.dumps(store)})
    # left from the inside out: the weights take their place first, once the report is written as well
    with write_atomically(beside) as report, write_atomically(target) as file:
        file.write(data)
        report.write(text.encode())


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> tuple[dict[str, torch.Tensor], Any]:
    """State dict and report of a file that `save` wrote.

    Parameters
    ----------
    path : path
        In either layout.
    model : nn.Module, optional
        The state is copied into it, converted to its dtypes. Batch norms that were folded before the pruning are
        taken out of it. Names and shapes must be the same; if they are not, it is left as it is.

    Returns
    -------
    state : dict of str to tensor
        Dense, on the CPU, in the dtypes of the file, under the keys of ``state_dict()``.
    about : dict
        As it was saved: plain JSON values, infinities and NaN as None.

    Raises
    ------
    ImportError
        safetensors is not installed.
    OSError
        There is no such file, or it is a folder.
    TypeError
        `model` is not a module.
    ValueError
        It is not a nettrim file, is damaged, or does not fit `model`.
    """
    safetensors = _safetensors()
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a safetensors file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copied: these are views of the mapped file, which may be cut short while they are in use
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    about, store = (_metadata(path, metadata, key) for key in (_ABOUT, _STORE))
    shapes = store.get("csr")
    if store.get("version") != 1 or not isinstance(shapes, dict):
        raise ValueError(f"{path} was written in a form that this version of nettrim does not know")
    for key, shape in shapes.items():
        parts = [f"{key}.{part}" for part in _PARTS]
        missing = [part for part in parts if part not in tensors]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}")
        try:
            tensors[key] = _Csr(*(tensors.pop(part) for part in parts)).dense(shape)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"{key} in {path} is damaged: {error}") from error
    if model is not None:
        folded = about.get("folded", [])
        if folded:
            trial = copy.deepcopy(model)
            _fold(trial, folded, tensors)
            _check_fit(path, tensors, _state(trial))
            _fold(model, folded, tensors)
        _check_fit(path, tensors, _state(model))
        model.load_state_dict(tensors)
    return tensors, about


def sizes(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Bytes of weights in three layouts, and of the whole state with these layers in each.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
        Layers, as in ``named_modules()``, with a weight of at least two dimensions.

    Returns
    -------
    dict
        ``"layers"``: for each name the numbers ``weights`` and ``nnz``, and bytes as ``dense``, ``csr`` (values in
        the weight's dtype, int32 indices where they fit) and ``bitmask`` (a bit for every entry, and the values).
        ``"total"``: bytes of all tensors of ``state_dict()``, tied ones once for each name, the named layers in each
        layout and the others dense. The headers of files are not counted.

    Raises
    ------
    TypeError
        `model` is not a module, `names` is a string, or the state holds something else than dense tensors.
    ValueError
        A layer that has no such weight.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names; got the string {names!r}")
    names = list(names)
    state = _state(model)
    keys = _weight_keys(state, names)
    layers = {}
    for name, key in zip(names, keys, strict=True):
        weight = state[key].detach()
        values, nnz = weight.element_size(), int(torch.count_nonzero(weight))
        index = _index_dtype(math.prod(weight.shape[1:]), nnz).itemsize
        layers[name] = {
            "weights": weight.numel(),
            "nnz": nnz,
            "dense": weight.numel() * values,
            "csr": (weight.shape[0] + 1 + nnz) * index + nnz * values,
            "bitmask": -(-weight.numel() // 8) + nnz * values,
        }
    rest = sum(t.numel() * t.element_size() for key, t in state.items() if key not in keys)
    total = {form: rest + sum(layer[form] for layer in layers.values()) for form in ("dense", "csr", "bitmask")}
    return {"layers": layers, "total": total}


def latency(module_or_weight: nn.Module | torch.Tensor, inputs: torch.Tensor, repeats: int = 30) -> dict[str, Any]:
    """Time of a Linear's product on this CPU, measured: dense, torch's sparse CSR and SciPy's CSR.

    Each product is timed as a whole, from inputs with samples in rows: what the sparse ones do to bring these into
    their own layout counts, making the sparse matrix does not. They take turns, so that other load on the machine
    meets all alike, after a few rounds that are not counted. A sparse product is not always quicker: see ``ratio``.

    Parameters
    ----------
    module_or_weight : nn.Linear or (M, N) tensor
        In float32 or float64, which all three have; a bias is left out. Copied to the CPU if need be.
    inputs : (..., N) tensor
        Converted to the weight's dtype.
    repeats : int
        Rounds that are timed.

    Returns
    -------
    dict
        ``dense``, ``torch_csr``, ``scipy_csr``: median milliseconds. ``ratio``: those of each over those of the
        dense product, so that less than 1 is quicker. ``threads``: of torch, which both of its products may use, and
        of SciPy, whose product is on one. And ``shape``, ``density``, ``samples``, ``dtype``, ``repeats``.

    Raises
    ------
    TypeError
        Neither a tensor nor a module with a weight, or in another dtype.
    ValueError
        Shapes that do not fit, nothing in `inputs`, or `repeats` below 1.
    """
    weight = getattr(module_or_weight, "weight", None) if isinstance(module_or_weight, nn.Module) else module_or_weight
    if not isinstance(weight, torch.Tensor) or not isinstance(inputs, torch.Tensor):
        raise TypeError("latency takes a Linear or its weight, and inputs, as tensors")
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the weight must be float32 or float64, which SciPy has too; got {weight.dtype}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"the weight must be a matrix, that of a Linear, and not empty; got {tuple(weight.shape)}")
    if inputs.ndim < 1 or inputs.shape[-1] != weight.shape[1] or inputs.numel() == 0:
        raise ValueError(f"inputs must be (..., {weight.shape[1]}), and not empty; got {tuple(inputs.shape)}")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a whole number of at least 1; got {repeats!r}")
    weight = weight.detach().cpu().contiguous()
    x = inputs.detach().to("cpu", weight.dtype).reshape(-1, weight.shape[1]).contiguous()
    products = _products(weight, x)
    times: dict[str, list[float]] = {name: [] for name in products}
    with torch.no_grad():
        for k in range(_WARM_UP + repeats):
            for name, product in products.items():
                began = time.perf_counter()
                product()
                took = time.perf_counter() - began
                if k >= _WARM_UP:
                    times[name].append(1e3 * took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **medians,
        "ratio": {name: value / medians["dense"] for name, value in medians.items() if name != "dense"},
        "threads": {"torch": torch.get_num_threads(), "scipy": 1},
        "shape": list(weight.shape),
        "density": int(torch.count_nonzero(weight)) / weight.numel(),
        "samples": x.shape[0],
        "dtype": str(weight.dtype).removeprefix("torch."),
        "repeats": repeats,
    }


def _products(weight: torch.Tensor, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The products that are compared: (B, M) dense, (M, B) sparse."""
    csr = _csr(weight)
    with warnings.catch_warnings():
        # torch says at the first of them that CSR tensors are in beta
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        sparse = torch.sparse_csr_tensor(csr.rows, csr.columns, csr.values, weight.shape, check_invariants=True)
    arrays = tuple(part.numpy() for part in (csr.values, csr.columns, csr.rows))
    matrix = scipy.sparse.csr_array(arrays, shape=tuple(weight.shape))
    array: np.ndarray = x.numpy()
    return {"dense": lambda: x @ weight.T, "torch_csr": lambda: sparse @ x.T, "scipy_csr": lambda: matrix @ array.T}


@dataclass(frozen=True)
class _Csr:
    """Where each row begins (M + 1), the columns of the entries (nnz), and the entries."""

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def parts(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors as they are named in a file."""
        arrays = (self.rows, self.columns, self.values)
        return {f"{key}.{part}": array for part, array in zip(_PARTS, arrays, strict=True)}

    def dense(self, shape: list[int]) -> torch.Tensor:
        """The weight, of this shape; ValueError if the indices make no sense."""
        weight = torch.zeros(shape, dtype=self.values.dtype)
        matrix = weight.view(shape[0], math.prod(shape[1:]))
        rows, columns = self.rows.long(), self.columns.long()
        counts = rows.diff()
        if rows.shape != (shape[0] + 1,) or int(rows[0]) != 0 or bool((counts < 0).any()):
            raise ValueError("its row indices do not increase from 0, one for each row and one more")
        if columns.ndim != 1 or columns.shape != self.values.shape or int(rows[-1]) != len(columns):
            raise ValueError("its numbers of indices and of values differ")
        if bool(((columns < 0) | (columns >= matrix.shape[1])).any()):
            raise ValueError(f"it has column indices outside of 0 to {matrix.shape[1] - 1}")
        matrix[torch.arange(shape[0]).repeat_interleave(counts), columns] = self.values
        return weight


def _csr(weight: torch.Tensor) -> _Csr:
    """The non-zeros of a weight as a matrix (outputs, everything else)."""
    matrix = weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))
    # NaN is not zero
    found = matrix != 0
    columns = found.nonzero()[:, 1]
    dtype = _index_dtype(matrix.shape[1], len(columns))
    rows = torch.zeros(matrix.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(found.sum(1), 0, out=rows[1:])
    return _Csr(rows.to(dtype), columns.to(dtype), matrix[found])


def _index_dtype(columns: int, nnz: int) -> torch.dtype:
    return torch.int32 if max(columns, nnz) <= torch.iinfo(torch.int32).max else torch.int64


def _targets(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where the two files go, if they can."""
    path = Path(path)
    if path.suffix == ".json":
        raise ValueError(f"{path} is where the report goes: choose another suffix, such as .safetensors")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and is not overwritten")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder that exists: make it first")
    return path, path.with_suffix(".json")


def _state(model: Any) -> dict[str, torch.Tensor]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    state = dict(model.state_dict())
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            kind = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{key} in the model's state must be a dense tensor; got {kind}")
    return state


def _detached(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors on the CPU, contiguous and none in another's memory; and for each tied one the first that it is."""
    made: dict[str, torch.Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    memory: set[tuple[Any, ...]] = set()
    tied: dict[str, str] = {}
    for key, tensor in state.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        same = (*place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        shared = place in memory and tensor.numel() > 0
        if shared and same in first:
            tied[key] = first[same]
        first.setdefault(same, key)
        memory.add(place)
        copied = tensor.detach().cpu().contiguous()
        made[key] = copied.clone() if shared else copied
    return made, tied


def _layer_names(about: dict[str, Any]) -> list[str]:
    layers = about.get("layers")
    if not isinstance(layers, list) or not all(isinstance(a, dict) and isinstance(a.get("name"), str) for a in layers):
        raise ValueError('layout "csr" needs about["layers"], a list of mappings with a "name"')
    return [layer["name"] for layer in layers]


def _weight_keys(state: dict[str, torch.Tensor], names: list[str]) -> list[str]:
    """The weight of each layer in the state; "" is the model itself."""
    keys = []
    for name in names:
        key = f"{name}.weight" if name else "weight"
        if key not in state or state[key].ndim < 2:
            found = "none" if key not in state else f"one of shape {tuple(state[key].shape)}"
            raise ValueError(f"layer {name!r} must have a weight of at least two dimensions; it has {found}")
        keys.append(key)
    return keys


def _metadata(path: Path, metadata: dict[str, str], key: str) -> dict[str, Any]:
    if key not in metadata:
        raise ValueError(f"{path} was not written by nettrim: its metadata has no {key!r}")
    try:
        value = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise ValueError(f"{key!r} in the metadata of {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} in the metadata of {path} is not a JSON object")
    return value


def _fold(model: nn.Module, folded: list[list[str]], tensors: dict[str, torch.Tensor]) -> None:
    """Take out batch norms that are part of the layers before them in a file, and give these their biases."""
    for layer_name, norm_name in folded:
        modules = dict(model.named_modules())
        if not isinstance(modules.get(norm_name), nn.modules.batchnorm._BatchNorm) or layer_name not in modules:
            continue
        parent, _, last = norm_name.rpartition(".")
        setattr(modules[parent], last, nn.Identity().train(modules[norm_name].training))
        layer: Any = modules[layer_name]
        if layer.bias is None and f"{layer_name}.bias" in tensors:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]))


def _check_fit(path: Path, given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Before anything is copied: load_state_dict finds out when a part of the model is overwritten."""
    wrong = [f"it lacks {key}" for key in wanted if key not in given]
    wrong += [f"the model has no {key}" for key in given if key not in wanted]
    wrong += [
        f"{key} is {tuple(given[key].shape)}, in the model {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    if wrong:
        raise ValueError(f"{path} does not fit the model: {'; '.join(wrong)}")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"nettrim.torch needs safetensors to save and load: {install('torch')}") from error
    return safetensors

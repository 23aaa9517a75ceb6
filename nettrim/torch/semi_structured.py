"""2:4 sparse weights in the layout that PyTorch's sparse kernels read, on GPUs whose tensor cores skip zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nettrim.torch.modules import fits, is_plain, names_of

__all__ = ["compress", "decompress", "semi_structured"]

#: rows and columns must be multiples of these, see torch.sparse.SparseSemiStructuredTensorCUTLASS
_MULTIPLES = {torch.float16: (32, 64), torch.bfloat16: (32, 64), torch.int8: (16, 128)}


def semi_structured(model: nn.Module, targets: Sequence[str] = ("*",), ignore: Sequence[str] = ()) -> list[str]:
    """Let the Linear layers of a model that have 2:4 sparse weights use PyTorch's sparse kernels, in place.

    The weights must be on an NVIDIA GPU of compute capability 8.0 or more, in float16 or bfloat16. Prune with
    ``pattern="2:4"``, then ``model.half().cuda()``. The model is for inference afterwards. Not run on a GPU so far: the
    layout is checked on the CPU (`compress`), the kernels are PyTorch's.

    Parameters
    ----------
    model : nn.Module
    targets, ignore : sequence of str
        Patterns of names, see `nettrim.patterns.matches`. Layers that only "*" fits are left out if they cannot be
        converted.

    Returns
    -------
    list of str
        Names of the layers that were converted.

    Raises
    ------
    TypeError
        Patterns are a string.
    ValueError
        A pattern fits nothing, or a layer that one other than "*" fits cannot be converted, and why.
    """
    for what, patterns in (("targets", targets), ("ignore", ignore)):
        if isinstance(patterns, str):
            raise TypeError(f"{what} must be a list of patterns; got the string {patterns!r}")
    explicit = [pattern for pattern in targets if pattern != "*"]
    chosen: list[tuple[str, Any]] = []
    names = names_of(model)
    for pattern in explicit:
        if not any(fits(known, [pattern]) for module, known in names.items() if isinstance(module, nn.Linear)):
            raise ValueError(f"targets has the pattern {pattern!r}, which fits no Linear layer")
    for module, known in names.items():
        if not isinstance(module, nn.Linear) or not fits(known, targets) or fits(known, ignore):
            continue
        trouble = "" if is_plain(module) else "computes something else than a Linear does"
        trouble = trouble or _trouble(module.weight)
        if trouble and fits(known, explicit):
            raise ValueError(f"layer {known[0]!r} {trouble}")
        if not trouble:
            chosen.append((known[0], module))
    for _, module in chosen:
        sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return [name for name, _ in chosen]


def compress(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A 2:4 sparse matrix as the kept values and the positions, in the layout of the CUTLASS kernels, on any device.

    Parameters
    ----------
    weight : (M, N) tensor of float16, bfloat16 or int8
        At most two of every four neighbours in a row are not zero.

    Returns
    -------
    values : (M, N / 2) tensor
    metadata : int16 or int32 tensor
        Two bits for each value.

    Raises
    ------
    ValueError
        The matrix is not 2:4 sparse, or its dtype or shape does not suit the kernels.
    """
    trouble = _trouble(weight, anywhere=True)
    if trouble:
        raise ValueError(f"weight {trouble}")
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    return sparse_semi_structured_from_dense_cutlass(weight.detach().contiguous())


def decompress(values: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
    """The (M, N) matrix that `compress` was given."""
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

    return sparse_semi_structured_to_dense_cutlass(values, metadata)


def _trouble(weight: torch.Tensor, anywhere: bool = False) -> str:
    """Why a weight cannot be converted; empty if it can."""
    if weight.ndim != 2:
        return f"must be a matrix; it has shape {tuple(weight.shape)}"
    if weight.dtype not in _MULTIPLES:
        return f"must be in float16 or bfloat16, which the sparse kernels read; it is {weight.dtype}"
    rows, columns = _MULTIPLES[weight.dtype]
    if not weight.numel() or weight.shape[0] % rows or weight.shape[1] % columns:
        shape = f"{weight.shape[0]} x {weight.shape[1]}"
        return f"must have a multiple of {rows} outputs and of {columns} inputs for the sparse kernels; it is {shape}"
    if int((weight.detach() != 0).reshape(-1, 4).sum(1).max()) > 2:
        return "is not 2:4 sparse: prune it with pattern='2:4'"
    if not (anywhere or weight.is_cuda):
        return f"must be on an NVIDIA GPU for the sparse kernels; it is on {weight.device}"
    return ""

"""The networks of the coreset study: trained so that their last layers are easy, moderate or difficult to prune.

"Easy" is a network that was pruned by another method (magnitude for weights, hard-concrete gates for neurons) and
trained again, so that a sparse layer without any error is known to exist (paper 001, section 4.2 and appendix B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from nettrim.pruners.magnitude import magnitude
from nettrim.report import write_atomically
from nettrim.sparsity import Unstructured
from nettrim.studies import data, models, training
from nettrim.studies.features import frozen_features
from nettrim.studies.hard_concrete import neuron_masks, train_with_gates
from nettrim.studies.networks import hashed

__all__ = ["Case", "Layers", "layers", "linear", "load", "put", "trained", "with_ones"]

_NETWORKS: dict[str, Callable[[float], nn.Sequential]] = {
    "LeNet-300-100": models.lenet_300_100,
    "frozen features": lambda dropout: models.fully_connected((1000, 1000, 10), dropout),
    "VGG-16": lambda dropout: models.vgg16(dropout=dropout),
    "small": lambda dropout: models.fully_connected((784, 30, 20, 10), dropout),
}


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, and what is looked at.

    Attributes
    ----------
    name : str
    network : str
        One of the builders'.
    data : str
        See `load`.
    parts : tuple of str
        Of the study; see `nettrim.studies.coreset_parts`.
    easy : {"weights", "neurons"}, optional
        What is pruned by another method before the second training.
    left : float
        Part of them that stays then.
    penalty : float
        l1 of all weights.
    dropout : float
        Rate.
    epochs : int
        Of training, and again of the second one.
    rate, momentum : float
    size : int
        Of a batch.
    strength : float
        Of the gates' penalty.
    seeds : int, optional
        The first so many of the configuration's only.
    """

    name: str
    network: str = "LeNet-300-100"
    data: str = "mnist"
    parts: tuple[str, ...] = ("weights", "neurons")
    easy: str | None = None
    left: float = 1.0
    penalty: float = 0.0
    dropout: float = 0.0
    epochs: int = 10
    rate: float = 0.1
    momentum: float = 0.5
    size: int = 100
    strength: float = 0.025
    seeds: int | None = None

    @property
    def recipe(self) -> str:
        """A short name for what makes the network."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("name", "parts", "seeds")}
        return hashed(kept)


@lru_cache(maxsize=1)
def load(name: str, seed: int) -> data.DataSet:
    """A data set by name; "features of NAME" its frozen features, "rectified NAME" without what is negative.

    The last one is kept.
    """
    if name.startswith("rectified "):
        whole = data.load(name.removeprefix("rectified "), seed)
        parts = ((np.maximum(x, 0), y) for x, y in (whole.train, whole.validation, whole.test))
        return data.DataSet(name, *parts)
    if name.startswith("features of "):
        return frozen_features(data.load(name.removeprefix("features of "), seed), seed)
    return data.load(name, seed)


def trained(
    case: Case, samples: data.DataSet, seed: int, folder: Path, say: Callable[[str], Any], device: str = "cpu"
) -> nn.Sequential:
    """The trained network, from the folder if it is there."""
    from safetensors.torch import load_file, save

    torch.manual_seed(seed)
    model = _NETWORKS[case.network](case.dropout).to(device)
    path = folder / f"{case.network}, {case.name}, seed {seed}, {case.recipe}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    how: dict[str, Any] = {"epochs": case.epochs, "rate": case.rate, "momentum": case.momentum}
    batches = training.Batches(*samples.train, case.size, seed)
    if case.easy == "neurons":
        count = round(case.left * linear(model, -1)[1].in_features)
        model, kept = train_with_gates(model, batches, count, case.strength, **how)
        training.sgd(model, batches, **how, masks=neuron_masks(model, kept))
    else:
        training.sgd(model, batches, **how, penalty=case.penalty)
        if case.easy == "weights":
            name, head = linear(model, -1)
            W = head.weight.detach().cpu().numpy()
            kept = torch.from_numpy(magnitude(W, Unstructured(round(case.left * W.size))) != 0)
            training.sgd(model, batches, **how, masks={f"{name}.weight": kept})
    say(f"{case.network}, {case.name}, seed {seed}: {training.accuracy(model, *samples.validation):.2%} after training")
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(save({name: value.cpu() for name, value in model.state_dict().items()}))
    return model.eval()


@dataclass(frozen=True)
class Layers:
    """Two linear layers that follow each other, as arrays with the biases in their last rows.

    Attributes
    ----------
    W_in : (N + 1, H) array
    W_out : (H + 1, k) array
    X : (N + 1, P) array
        Inputs of the first, a row of ones below.
    """

    W_in: np.ndarray
    W_out: np.ndarray
    X: np.ndarray

    @property
    def hidden(self) -> np.ndarray:
        """Inputs of the second layer, (H + 1, P)."""
        return with_ones(np.maximum(self.W_in.T @ self.X, 0))


def layers(model: nn.Sequential, inputs: np.ndarray, first: int = -2) -> Layers:
    """Linear layers number `first` and the next of a network, of all its linear ones, and what enters them."""
    (name, one), (_, two) = linear(model, first), linear(model, first + 1)
    before = inputs if name == "0" else training.outputs(_with_parameters(model, int(name)), inputs)
    return Layers(_matrix(one), _matrix(two), with_ones(before.reshape(len(inputs), -1).T))


def linear(model: nn.Sequential, index: int) -> tuple[str, nn.Linear]:
    """Linear layer number `index` of a network, of all its linear ones, and its name."""
    at = [k for k, module in enumerate(model) if isinstance(module, nn.Linear)][index]
    return str(at), cast(nn.Linear, model[at])


@torch.no_grad()
def put(module: nn.Linear, W: np.ndarray) -> torch.Tensor:
    """Set weights, and the bias in the last row if there is one more than inputs; returns where they are not zero."""
    module.weight.copy_(torch.from_numpy(W[: module.in_features].T.copy()))
    if len(W) > module.in_features:
        module.bias.copy_(torch.from_numpy(W[-1]))
    return torch.from_numpy(W[: module.in_features].T != 0)


def with_ones(x: np.ndarray) -> np.ndarray:
    """The array with a row of ones below it."""
    return np.vstack([x, np.ones((1, x.shape[1]), x.dtype)])


def _matrix(module: nn.Linear) -> np.ndarray:
    weight, bias = (p.detach().cpu().numpy() for p in (module.weight, module.bias))
    return np.vstack([weight.T, bias])


def _with_parameters(model: nn.Sequential, end: int) -> nn.Sequential:
    """The modules before `end`; a parameter that is not used tells the device, where they have none."""
    part = nn.Sequential(*list(model)[:end])
    if not list(part.parameters()):
        part.register_parameter("device", nn.Parameter(next(model.parameters())[:0].detach()))
    return part

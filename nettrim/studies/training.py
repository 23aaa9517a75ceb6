"""Training as the studies do it, seeded: one loop, for Adam with weight decay and for plain stochastic gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy.checkpoints import Checkpoint, digest, generators, put_back, state_digest
from nettrim.studies.batches import Batches, flipped_and_shifted

__all__ = [
    "Batches",
    "accuracy",
    "descend",
    "flipped_and_shifted",
    "outputs",
    "sgd",
    "train",
    "train_to_outputs",
]

#: a scalar of outputs and targets
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: told an epoch, from 1, and its mean loss
Progress = Callable[[int, float], object]
#: for names of parameters, False where a weight stays zero
Masks = Mapping[str, np.ndarray | torch.Tensor]


def descend(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    epochs: int,
    optimizer: torch.optim.Optimizer,
    loss: Loss = nn.functional.cross_entropy,
    penalty: Callable[[], torch.Tensor] | None = None,
    masks: Masks | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """The loop that all training here shares.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode. Batches are moved to the device of its first parameter.
    batches : iterable of (inputs, targets)
        Iterated once an epoch.
    epochs : int
    optimizer : torch.optim.Optimizer
        Of the model's parameters, without a state where there are masks.
    loss : callable
        ``loss(outputs, targets)``, a scalar.
    penalty : callable, optional
        Gives a scalar that is added to the loss of every batch.
    masks : mapping of str to bool array, optional
        For names of parameters, of their shapes: False where a weight is zero and stays zero. The gradient is masked
        before each step, so that no momentum grows there, and the zeros are written again after it.
    schedule : optional
        Stepped after every batch.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.
    checkpoint : Checkpoint, optional
        Keeps the state of this training, from which the same call goes on; its `about` says what is trained on and how,
        but for start and masks. The states of torch's global generators, which dropout draws from, are kept with it and
        put back. Not with a schedule, and for `Batches`.

    Returns
    -------
    list of float
        Mean of loss and penalty over the batches of each epoch.

    Raises
    ------
    ValueError
        A mask of no parameter, or of another shape or dtype than said; no batch; a checkpoint of another training, or
        with a schedule.
    FloatingPointError
        The loss is infinite or NaN at the end of an epoch.
    """
    pruned = _zeros(model, masks or {})
    device = next(model.parameters()).device
    keeper = None if checkpoint is None else _Keeper(checkpoint, model, batches, optimizer, schedule, pruned)
    losses, before, count = ([], 0.0, 0) if keeper is None else keeper.load()
    _write_zeros(pruned)
    model.train()
    for epoch in range(len(losses) + 1, epochs + 1):
        # summed on the device, which a number on the host would wait for at every batch
        total = torch.full((), before, dtype=torch.float64, device=device)
        for x, y in batches:
            optimizer.zero_grad()
            value = loss(model(x.to(device)), y.to(device))
            if penalty is not None:
                value = value + penalty()
            value.backward()
            for p, zeros in pruned:
                if p.grad is not None:
                    p.grad.masked_fill_(zeros, 0)
            optimizer.step()
            _write_zeros(pruned)
            if schedule is not None:
                schedule.step()
            total, count = total + value.detach(), count + 1
            if keeper is not None and keeper.checkpoint.due and keeper.batches.state()[0]:
                keeper.save(losses, float(total), count)
        if count == 0:
            raise ValueError("batches must have at least one batch; got none")
        losses.append(float(total) / count)
        before, count = 0.0, 0
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} in epoch {epoch}: try a smaller rate")
        if progress is not None:
            progress(epoch, losses[-1])
        if keeper is not None:
            keeper.save(losses, before, count)
    model.eval()
    return losses


class _Keeper:
    """What goes into a checkpoint of `descend`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        batches: Any,
        optimizer: torch.optim.Optimizer,
        schedule: object,
        pruned: list[tuple[nn.Parameter, torch.Tensor]],
    ):
        if schedule is not None:
            raise ValueError("checkpoint must be None with a schedule, whose state it does not keep")
        self.model, self.batches, self.optimizer = model, batches, optimizer
        self.device = next(model.parameters()).device
        about = {"start": state_digest(model), "masks": digest(*(zeros.cpu().numpy() for _, zeros in pruned))}
        self.checkpoint = replace(checkpoint, about={**checkpoint.about, **about})

    def load(self) -> tuple[list[float], float, int]:
        """Losses of the epochs that are done, and the sum over the batches of the next one."""
        found = self.checkpoint.load()
        if found is None:
            return [], 0.0, 0
        parts, where = found
        self.model.load_state_dict(parts["model"])
        parameters = dict(self.model.named_parameters())
        for key, value in parts.get("optimizer", {}).items():
            kind, name = key.split(" ", 1)
            # counts of steps stay on the host
            self.optimizer.state[parameters[name]][kind] = value.to(self.device) if value.ndim else value
        self.batches.go_on(where["batch"], parts["batches"])
        put_back(parts["random"], self.device)
        return where["losses"], where["total"], where["count"]

    def save(self, losses: list[float], total: float, count: int) -> None:
        batch, states = self.batches.state()
        own = {
            f"{kind} {name}": value
            for name, p in self.model.named_parameters()
            for kind, value in self.optimizer.state[p].items()
            if isinstance(value, torch.Tensor)
        }
        parts = {
            "model": self.model.state_dict(),
            "optimizer": own,
            "batches": states,
            "random": generators(self.device),
        }
        self.checkpoint.save(parts, losses=losses, total=total, count=count, batch=batch)


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    rate: float = 1e-3,
    weight_decay: float = 0.0,
    progress: Progress | None = None,
) -> list[float]:
    """Train a classifier with Adam (AdamW if weights decay), at a rate that decays to zero by a cosine.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode. Random numbers that it draws, as for dropout, come from torch's global generator.
    batches : Batches
    epochs : int
    rate : float
        At the beginning.
    weight_decay : float
        Decoupled from the gradient.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    list of float
        Mean loss of each epoch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    return descend(model, batches, epochs, optimizer, schedule=schedule, progress=progress)


def sgd(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    epochs: int = 10,
    rate: float = 0.1,
    momentum: float = 0.5,
    penalty: float = 0.0,
    penalised: Sequence[str] | None = None,
    masks: Masks | None = None,
    loss: Loss = nn.functional.cross_entropy,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Train by stochastic gradients with momentum, at a constant rate.

    The defaults, with batches of 100, are those of "When are neural pruning approximation bounds useful?" (2020),
    appendix B.1.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode.
    batches : iterable of (inputs, targets)
    epochs : int
    rate, momentum : float
    penalty : float
        Times the l1 norm of weights, added to the loss. Its subgradients make weights small, and exact zeros only by
        chance: this is no proximal step.
    penalised : sequence of str, optional
        Names of the parameters of that norm. Default: all weights of layers; biases and the scales of norms are free.
    masks : mapping of str to bool array, optional
        As in `descend`: False where a weight stays zero.
    loss : callable
        ``loss(outputs, targets)``, a scalar.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.
    checkpoint : Checkpoint, optional
        As of `descend`; what is said here of rate and momentum is added.

    Returns
    -------
    list of float
        Mean of loss and penalty of each epoch.

    Raises
    ------
    ValueError, FloatingPointError
        As `descend`; a negative penalty, or one on no parameter.
    """
    if not penalty >= 0:
        raise ValueError(f"penalty must be a number of at least 0; got {penalty!r}")
    parameters = dict(model.named_parameters())
    # matrices and kernels; vectors are biases, or scales and shifts of norms
    chosen = [name for name, p in parameters.items() if p.ndim >= 2] if penalised is None else list(penalised)
    if not chosen or not set(chosen) <= set(parameters):
        raise ValueError(f"penalised must be names of parameters, {', '.join(parameters)}; got {penalised!r}")
    weights = [parameters[name] for name in chosen]

    def norm() -> torch.Tensor:
        return penalty * torch.stack([p.abs().sum() for p in weights]).sum()

    optimizer = torch.optim.SGD(model.parameters(), rate, momentum)
    if checkpoint is not None:
        checkpoint = replace(checkpoint, about={**checkpoint.about, "rate": rate, "momentum": momentum})
    return descend(
        *(model, batches, epochs, optimizer, loss, norm if penalty else None, masks),
        progress=progress,
        checkpoint=checkpoint,
    )


def train_to_outputs(
    model: nn.Module,
    inputs: np.ndarray,
    targets: np.ndarray,
    epochs: int = 10,
    rate: float = 0.1,
    momentum: float = 0.5,
    size: int = 100,
    seed: int = 0,
    norms: str = "own",
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train a model to give the outputs of another one, as a pruned one those of the dense one.

    The loss is the mean over the samples of the squared distance of outputs that are divided by Euclidean norms, as
    footnote 7 of "When are neural pruning approximation bounds useful?" (2020) says, so that gradients do not explode
    where pruning has changed the scale.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode.
    inputs : float32 array, samples first
    targets : float32 array (samples, outputs)
        Before a softmax; `outputs` gives those of a model.
    epochs : int
    rate, momentum : float
        Of `sgd`.
    size, seed : int
        Of the batches and their order.
    norms : {"own", "targets"}
        Divide each sample's outputs and targets each by their own norm: the scale of the outputs is then not learned.
        Or both by the targets' norm: the loss is the square of the relative error.
    masks : mapping of str to bool array, optional
        As in `descend`: False where a weight stays zero.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ValueError, FloatingPointError
        As `descend`; other `norms`.
    """
    if norms not in _DISTANCES:
        raise ValueError(f"norms must be one of {', '.join(_DISTANCES)}; got {norms!r}")
    batches = Batches(inputs, targets, size, seed)
    return sgd(model, batches, epochs, rate, momentum, masks=masks, loss=_DISTANCES[norms], progress=progress)


def _of_directions(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (nn.functional.normalize(made) - nn.functional.normalize(wanted)).square().sum(1).mean()


def _relative(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    # an output of norm zero, as of a network that was cut through, is no reason for an infinite loss
    return ((made - wanted).square().sum(1) / wanted.square().sum(1).clamp_min(1e-24)).mean()


_DISTANCES: dict[str, Loss] = {"own": _of_directions, "targets": _relative}


def _zeros(model: nn.Module, masks: Masks) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Parameters and where they stay zero."""
    parameters, pruned = dict(model.named_parameters()), []
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks must be for parameters, {', '.join(parameters)}; got {name!r}")
        p, kept = parameters[name], torch.as_tensor(mask)
        if kept.dtype != torch.bool or kept.shape != p.shape:
            raise ValueError(
                f"the mask of {name} must be bool of shape {tuple(p.shape)}; "
                f"got {str(kept.dtype).removeprefix('torch.')} of shape {tuple(kept.shape)}"
            )
        pruned.append((p, ~kept.to(p.device)))
    return pruned


@torch.no_grad()
def _write_zeros(pruned: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    for p, zeros in pruned:
        p.masked_fill_(zeros, 0)


def outputs(model: nn.Module, inputs: np.ndarray, size: int = 1000) -> np.ndarray:
    """What a model, in evaluation mode, makes of samples, float32; its mode is put back."""
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        made = torch.cat([model(x.to(device)).cpu() for x in torch.from_numpy(inputs).split(size)])
    model.train(training)
    return made.numpy()


def accuracy(model: nn.Module, inputs: np.ndarray, labels: np.ndarray, size: int = 1000) -> float:
    """Fraction of samples that a classifier, in evaluation mode, gets right; its mode is put back."""
    return float((outputs(model, inputs, size).argmax(1) == labels).mean())

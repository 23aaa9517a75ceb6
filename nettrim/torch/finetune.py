"""Training on the non-zero weights only: the zeros of a pruned model stay, whatever the optimiser does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nettrim.patterns import matches

__all__ = ["KeptZeros", "finetune", "keep_zeros"]


class KeptZeros:
    """The zeros of some parameters, as they were when this was made. `keep_zeros` gives one.

    Parameters
    ----------
    parameters : dict of str to nn.Parameter
        By name. Each is remembered with a mask of its zeros, one byte an entry, on its device.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._kept = {name: (p, p.detach() == 0) for name, p in parameters.items()}

    @property
    def names(self) -> list[str]:
        """Of the parameters whose zeros are kept."""
        return list(self._kept)

    def nnz(self) -> int:
        """Entries of these parameters that are not zero now."""
        return sum(int(torch.count_nonzero(p.detach())) for p, _ in self._kept.values())

    def check(self) -> None:
        """Make sure that every entry that was zero is zero now.

        Raises
        ------
        RuntimeError
            Some are not; the message says how many of which parameter.
        """
        revived = {name: int(torch.count_nonzero(p.detach()[zeros])) for name, (p, zeros) in self._kept.items()}
        found = [f"{count} of {name}" for name, count in revived.items() if count]
        if found:
            raise RuntimeError(f"entries that were zero no longer are: {', '.join(found)}")

    @torch.no_grad()
    def restore(self) -> None:
        """Write the zeros again, as +0."""
        for p, zeros in self._kept.values():
            # filled, not multiplied by a mask: a NaN or an infinity times 0 is NaN
            p.masked_fill_(zeros, 0)

    @torch.no_grad()
    def clear_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what `optimizer` remembers of these entries: floating tensors of a parameter's shape, as momenta."""
        for p, zeros in self._kept.values():
            # a scalar's own state cannot be told from a count of steps
            if p.ndim == 0:
                continue
            for value in optimizer.state.get(p, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == p.shape and value.is_floating_point():
                    value.masked_fill_(zeros.to(value.device), 0)

    def mask_gradients(self) -> Iterator[Any]:
        """Hook each parameter that has a gradient, so that its zeros get none; yields the handles."""
        for name, (p, zeros) in self._kept.items():
            if p.requires_grad:
                yield p.register_hook(_masking(name, zeros))


def _masking(name: str, zeros: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        if gradient.layout != torch.strided:
            raise ValueError(
                f"the gradient of {name} is sparse, which keep_zeros does not mask: "
                "use sparse=False in its module, or leave it out of names"
            )
        return gradient.masked_fill(zeros, 0)

    return hook


@contextmanager
def keep_zeros(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, names: Sequence[str] | None = None
) -> Iterator[KeptZeros]:
    """Context in which the entries of parameters that are zero on entry stay zero.

    Gradients are masked by hooks, which are removed on exit. That is not enough where the optimiser moves a weight
    that has no gradient, by a momentum from before. With `optimizer`, the zeros are therefore written again after
    each of its steps, and its state of these entries is cleared, so that it does not revive them later either.
    Without, such a step moves them until the context is left, when they are written again: use that form for
    optimisers that are not torch's, and count on the zeros only afterwards.

    >>> import torch, nettrim.torch as ntt
    >>> model = torch.nn.Linear(3, 1)
    >>> model.weight.data = torch.tensor([[1.0, 0.0, 2.0]])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> with ntt.keep_zeros(model, optimizer) as kept:
    ...     model(torch.ones(5, 3)).square().mean().backward()
    ...     optimizer.step()
    ...     kept.check()
    >>> model.weight[0, 1].item()
    0.0

    Parameters
    ----------
    model : nn.Module
        On any devices. It must stay there while the context lasts.
    optimizer : torch.optim.Optimizer, optional
        Of the model's parameters, or of some. It may have a state already.
    names : sequence of str, optional
        Parameters whose zeros are kept: names as in ``named_parameters()``, or patterns as in `nettrim.prune`.
        Default: every floating one with at least one zero. That includes biases that were initialised with zeros and
        not trained since.

    Yields
    ------
    KeptZeros
        With ``check()``, which raises if a zero was revived, and ``nnz()``.

    Raises
    ------
    TypeError
        `model` is not a module, `optimizer` not an optimiser, `names` a string, or a named parameter not floating.
    ValueError
        No parameter fits one of `names`, or `optimizer` holds none of the model's parameters. Inside the context,
        from ``backward()``: a gradient is sparse.
    """
    kept = KeptZeros(_chosen(model, names))
    if optimizer is not None:
        _check_optimizer(model, optimizer)
    with ExitStack() as stack:
        stack.callback(kept.restore)
        for handle in kept.mask_gradients():
            stack.callback(handle.remove)
        if optimizer is not None:

            def after_step(stepped: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kept.restore()
                kept.clear_state(stepped)

            stack.callback(optimizer.register_step_post_hook(after_step).remove)
        yield kept


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Callable[[Any, Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    epochs: int = 1,
    progress: Callable[[int, float], Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[float]:
    """Train what pruning left, on the pattern that it left: the zeros stay zero (see `keep_zeros`).

    Parameters
    ----------
    model : nn.Module
        Trained in its training mode; afterwards every module is in the mode that it was in.
    loader : iterable of tuples
        Batches (inputs, ..., target): all but the last are the model's arguments. Tensors are moved to the device of
        the model's first parameter. It is iterated once an epoch.
    loss : callable
        ``loss(outputs, target)``, a scalar tensor.
    optimizer : torch.optim.Optimizer
        Of the model's parameters, or of some. One whose step needs a closure will not do.
    epochs : int
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss, when it is over.
    names : sequence of str, optional
        As in `keep_zeros`.
    schedule : torch.optim.lr_scheduler.LRScheduler, optional
        Of the optimizer, stepped after every batch. One that goes by epochs, or by a measured value, is stepped in
        `progress` instead.

    Returns
    -------
    list of float
        Mean loss of each epoch, over its samples (batches count with the length of their first argument), as it was
        before each step.

    Raises
    ------
    TypeError, ValueError
        Wrong input, as in `keep_zeros`; `loader` gave no batch in an epoch, or one that is not such a tuple.
    FloatingPointError
        The loss is infinite or NaN. The weights are those of the last step before.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a whole number of at least 1; got {epochs!r}")
    _check_optimizer(model, optimizer)
    if schedule is not None:
        _check_schedule(schedule, optimizer)
    losses = []
    with keep_zeros(model, optimizer, names) as kept:
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.train()
            for epoch in range(1, epochs + 1):
                losses.append(_epoch(model, loader, loss, optimizer, schedule, epoch))
                if progress is not None:
                    progress(epoch, losses[-1])
        finally:
            for module, training in modes:
                module.training = training
        kept.check()
    return losses


def _check_schedule(schedule: Any, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        raise TypeError(f"schedule must be a torch.optim.lr_scheduler.LRScheduler; got {_kind(schedule)}")
    if schedule.optimizer is not optimizer:
        raise ValueError("schedule must be of the optimizer given; it is of another one")
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("schedule must step by itself; one that needs a measured value is stepped in progress")


def _epoch(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Callable[[Any, Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    epoch: int,
) -> float:
    """One pass over the loader; the mean loss."""
    device = next(model.parameters()).device
    total, samples = 0.0, 0
    for number, batch in enumerate(loader, 1):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"loader must give tuples (inputs, ..., target); got {_kind(batch)}")
        *inputs, target = (x.to(device) if isinstance(x, torch.Tensor) else x for x in batch)
        optimizer.zero_grad()
        value = loss(model(*inputs), target)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            raise ValueError(f"loss must return a scalar tensor; got {type(value).__name__}{shape}")
        now = float(value.detach())
        if not math.isfinite(now):
            raise FloatingPointError(
                f"the loss is {now} in batch {number} of epoch {epoch}: try a smaller learning rate"
            )
        value.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        size = len(inputs[0]) if hasattr(inputs[0], "__len__") else 1
        total, samples = total + size * now, samples + size
    if samples == 0:
        again = " (it must be iterable once an epoch, and a generator is used up)" if epoch > 1 else ""
        raise ValueError(f"loader is empty: it gave no sample in epoch {epoch}{again}")
    return total / samples


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The parameters whose zeros are kept; one that has several names, once."""
    _check_model(model)
    parameters = list(model.named_parameters(remove_duplicate=False))
    if names is None:
        return _once((name, p) for name, p in parameters if p.is_floating_point() and bool((p.detach() == 0).any()))
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names; got the string {names!r}")
    for pattern in names:
        if not any(matches(name, [pattern]) for name, _ in parameters):
            raise ValueError(f"no parameter fits {pattern!r}: {', '.join(name for name, _ in parameters)}")
    chosen = _once((name, p) for name, p in parameters if matches(name, names))
    for name, p in chosen.items():
        if not p.is_floating_point():
            raise TypeError(f"{name} must be of a floating dtype to be trained; got {p.dtype}")
    return chosen


def _once(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, p in parameters:
        found.setdefault(id(p), (name, p))
    return dict(found.values())


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")


def _check_optimizer(model: nn.Module, optimizer: Any) -> None:
    _check_model(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError("optimizer holds none of the model's parameters: was it made for another copy of the model?")


def _kind(batch: Any) -> str:
    return f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__

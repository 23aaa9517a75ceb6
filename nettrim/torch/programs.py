"""The programs of a model's layers, from what goes into and comes out of them on the calibration batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from nettrim.layer import Layer, bias_weights, group_problems
from nettrim.operators import Gram
from nettrim.problem import Problem
from nettrim.torch.capture import Arguments, Store, observe
from nettrim.torch.graph import Target

__all__ = ["Programs"]


class Programs:
    """Makes the problem of each group of a layer.

    Parameters
    ----------
    original, pruned : nn.Module
        In evaluation mode while problems are made; the cascade scheme feeds a layer what `pruned` has for it.
    batches : list
    arguments : callable
        (args, kwargs) of a model for a batch.
    penalise_bias : bool
    budget : float
        Bytes of a ReLU layer's inputs in memory.
    """

    def __init__(
        self,
        original: nn.Module,
        pruned: nn.Module,
        batches: list[Any],
        arguments: Arguments,
        penalise_bias: bool,
        budget: float,
    ):
        self.original, self.pruned, self.batches, self.arguments = original, pruned, batches, arguments
        self.penalise_bias, self.budget = penalise_bias, budget

    @contextmanager
    def of(
        self, target: Target, layer: Layer, number: float, cascade: bool, slack: bool
    ) -> Iterator[Iterable[tuple[slice, Problem]]]:
        """(outputs, problem) of each group, while the context lasts; `number` is epsilon, or gamma with `slack`."""
        if not target.relu:
            yield self._linear(target, layer, number, cascade, slack)
            return
        inputs, outputs = Store(self.budget), Store(math.inf)
        try:
            for fed, given in self._observed(target, cascade):
                inputs.add(layer.augmented(fed))
                outputs.add(layer(given))
            X = inputs.array()
            own = layer.linear(X) if slack else None
            yield group_problems(layer, X, outputs.array(), number, own, self.penalise_bias)
        finally:
            inputs.close()

    def _observed(self, target: Target, cascade: bool) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """For each call on each batch: what goes into the layer, and what goes into it in the original model."""
        old, new = (m.get_submodule(target.name) for m in (self.original, self.pruned))
        stop = target.calls == 1
        for batch in self.batches:
            arguments = self.arguments(batch)
            given = observe(self.original, [old], arguments, "inputs", stop)[0]
            fed = observe(self.pruned, [new], arguments, "inputs", stop)[0] if cascade else given
            yield from zip(fed, given, strict=True)

    def _linear(
        self, target: Target, layer: Layer, number: float, cascade: bool, slack: bool
    ) -> Iterator[tuple[slice, Problem]]:
        """The linear program: second moments, a batch at a time."""
        parts = layer.parts()
        rows = layer.weights(parts[0][1]).shape[0]
        grams = [Gram(rows, m.stop - m.start) for _, m in parts]
        for fed, given in self._observed(target, cascade):
            outputs = layer.flatten(layer.linear(given))
            fed = layer.augmented(fed)
            for (c, m), gram in zip(parts, grams, strict=True):
                gram.add(layer.matrix(fed[:, c] if layer.groups > 1 else fed), np.ascontiguousarray(outputs[m]))
        for (_, m), gram in zip(parts, grams, strict=True):
            options = bias_weights(layer, rows, self.penalise_bias)
            if slack:
                distance = math.sqrt(float(gram.squared_errors(layer.weights(m)).sum()))
                # the moments of nearly equal outputs are known to about 1e-7 of them
                options["epsilon_abs"] = max(number * distance, 1e-5 * math.sqrt(float(gram.YY.sum())))
            else:
                options["epsilon"] = number
            yield m, Problem.from_gram(gram, **options)

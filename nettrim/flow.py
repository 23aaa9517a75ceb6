"""What flows through a network of plain layers, which of them are chosen, and the checks of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nettrim.layer import Layer
from nettrim.patterns import matches

__all__ = ["SCHEMES", "after", "check_network", "chosen_layers", "run", "split"]

SCHEMES = ("parallel", "cascade")


def chosen_layers(layers: list[Layer], targets: Sequence[str], ignore: Sequence[str]) -> list[bool]:
    """Which layers fit `targets` and not `ignore`.

    Raises
    ------
    ValueError
        None does.
    """
    chosen = [matches(layer.name, targets) and not matches(layer.name, ignore) for layer in layers]
    if not any(chosen):
        raise ValueError(f"no layer fits targets {list(targets)} and not ignore {list(ignore)}: {_names(layers)}")
    return chosen


def check_network(
    layers: Sequence[Layer],
    between: Sequence[Callable[[np.ndarray], np.ndarray] | None] | None,
    inputs: np.ndarray,
    scheme: str,
    holdout: float,
    samples: int | None,
    targets: Sequence[str],
    ignore: Sequence[str],
) -> tuple[list[Layer], list[Callable[[np.ndarray], np.ndarray] | None]]:
    """The layers and the functions between them, once all of a call's choices fit each other.

    Raises
    ------
    TypeError, ValueError
        They do not; the message names the argument.
    """
    layers = list(layers)
    between = [None] * len(layers) if between is None else list(between)
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise TypeError("layers must be a sequence of nettrim.Layer, at least one")
    if len({layer.name for layer in layers}) < len(layers):
        raise ValueError(f"layers must have different names; got {_names(layers)}")
    if len(between) != len(layers):
        raise ValueError(f"between must have one entry for each layer, {len(layers)}; got {len(between)}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind != "f" or inputs.ndim < 2:
        raise TypeError("inputs must be an array of a floating dtype, batch first")
    if isinstance(holdout, bool) or not 0 <= holdout < 1:
        raise ValueError(f"holdout must be in [0, 1); got {holdout}")
    left = len(inputs) - round(holdout * len(inputs))
    if samples is not None and not 1 <= samples <= left:
        raise ValueError(f"samples must be between 1 and the {left} that are not held out; got {samples}")
    for what, patterns in (("targets", targets), ("ignore", ignore)):
        if isinstance(patterns, str):
            raise TypeError(f"{what} must be a list of patterns; got the string {patterns!r}")
        for pattern in patterns:
            if not any(matches(layer.name, [pattern]) for layer in layers):
                raise ValueError(f"{what} has the pattern {pattern!r}, which fits no layer: {_names(layers)}")
    return layers, between


def _names(layers: list[Layer]) -> str:
    return ", ".join(repr(layer.name) for layer in layers)


def split(inputs: np.ndarray, holdout: float, samples: int | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Calibration and held-out samples, disjoint."""
    order = np.random.default_rng(seed).permutation(len(inputs))
    back = round(holdout * len(inputs))
    used = np.sort(order[back:] if samples is None else order[back : back + samples])
    return inputs[used], inputs[np.sort(order[:back])] if back else None


def after(function: Callable[[np.ndarray], np.ndarray] | None, outputs: np.ndarray) -> np.ndarray:
    """What goes on to the next layer."""
    return outputs if function is None else function(outputs)


def run(
    layers: list[Layer], between: Sequence[Callable[[np.ndarray], np.ndarray] | None], inputs: np.ndarray
) -> list[np.ndarray]:
    """What each layer passes on."""
    passed = []
    for layer, function in zip(layers, between, strict=True):
        inputs = after(function, layer(inputs))
        passed.append(inputs)
    return passed

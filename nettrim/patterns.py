"""Patterns of layers' names: which layers they choose, and which number each layer gets."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["densities_for", "matches", "numbers_for", "value_for"]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of the patterns: shell-like, or a regular expression after ``re:`` that fits all of it.

    >>> from nettrim.patterns import matches
    >>> matches("encoder.fc1", ["*.fc?"]), matches("head", ["re:fc[0-9]+"])
    (True, False)
    """
    return any(
        re.fullmatch(pattern[3:], name) is not None if pattern.startswith("re:") else fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def numbers_for(
    names: Sequence[str], scheme: str, epsilon: float | Mapping[str, float], gamma: float | Mapping[str, float]
) -> list[float]:
    """epsilon of each layer that is pruned, or gamma of the cascade's further ones, checked before the first is solved.

    Raises
    ------
    TypeError, ValueError
        Not a number, none for a layer, a pattern that fits none, epsilon outside of (0, 1), or gamma below 1.
    """
    cascade = scheme == "cascade"
    _check_patterns("epsilon", epsilon, names[:1] if cascade else names, cascade)
    _check_patterns("gamma", gamma, names[1:], cascade)
    numbers = []
    for k, name in enumerate(names):
        what = "gamma" if scheme == "cascade" and k > 0 else "epsilon"
        number = value_for(gamma if what == "gamma" else epsilon, name, what)
        if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)):
            raise TypeError(f"{what} must be a number; got {number!r} for layer {name!r}")
        if what == "epsilon" and not 0 < number < 1:
            raise ValueError(
                f"epsilon must be between 0 and 1, relative to a layer's outputs; got {number} for {name!r}"
            )
        if what == "gamma" and not number >= 1:
            raise ValueError(f"gamma must be at least 1; got {number} for {name!r}")
        numbers.append(float(number))
    return numbers


def densities_for(names: Sequence[str], density: float | Mapping[str, float]) -> list[float]:
    """Fraction of weights to keep of each layer, checked before the first is solved.

    Raises
    ------
    TypeError, ValueError
        Not a number, none for a layer, a pattern that fits none, or a density outside of (0, 1].
    """
    _check_patterns("density", density, names, False)
    numbers = []
    for name in names:
        number = value_for(density, name, "density")
        if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)):
            raise TypeError(f"density must be a number; got {number!r} for layer {name!r}")
        if not 0 < number <= 1:
            raise ValueError(f"density must be above 0 and at most 1; got {number} for {name!r}")
        numbers.append(float(number))
    return numbers


def _check_patterns(what: str, given: Any, names: Sequence[str], cascade: bool) -> None:
    """That each pattern is the first that fits some layer: a number that is given and not used is a mistake."""
    used = {
        next((pattern for pattern in given if matches(name, [pattern])), None)
        for name in (names if isinstance(given, Mapping) else ())
    }
    for pattern in given if isinstance(given, Mapping) and names else ():
        if pattern not in used:
            fits = [name for name in names if matches(name, [pattern])]
            why = (
                f"the first that fits counts, and another comes before it for {', '.join(fits)}"
                if fits
                else "fits no layer"
            )
            scope = " (in the cascade scheme epsilon is the first layer's, gamma that of the others)" if cascade else ""
            raise ValueError(f"{what} has the pattern {pattern!r}, but {why} of {', '.join(names)}{scope}")


def value_for(value: float | Mapping[str, float], name: str, what: str) -> float:
    """The number for a layer: that of the first pattern that fits its name.

    Raises
    ------
    ValueError
        No pattern fits; the message says `what` was asked for.
    """
    if not isinstance(value, Mapping):
        return value
    for pattern, number in value.items():
        if matches(name, [pattern]):
            return number
    raise ValueError(f"{what} has no pattern that fits layer {name!r}: {', '.join(value)}")

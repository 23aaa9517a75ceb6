"""Convex penalties that a layer's program can minimise in the place of the l1 norm; see `base` for the mathematics.

=================  =================================================  ==========================================
class              what becomes small                                 dual bound
=================  =================================================  ==========================================
`L1`               single weights (the default)                       dual norm, neuron by neuron
`ElasticNet`       single weights, shared by equal inputs             finite conjugate
`Ridge`            nothing becomes zero                               finite conjugate
`Rows`             inputs                                             dual norm
`Columns`          neurons, output channels                           dual norm, neuron by neuron
`Groups`           any groups, such as input channels                 dual norm
`KSupport`         weights beyond n of each m inputs                  dual norm, neuron by neuron
`Nuclear`          the rank                                           dual norm: the largest singular value
`TotalVariation`   differences between neighbouring inputs            a dual variable that is searched for
=================  =================================================  ==========================================
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from nettrim.penalties.base import Penalty
from nettrim.penalties.entrywise import L1, ElasticNet, Ridge
from nettrim.penalties.groups import Columns, Groups, Rows
from nettrim.penalties.nuclear import Nuclear
from nettrim.penalties.support import KSupport
from nettrim.penalties.variation import TotalVariation

__all__ = [
    "L1",
    "Columns",
    "ElasticNet",
    "Groups",
    "KSupport",
    "Nuclear",
    "Penalty",
    "Ridge",
    "Rows",
    "TotalVariation",
    "make",
]

_CLASSES: dict[str, type[Penalty]] = {
    c.name: c for c in (L1, ElasticNet, Ridge, Rows, Columns, Groups, KSupport, Nuclear, TotalVariation)
}


def make(penalty: Penalty | str | dict[str, Any] | None) -> Penalty:
    """A penalty from itself, its name, or its `to_dict`; None is l1.

    A name may carry parameters, as on the command line: "elastic_net:ridge=0.1".

    >>> from nettrim import penalties
    >>> penalties.make("total_variation:shape=28x28,weight=2")
    TotalVariation(shape=(28, 28), weight=2.0, axes=(0, 1))

    Raises
    ------
    TypeError, ValueError
        Neither, an unknown name, or wrong parameters.
    """
    if penalty is None:
        return L1()
    if isinstance(penalty, Penalty):
        return penalty
    if not isinstance(penalty, (str, dict)):
        raise TypeError(f"penalty must be a nettrim.penalties object or a name; got {type(penalty).__name__}")
    values: dict[str, Any] = _parsed(penalty) if isinstance(penalty, str) else dict(penalty)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in _CLASSES:
        raise ValueError(f"penalty must be one of {', '.join(_CLASSES)}; got {name!r}")
    parameters = {f.name: f for f in fields(_CLASSES[name]) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in parameters:
            has = f"its parameters are {', '.join(parameters)}" if parameters else "it has none"
            raise ValueError(f"penalty {name} has no parameter {key!r}; {has}")
    missing = [key for key, f in parameters.items() if f.default is MISSING and key not in values]
    if missing:
        example = {"ridge": "elastic_net:ridge=0.1", "shape": "total_variation:shape=28x28,weight=2"}.get(missing[0])
        hint = f", as in {example!r}" if example and isinstance(penalty, str) else ""
        raise ValueError(f"penalty {name} needs {', '.join(missing)}{hint}")
    if "labels" in values:
        values["labels"] = np.array(values["labels"])
    return _CLASSES[name](**values)


def _parsed(text: str) -> dict[str, Any]:
    """Name and parameters of "name:key=value,key=value"; a value is a number, or whole numbers with x between."""
    name, colon, rest = text.partition(":")
    values: dict[str, Any] = {"name": name}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        try:
            if not equals:
                raise ValueError
            sizes = [int(v) for v in value.split("x")] if key in ("shape", "axes") or "x" in value else None
            values[key] = sizes or (
                int(value) if value.lstrip("-").isdecimal() and key in ("k", "of") else float(value)
            )
        except ValueError:
            raise ValueError(f"penalty {text!r} must be like 'name:key=number,key=4x4'") from None
    return values

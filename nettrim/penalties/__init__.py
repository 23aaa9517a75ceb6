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
    values: dict[str, Any] = {"name": penalty} if isinstance(penalty, str) else dict(penalty)
    name = values.pop("name", None)
    if name not in _CLASSES:
        raise ValueError(f"penalty must be one of {', '.join(_CLASSES)}; got {name!r}")
    if "labels" in values:
        values["labels"] = np.asarray(values["labels"])
    try:
        return _CLASSES[name](**values)
    except TypeError as error:
        raise TypeError(f"penalty {name}: {error}") from None

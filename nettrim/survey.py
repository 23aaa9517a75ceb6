"""What a problem has to know of samples on disk, found in one pass over them: the checks at the door, and sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nettrim.chunked import READ_BYTES, Chunked

__all__ = ["Survey", "slices", "survey"]


class Survey(NamedTuple):
    """Sums over all samples.

    Attributes
    ----------
    squares : (M,) float64 array
        Squared norm of each row of Y on Omega.
    lowest : float
        The smallest entry of Y.
    inactive : int
        Entries that are not in Omega.
    forced : float
        Sum of the squares of the negative bounds off Omega.
    zero_allowed : bool
        Whether no bound off Omega is negative.
    """

    squares: np.ndarray
    lowest: float
    inactive: int
    forced: float
    zero_allowed: bool


def slices(P: int, sample_bytes: int, least: int = 1) -> Iterator[slice]:
    """Samples 0..P - 1 in parts of about `READ_BYTES`, where a sample takes so many bytes; of at least so many."""
    step = max(READ_BYTES // sample_bytes, least)
    for first in range(0, P, step):
        yield slice(first, min(first + step, P))


def survey(X: Chunked, Y: Chunked, omega: str | Chunked, V: np.ndarray | Chunked) -> Survey:
    """Check X, Y and V and sum over their samples.

    Parameters
    ----------
    X, Y : (N, P) and (M, P) Chunked
        In the working dtype.
    omega : {"active", "linear"} or (M, P) Chunked of bool
    V : (1, 1) array or (M, P) Chunked

    Returns
    -------
    Survey

    Raises
    ------
    ValueError
        NaN or inf; the message names the array and its first samples with one.
    """
    (N, P), M = X.shape, Y.shape[0]
    squares, lowest, inactive, forced = np.zeros(M), np.inf, 0, 0.0
    zero_allowed = isinstance(V, Chunked) or bool(V[0, 0] >= 0) or omega == "linear"
    for s in slices(P, (N + 3 * M) * X.dtype.itemsize + M):
        _require_finite(X, s)
        y = _require_finite(Y, s, "Y")
        lowest = min(lowest, float(y.min()))
        mask = None
        if isinstance(omega, Chunked):
            mask = omega.columns(s)
        elif omega == "active":
            mask = y > 0
        if mask is not None:
            inactive += mask.size - int(np.count_nonzero(mask))
            y[~mask] = 0
        squares += np.einsum("mp,mp->m", y, y, dtype=np.float64)
        if isinstance(V, Chunked):
            v = V.columns(s)
            low = v.min()
            if np.isnan(low) or low == -np.inf:
                raise ValueError(f"V contains NaN or -inf, in samples {s.start} to {s.stop - 1}")
            if mask is not None:
                v[mask] = 0
                np.minimum(v, 0, out=v)
                forced += float(np.einsum("mp,mp->", v, v, dtype=np.float64))
                zero_allowed = zero_allowed and not v.any()
    if not isinstance(V, Chunked):
        forced = min(float(V[0, 0]), 0.0) ** 2 * inactive
        zero_allowed = zero_allowed or inactive == 0
    return Survey(squares, lowest, inactive, forced, zero_allowed)


def _require_finite(a: Chunked, s: slice, name: str = "X") -> Any:
    part = a.columns(s)
    low, high = part.min(), part.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        kind = "NaN" if np.isnan(low) or np.isnan(high) else "inf"
        # in the source too, or only after rounding to the working dtype
        where = "" if a.dtype == a.stored or not np.isfinite(a.astype(a.stored).columns(s)).all() else f" in {a.dtype}"
        raise ValueError(f"{name} contains {kind}{where}, in samples {s.start} to {s.stop - 1}")
    return part

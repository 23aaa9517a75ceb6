"""One layer's program, checked once at the door.

    minimise    sum_ij C_ij |W_ij|
    subject to  || (W^T X - Y)_Omega ||_F <= epsilon,     (W^T X)_notOmega <= V_notOmega

(Aghasi, Abdi, Romberg, "Fast convex pruning of deep neural networks", SIAM J. Math. Data Sci. 2020, programs
(3.2), (3.4), (3.10) and (5.1)). With ``neuronwise=True`` the ball is split into one ball of radius
``epsilon / sqrt(M)`` per neuron (program (4.7)). Another penalty may take the place of the l1 norm.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from copy import copy as shallow_copy
from typing import Any

import numpy as np

from nettrim.arrays import on_gpu, place_of, to_host
from nettrim.chunked import Chunked
from nettrim.convolution import Convolution
from nettrim.operators import Gram
from nettrim.penalties import L1, Penalty, make
from nettrim.survey import Survey, slices, survey

__all__ = ["Problem", "warn"]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Problem:
    """Data of one Net-Trim layer program. Arrays are used as they are (no copy when the dtype fits), never changed.

    They may be NumPy's or any library's that speaks DLPack (torch, CuPy, JAX). What lives on a GPU is copied to the
    host, and if X does, a solution's arrays come back there. What exceeds the memory is given as `Chunked`, and then
    neither X nor Y nor anything of their sizes is ever in memory as a whole.

    Parameters
    ----------
    X : (N, P) array of float32 or float64, Convolution, or Chunked
        Layer inputs, one column a sample; append a row of ones for a bias. float16 is promoted to float32.
    Y : (M, P) array of float32 or float64, or Chunked
        Layer outputs: after the ReLU for a ReLU layer. For a Convolution also (B, M, h, w) or (B, M, l), as a layer
        puts them out; the same for `omega` and `V`.
    epsilon : float, optional
        Radius of the ball relative to ``||Y_Omega||_F``. Give either this or `epsilon_abs`.
    epsilon_abs : float, optional
        Radius of the ball in the units of Y.
    omega : {"active", "linear"}, (M, P) bool array or Chunked
        Entries in the ball. "active" (default) is ``Y > 0``, decided on Y as given; "linear" is every entry, for a
        layer without a ReLU.
    V : float, (M, P) array or Chunked
        Upper bound off Omega (default 0, a ReLU); ``inf`` where there is none.
    C : float, (N,), (N, 1) or (N, M) array
        Weights of the l1 norm, at least 0; 0 for an entry that is not penalised, such as a bias row. For another
        penalty see there.
    penalty : Penalty or str, optional
        What is minimised in the place of the l1 norm, see `nettrim.penalties`: an object, or a name such as "rows".
    neuronwise : bool
        One ball of radius ``epsilon / sqrt(M)`` per neuron in place of the common one.
    dtype : {None, numpy.float32, numpy.float64}
        Working precision; default the wider one of X and Y.

    Raises
    ------
    TypeError
        An array is not of a real floating dtype, or a flag has the wrong type.
    ValueError
        A shape, a sign, an empty array, NaN or inf; the message names the argument.

    Warns
    -----
    UserWarning
        Y has negative entries although `omega` is "active", or X and Y look like matrices with samples in rows.

    Attributes
    ----------
    X, Y : arrays in the working dtype
    mask : (M, P) bool array or None
        Omega; None when it is everything (a linear layer). With Chunked samples a Chunked one, or None also where it
        is Y > 0, which is found again whenever a part is read.
    V, C : 2-D arrays that broadcast to (M, P) and (N, M), in the working dtype
    penalty : Penalty
    radii : (1,) or (M,) float64
        Radius of the common ball, or of each neuron's.
    gram : Gram or None
        Second moments that stand for X and Y (see `from_gram`).
    """

    #: who has the samples, where this process does not
    shards: Any = None

    def __init__(
        self,
        X: Any,
        Y: Any,
        epsilon: float | None = None,
        *,
        epsilon_abs: float | None = None,
        omega: Any = "active",
        V: Any = 0.0,
        C: Any = 1.0,
        penalty: Penalty | str | None = None,
        neuronwise: bool = False,
        dtype: Any = None,
    ):
        given = {"X": X, "Y": Y}
        chunked = isinstance(X, Chunked) or isinstance(Y, Chunked)
        if chunked and isinstance(X, Convolution):
            raise TypeError("Y must be an array where X is a Convolution; got Chunked")
        if isinstance(X, Convolution):
            Y, omega, V = (X.flatten(a) for a in (Y, omega, V))
            _require_finite(X.images, "the images of X")
        else:
            X = _chunks(X, "X") if chunked else _matrix(X, "X")
        Y = _chunks(Y, "Y") if chunked else _matrix(Y, "Y")
        #: puts results where the caller's X lives
        self._place = place_of(getattr(given["X"], "given", given["X"]))
        #: what of X and Y lives on a GPU, as given: a solve there need not copy it again
        self._on_gpu = {name: a for name, a in given.items() if on_gpu(a)}
        if X.shape[1] != Y.shape[1]:
            raise ValueError(
                f"X and Y must have one column per sample: X is {X.shape}, Y is {Y.shape}"
                + _in_rows(X.shape, Y.shape, chunked, isinstance(X, Convolution))
            )
        self.dtype = _working_dtype(dtype, X, Y)
        self.X, self.Y = X.astype(self.dtype, copy=False), Y.astype(self.dtype, copy=False)
        if not chunked and self.dtype.itemsize < max(X.dtype.itemsize, Y.dtype.itemsize):
            if isinstance(X, Convolution):
                # converted a part at a time, later
                largest = max(X.images.max(), -X.images.min())
                _require_finite(
                    np.asarray(np.inf if largest > np.finfo(self.dtype).max else 0.0), "X", f" in {self.dtype}"
                )
            else:
                _require_finite(self.X, "X", f" in {self.dtype}")
            _require_finite(self.Y, "Y", f" in {self.dtype}")
        self.gram: Gram | None = None
        #: X X^T in float64, for whoever has made it
        self.products: np.ndarray | None = None
        self._moments: Gram | None = None
        self.N, self.M, self.P = X.shape[0], Y.shape[0], X.shape[1]
        if X.shape == Y.shape and self.P < self.N:
            warn(f"X and Y are {self.N} x {self.P}: {self.P} samples. If they are in rows, {_transposed(chunked)}")
        self.mask: Any
        self.V: Any
        self._survey: Survey | None = None
        if chunked:
            self._look(omega, V)
        if isinstance(omega, str) and omega == "active" and self._lowest() < 0:
            warn(
                "Y has negative entries, which no ReLU puts out: they count as inactive, W^T X <= V. For a layer "
                'without a ReLU pass omega="linear", for one with a ReLU its outputs np.maximum(Y, 0)'
            )
        if not chunked:
            self.mask, self.linear = _mask(omega, self.Y)
            self.V = _bound(V, self.Y.shape, self.dtype)
            self._row_norms = np.sqrt(_masked_row_squares(self.Y, self.mask))
        self._set_penalty(C, penalty)
        self.neuronwise = _flag(neuronwise, "neuronwise")
        self._set_radius(epsilon, epsilon_abs)

    @classmethod
    def from_gram(
        cls,
        gram: Gram,
        epsilon: float | None = None,
        *,
        epsilon_abs: float | None = None,
        C: Any = 1.0,
        penalty: Penalty | str | None = None,
        neuronwise: bool = False,
        dtype: Any = None,
    ) -> Problem:
        """Linear layer (Omega = everything) known through its second moments only; time and memory are free of P.

        Parameters
        ----------
        gram : Gram
            Accumulated with ``Gram(N, M).add(X_chunk, Y_chunk)``.
        epsilon, epsilon_abs, C, penalty, neuronwise, dtype
            As in `Problem`; the default dtype is float64. At float64 precision the moments carry errors of about
            ``1e-7 ||Y||_F``, so radii below ``1e-5 ||Y||_F`` are refused.

        Raises
        ------
        TypeError
            `gram` is not a Gram, or a dtype or flag is wrong.
        ValueError
            An empty Gram, a radius that is negative or too small, or a wrong C.
        """
        if not isinstance(gram, Gram):
            raise TypeError(f"gram must be a nettrim.Gram; got {type(gram).__name__}")
        if gram.P == 0:
            raise ValueError("gram holds no samples: call gram.add(X, Y) first")
        self = cls.__new__(cls)
        self.X = self.Y = self.mask = self._survey = None
        self.gram = self._moments = gram
        self.products = None
        self._place, self._on_gpu = place_of(gram), {}
        self.linear = True
        self.N, self.M, self.P = gram.N, gram.M, gram.P
        self.dtype = np.dtype(np.float64 if dtype is None else dtype)
        if self.dtype not in _FLOATS:
            raise TypeError(f"dtype must be float32 or float64; got {dtype!r}")
        self.V = np.zeros((1, 1), self.dtype)
        self._set_penalty(C, penalty)
        self.neuronwise = _flag(neuronwise, "neuronwise")
        self._row_norms = np.sqrt(gram.YY)
        self._set_radius(epsilon, epsilon_abs)
        if 0 < self.y_norm and self.epsilon < 1e-5 * self.y_norm:
            raise ValueError(
                f"epsilon must be at least 1e-5 ||Y||_F for a problem given by its second moments; got "
                f"{self.epsilon / self.y_norm:.2g} ||Y||_F. Pass X and Y themselves"
            )
        return self

    def _look(self, omega: Any, V: Any) -> None:
        """Omega, V and the one pass over samples that are read in parts."""
        if isinstance(omega, str):
            if omega not in ("active", "linear"):
                raise ValueError(f"omega must be 'active', 'linear' or a bool mask; got {omega!r}")
            self.mask = None
        else:
            self.mask = omega = omega if isinstance(omega, Chunked) else Chunked(to_host(omega, "omega"))
            if omega.dtype != bool:
                raise TypeError(f"omega must be a mask of dtype bool; got {omega.dtype}")
            if omega.shape != self.Y.shape:
                raise ValueError(f"omega must have the shape of Y, {self.Y.shape}; got {omega.shape}")
        if not isinstance(V, Chunked) and np.size(V) > 1:
            V = Chunked(to_host(V, "V"))
        if isinstance(V, Chunked):
            if V.dtype == bool:
                raise TypeError("V must be real; got bool")
            if V.shape != self.Y.shape:
                raise ValueError(f"V must be a number or have the shape of Y, {self.Y.shape}; got {V.shape}")
            self.V = V.astype(self.dtype)
        else:
            self.V = _bound(V, self.Y.shape, self.dtype)
        self._survey = survey(self.X, self.Y, omega, self.V)
        self.linear = isinstance(omega, str) and omega == "linear"
        if self.mask is not None and self._survey.inactive == 0:
            self.mask, self.linear = None, True
        self._row_norms = np.sqrt(self._survey.squares)

    def _lowest(self) -> float:
        return self.Y.min() if self._survey is None else self._survey.lowest

    def _set_penalty(self, C: Any, penalty: Penalty | str | None) -> None:
        self.C = _weights(C, self.N, self.M, self.dtype)
        self.penalty = make(penalty)
        self.penalty.check(self.C, self.N, self.M)

    @property
    def plain(self) -> bool:
        """Whether the penalty is the l1 norm."""
        return isinstance(self.penalty, L1)

    def _set_radius(self, epsilon: float | None, epsilon_abs: float | None) -> None:
        self.y_norm = float(np.sqrt((self._row_norms**2).sum()))
        if (epsilon is None) == (epsilon_abs is None):
            raise ValueError("give one of epsilon (relative to ||Y_Omega||_F) and epsilon_abs")
        name, value = ("epsilon", epsilon) if epsilon is not None else ("epsilon_abs", epsilon_abs)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} must be a number; got {type(value).__name__}")
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} must be finite and at least 0; got {value}")
        #: radius of the ball in the units of Y
        self.epsilon = float(value) * (self.y_norm if name == "epsilon" else 1.0)
        if self.neuronwise:
            self.radii = np.full(self.M, self.epsilon / np.sqrt(self.M))
        else:
            self.radii = np.array([self.epsilon])

    def replace(self, **changes: Any) -> Problem:
        """New problem with some of its parameters changed, by the names that `Problem` gives them.

        Omega follows the new Y unless it was given as a mask.

        Raises
        ------
        TypeError
            An unknown name, or data arrays for a problem that was built from a Gram.
        """
        allowed = {"epsilon", "epsilon_abs", "C", "penalty", "neuronwise", "dtype"}
        if self.gram is None:
            allowed |= {"X", "Y", "omega", "V"}
        unknown = sorted(set(changes) - allowed)
        if unknown:
            raise TypeError(f"cannot change {', '.join(unknown)}; accepted: {', '.join(sorted(allowed))}")
        if "epsilon" not in changes and "epsilon_abs" not in changes:
            changes["epsilon_abs"] = self.epsilon
        kept = {"C": self.C, "penalty": self.penalty, "neuronwise": self.neuronwise, "dtype": self.dtype}
        common: dict[str, Any] = kept | changes
        if self.gram is not None:
            return Problem.from_gram(self.gram, **common)
        if self._survey is not None and not {"X", "Y", "omega", "V"} & set(changes) and common["dtype"] == self.dtype:
            # the samples need not be read again
            new = shallow_copy(self)
            new._set_penalty(common["C"], common["penalty"])
            new.neuronwise = _flag(common["neuronwise"], "neuronwise")
            new._set_radius(common.get("epsilon"), common.get("epsilon_abs"))
            return new
        omega: Any = "linear" if self.linear else self.mask
        if omega is None:
            omega = "active"
        if not self.linear and "Y" in changes and self._default_omega:
            omega = "active"
        # a constant bound is passed as a scalar: it must fit a new Y of another shape
        V: Any = float(self.V[0, 0]) if self.V.size == 1 else self.V
        new = Problem(**({"X": self.X, "Y": self.Y, "omega": omega, "V": V} | common))
        if "X" not in changes:
            new._place = self._place
        new._on_gpu |= {name: a for name, a in self._on_gpu.items() if name not in changes}
        if new.linear and not {"X", "Y"} & set(changes):
            new._moments = self._moments
        return new

    @property
    def _default_omega(self) -> bool:
        if self._survey is not None:
            return self.mask is None
        return bool(np.array_equal(self.mask, self.Y > 0))

    @property
    def compact(self) -> bool:
        """Whether second moments stand for the samples, so that the number of samples no longer matters.

        True for a linear layer with P > N, unless epsilon is so small (below 1e-4 ||Y||_F) that the rounding of the
        moments, about 1e-7 ||Y||_F, would show.
        """
        if self.gram is not None:
            return True
        return self.linear and self.P > self.N and self.epsilon >= 1e-4 * self.y_norm

    @property
    def chunked(self) -> bool:
        """Whether X and Y are `Chunked`."""
        return self._survey is not None

    @property
    def on_disk(self) -> bool:
        """Whether a solve reads X and Y in parts: they are `Chunked`, and no second moments stand for them."""
        return self.chunked and not self.compact

    def moments(self) -> Gram:
        """Second moments of a linear layer, accumulated on the first call."""
        if self._moments is None:
            gram = Gram(self.N, self.M)
            for s in self.parts():
                X, Y, _, _ = self.part(s) if self.chunked else (self.X, self.Y, None, None)
                gram._add(X, Y)
            self._moments = gram
        return self._moments

    def part(self, samples: slice) -> tuple[Any, Any, Any, Any]:
        """(X, Y, Omega, V) of the slice `samples`, arrays in the working dtype; Omega is None for a linear layer."""
        V = self.V if self.V.size == 1 else self.V[:, samples]
        X, Y = self.X[:, samples], self.Y[:, samples]
        if self.linear:
            return X, Y, None, V
        return X, Y, Y > 0 if self.mask is None else self.mask[:, samples], V

    def parts(self, least: int = 1) -> Iterator[slice]:
        """Slices of the samples that are read at a time, of `least` samples or more; all at once unless `chunked`."""
        if not self.chunked:
            return iter([slice(0, self.P)])
        return slices(self.P, (self.N + 3 * self.M) * self.dtype.itemsize + self.M, least)

    @property
    def inactive(self) -> int:
        """Number of entries that are not in Omega."""
        if self.linear:
            return 0
        return self._survey.inactive if self.chunked else int((~self.mask).sum())

    @property
    def scale(self) -> float:
        """Size of the outputs that inequality violations are relative to: ||Y_Omega|| and the negative part of V."""
        if self.linear:
            return self.y_norm
        if self.chunked:
            forced = self._survey.forced
        elif self.V.size == 1:
            forced = float(min(float(self.V[0, 0]), 0.0) ** 2 * np.count_nonzero(~self.mask))
        else:
            forced = float(_masked_row_squares(np.minimum(self.V, 0), ~self.mask).sum())
        return float(np.hypot(self.y_norm, np.sqrt(forced)))

    @property
    def zero_is_feasible(self) -> bool:
        """Whether W = 0 meets every constraint, which makes it optimal."""
        rows = self._row_norms if self.neuronwise else np.array([self.y_norm])
        if not (rows <= self.radii).all():
            return False
        if self.linear:
            return True
        if self.chunked:
            return self._survey.zero_allowed
        return bool((self.V >= 0).all() or (np.broadcast_to(self.V, self.mask.shape) >= 0)[~self.mask].all())

    def __repr__(self) -> str:
        kind = "linear" if self.linear else "relu"
        per = ", neuronwise" if self.neuronwise else ""
        relative = f" = {self.epsilon / self.y_norm:.3g} ||Y||" if self.y_norm > 0 else ""
        size = f"N={self.N}, M={self.M}, P={self.P}"
        penalty = "" if self.plain else f", {self.penalty!r}"
        return f"Problem({kind}, {size}, epsilon={self.epsilon:.6g}{relative}{per}{penalty}, {self.dtype})"


def _transposed(chunked: bool, name: str = "") -> str:
    return 'use Chunked(..., samples="rows")' if chunked else f"pass {name}.T" if name else "pass X.T and Y.T"


def _in_rows(x: tuple[int, ...], y: tuple[int, ...], chunked: bool, convolution: bool) -> str:
    """What to do if shapes suggest samples in rows, of X, of Y or of both."""
    if x[0] == y[0]:
        return f"; samples seem to be in rows, {_transposed(chunked)}"
    for name, fits in (("X", x[0] == y[1] and not convolution), ("Y", x[1] == y[0])):
        if fits:
            return f"; the samples of {name} seem to be in rows, {_transposed(chunked, name)}"
    return ""


def _chunks(a: Any, name: str) -> Chunked:
    a = a if isinstance(a, Chunked) else Chunked(to_host(a, name))
    if a.dtype == bool:
        raise TypeError(f"{name} must be float32 or float64; got bool")
    return a


def _matrix(a: Any, name: str) -> np.ndarray:
    a = to_host(a, name)
    if a.dtype == np.float16:
        a = a.astype(np.float32)
    if a.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(f"{name} must be float32 or float64 (float16 is promoted); got {a.dtype}. Convert with .astype")
    if a.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix with one column per sample; got {a.ndim} dimensions, shape {a.shape}"
        )
    if 0 in a.shape:
        raise ValueError(f"{name} is empty: shape {a.shape}")
    a = a.astype(a.dtype.newbyteorder("="), copy=False)
    _require_finite(a, name)
    return a


def warn(message: str) -> None:
    """Warn of the line outside this package that made the problem."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "nettrim":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _require_finite(a: np.ndarray, name: str, where: str = "") -> None:
    # min and max need no temporary and carry NaN through
    low, high = a.min(), a.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} contains {'NaN' if np.isnan(low) or np.isnan(high) else 'inf'}{where}")


def _working_dtype(dtype: Any, X: np.ndarray, Y: np.ndarray) -> np.dtype:
    if dtype is None:
        return np.result_type(X.dtype, Y.dtype)
    dtype = np.dtype(dtype)
    if dtype not in _FLOATS:
        raise TypeError(f"dtype must be float32 or float64; got {dtype}")
    return dtype


def _mask(omega: Any, Y: np.ndarray) -> tuple[np.ndarray | None, bool]:
    if isinstance(omega, str):
        if omega == "active":
            return Y > 0, False
        if omega == "linear":
            return None, True
        raise ValueError(f"omega must be 'active', 'linear' or a bool mask; got {omega!r}")
    omega = to_host(omega, "omega")
    if omega.dtype != bool:
        raise TypeError(f"omega must be a mask of dtype bool; got {omega.dtype}")
    if omega.shape != Y.shape:
        raise ValueError(f"omega must have the shape of Y, {Y.shape}; got {omega.shape}")
    return (None, True) if omega.all() else (np.ascontiguousarray(omega), False)


def _bound(V: Any, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    V = to_host(V, "V")
    if V.dtype.kind not in "fiu" or V.dtype.itemsize > 8:
        raise TypeError(f"V must be real; got {V.dtype}")
    if V.ndim == 0:
        V = V.reshape(1, 1)
    elif V.shape not in (shape, (1, 1)):
        raise ValueError(f"V must be a number or have the shape of Y, {shape}; got {V.shape}")
    V = np.ascontiguousarray(V, dtype=dtype)
    low = V.min()
    if np.isnan(low) or low == -np.inf:
        raise ValueError("V contains NaN or -inf")
    return V


def _weights(C: Any, N: int, M: int, dtype: np.dtype) -> np.ndarray:
    C = to_host(C, "C")
    if C.dtype.kind not in "fiu" or C.dtype.itemsize > 8:
        raise TypeError(f"C must be real; got {C.dtype}")
    shape = C.shape
    if C.ndim == 0:
        C = C.reshape(1, 1)
    elif C.ndim == 1 and shape == (N,):
        C = C.reshape(N, 1)
    if C.shape not in ((1, 1), (N, 1), (N, M)):
        raise ValueError(f"C must be a number, ({N},), ({N}, 1) or ({N}, {M}); got {shape}")
    C = np.ascontiguousarray(C, dtype=dtype)
    if not (C >= 0).all() or not np.isfinite(C.max()):
        raise ValueError("C must be finite and at least 0 everywhere")
    return C


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def _masked_row_squares(A: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Row sums of A^2 on the mask, in float64, a block of rows at a time."""
    out = np.empty(A.shape[0])
    step = max(1, (1 << 21) // max(A.shape[1], 1))
    for m in range(0, A.shape[0], step):
        block = A[m : m + step].astype(np.float64)
        if mask is not None:
            block[~mask[m : m + step]] = 0
        out[m : m + step] = np.einsum("mp,mp->m", block, block)
    return out

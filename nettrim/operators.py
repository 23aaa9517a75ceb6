"""X as a linear map: ``forward`` is W -> W^T X, ``adjoint`` is Z -> X Z^T; and second moments for linear layers."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from nettrim.arrays import to_host
from nettrim.backends.gemm import gemm, product, syrk
from nettrim.convolution import Convolution

__all__ = ["Dense", "Gram", "KnownGram", "ReducedLinear", "moments"]

#: bytes a float64 conversion buffer may take; small enough to stay far below the memory promise (50 MB)
_CHUNK_BYTES = 16 << 20
#: eigenvalues of X X^T below this multiple of the largest are rounding noise
_RANK_TOL = 1e-13


def moments(X: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
    """Lower triangle of ``total + X X^T`` in float64 (F-ordered N x N), accumulated over chunks of samples."""
    N, P = X.shape
    if total is None:
        total = np.zeros((N, N), order="F")
    step = max(1, _CHUNK_BYTES // (8 * N))
    for p in range(0, P, step):
        syrk(X[:, p : p + step].astype(np.float64, order="K", copy=False), total)
    return total


def mirror(lower: np.ndarray) -> np.ndarray:
    """Fill the upper triangle of a matrix from its lower one, in place, block by block."""
    N, step = lower.shape[0], 256
    for i in range(0, N, step):
        for j in range(0, i + 1, step):
            block = lower[i : i + step, j : j + step]
            if i == j:
                block[...] = np.tril(block) + np.tril(block, -1).T
            else:
                lower[j : j + step, i : i + step] = block.T
    return lower


class Dense:
    """X in memory (or a memory map), on the device of ``backend``, in the working dtype.

    Parameters
    ----------
    X : (N, P) array, C- or F-contiguous
    backend : Backend
    dtype : numpy dtype
    shared : device array, optional
        X on the device, where the caller has it there.
    """

    def __init__(self, X: np.ndarray, backend: Any, dtype: Any, shared: Any = None):
        self._host = X
        self._backend = backend
        #: whether the system of the factor is X X^T + r I, rather than that of X^T X
        self.direct = X.shape[0] <= X.shape[1]
        self.X = backend.asarray(X if shared is None else shared, dtype)
        self.shape = X.shape

    def forward(self, W: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
        """``out <- alpha W^T X + beta out``; W is N x M, out is M x P."""
        return self._backend.product(W.T, self.X, out, alpha, beta)

    def adjoint(self, Z: Any) -> Any:
        """``X Z^T``, N x M, for Z of M x P."""
        return self._backend.product(self.X, Z.T)

    def gram(self) -> np.ndarray:
        """``X X^T`` in float64 if `direct`, else ``X^T X``: the smaller of the two."""
        return self._backend.moments(self.X if self.direct else self.X.T)

    # on the host

    @cached_property
    def rows(self) -> np.ndarray:
        """X, row-major."""
        return np.ascontiguousarray(self.X)

    def columns(self, index: Any) -> np.ndarray:
        """X[:, index]."""
        return self.X[:, index]

    def forward_on(self, pool: Executor, n_threads: int, W: np.ndarray) -> np.ndarray:
        """``W^T X``, M x P, by that many tasks of the pool."""
        return product(pool, n_threads, W.T, self.rows)

    def adjoint_on(self, pool: Executor, n_threads: int, Z: np.ndarray) -> np.ndarray:
        """``X Z^T``, N x M, by that many tasks of the pool."""
        return product(pool, n_threads, self.rows, Z.T)

    def gather_products(self, samples: np.ndarray, inputs: np.ndarray, known: int, G: np.ndarray) -> None:
        """Fill G, products of the rows `inputs` of X over `samples`, where its first `known` rows are known."""
        from nettrim.kernels import passes

        passes.gather_products(self.rows, samples, inputs, known, G)

    def gram_of(self, samples: np.ndarray, inputs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Products G of the rows `inputs` of X over `samples`, as far as the first `count` rows and columns need.

        Returns G, which of its rows are known (the diagonal is whole), and a block of which to make others (passes.py).
        """
        from nettrim.kernels import passes

        G, block = np.empty((inputs.size, inputs.size)), self.block_of(samples, inputs)
        passes.block_products(block, count, G)
        return G, np.arange(inputs.size) < count, block

    def block_of(self, samples: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The block of `gram_of`."""
        from nettrim.kernels import passes

        return passes.gather_block(self.rows, samples, inputs)

    def gather_columns(self, inputs: np.ndarray, samples: np.ndarray, A: np.ndarray) -> None:
        """Fill A with the entries of X at these rows and columns."""
        from nettrim.kernels import passes

        passes.gather_columns(self.rows, inputs, samples, A)


class KnownGram:
    """X of which only the shape (N, P) and X X^T are known: all that a factor needs.

    Parameters
    ----------
    shape : tuple of int
    gram : (N, N) float64 array
    """

    direct = True

    def __init__(self, shape: tuple[int, int], gram: np.ndarray):
        self.shape, self._gram = shape, gram

    def gram(self) -> np.ndarray:
        """``X X^T``."""
        return self._gram


class Gram:
    """Second moments of a linear layer: X X^T, X Y^T and the squared norm of each row of Y, in float64.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> gram = nt.Gram(20, 5)
    >>> for _ in range(10):
    ...     X = rng.standard_normal((20, 100))
    ...     gram = gram.add(X, X[:5])
    >>> gram.P
    1000
    >>> nt.solve(gram, epsilon=0.05).status
    <Status.SOLVED: 'solved'>

    Parameters
    ----------
    N, M : int
        Numbers of inputs and outputs.

    Raises
    ------
    ValueError
        N or M is not a positive integer.
    """

    def __init__(self, N: int, M: int):
        for name, value in (("N", N), ("M", M)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        self.N, self.M, self.P = int(N), int(M), 0
        self._XX = np.zeros((N, N), order="F")
        self.XY = np.zeros((N, M))
        self.YY = np.zeros(M)

    @property
    def XX(self) -> np.ndarray:
        """X X^T, symmetric, (N, N) float64."""
        return mirror(self._XX)

    def add(self, X: np.ndarray, Y: np.ndarray) -> Gram:
        """Add samples, X of N x P and Y of M x P, and return the Gram itself.

        Parameters
        ----------
        X : (N, P) array or Convolution
        Y : (M, P) array

        Raises
        ------
        TypeError
            X or Y is not of a floating dtype.
        ValueError
            Shapes that do not fit, or values that are not finite (nothing is added then).
        """
        if isinstance(X, Convolution):
            Y = X.flatten(Y)
        else:
            X = to_host(X, "X")
        Y = to_host(Y, "Y")
        if X.ndim != 2 or X.shape[0] != self.N:
            hint = "; samples seem to be in rows, pass X.T" if X.ndim == 2 and X.shape[1] == self.N else ""
            raise ValueError(f"X must be {self.N} x P; got {X.shape}{hint}")
        if Y.shape != (self.M, X.shape[1]):
            raise ValueError(f"Y must be {self.M} x {X.shape[1]}; got {Y.shape}")
        for name, a in (("X", X), ("Y", Y)):
            if a.dtype.kind != "f":
                raise TypeError(f"{name} must be of a floating dtype; got {a.dtype}")
            a = a.images if isinstance(a, Convolution) else a
            if a.size and not (np.isfinite(a.min()) and np.isfinite(a.max())):
                raise ValueError(f"{name} contains NaN or inf")
        return self._add(X, Y)

    def _add(self, X: np.ndarray, Y: np.ndarray) -> Gram:
        """As `add`, of samples that have been checked."""
        step = max(1, _CHUNK_BYTES // (8 * (self.N + self.M)))
        for p in range(0, X.shape[1], step):
            x, y = (a[:, p : p + step].astype(np.float64, order="K", copy=False) for a in (X, Y))
            syrk(x, self._XX)
            gemm(x, y.T, self.XY, 1.0, 1.0)
            self.YY += np.einsum("mp,mp->m", y, y)
        self.P += X.shape[1]
        return self

    def squared_errors(self, W: np.ndarray) -> np.ndarray:
        """``||w_m^T X - y_m||^2`` for every column of the N x M matrix W, (M,) float64."""
        W = W.astype(np.float64, copy=False)
        return np.maximum(((self.XX @ W - 2 * self.XY) * W).sum(0) + self.YY, 0)


class ReducedLinear(NamedTuple):
    """X (N x r), Y (M x r) with r = rank X, and ``floor`` (M,) such that for every W, row by row,

    ``||W^T X_full - Y_full||^2 = ||W^T X - Y||^2 + floor``.

    Derivation: with X X^T = Q E Q^T and A = E^(-1/2) Q^T X_full (orthonormal rows), X_full = Q E^(1/2) A, so X is
    Q E^(1/2), Y is Y_full A^T = (E^(-1/2) Q^T X Y^T)^T, and floor is what of Y lies outside the row space of X.
    """

    X: np.ndarray
    Y: np.ndarray
    floor: np.ndarray

    @classmethod
    def from_gram(cls, gram: Gram) -> ReducedLinear:
        """Square root of the moments; eigenvalues below 1e-13 of the largest count as zero."""
        E, Q = np.linalg.eigh(gram.XX)
        keep = E > max(E[-1], 0) * _RANK_TOL
        if not keep.any():
            keep[-1] = True  # X = 0: one zero sample stands for all
        root = np.sqrt(np.maximum(E[keep], 0))
        inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        X = np.ascontiguousarray(Q[:, keep] * root)
        Y = np.ascontiguousarray((gram.XY.T @ Q[:, keep]) * inverse)
        floor = np.maximum(gram.YY - np.einsum("mr,mr->m", Y, Y), 0)
        # below the rounding of the subtraction there is nothing to tell from zero
        floor[floor < 1e-14 * gram.YY] = 0
        return cls(X, Y, floor)

    def least_squares(self) -> np.ndarray:
        """Weights (N, M) of the smallest error."""
        return self._pseudo_inverse() @ self.Y.T

    def lift(self, multiplier: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """[D; mu] with D^T X_full - diag(mu) Y_full the best continuation of `multiplier` (M x r) outside rank X.

        For a ball of which ``floor`` is spent, leaving the radius `radii`, the multiplier is proportional to the
        residual, so mu = ||multiplier|| / radius brings in the part of Y that no weights reach.
        """
        multiplier = multiplier.astype(np.float64)
        norms = np.linalg.norm(multiplier, axis=1)
        if radii.size == 1:
            norms = np.repeat(np.linalg.norm(norms), norms.size)
        mu = np.divide(norms, radii, out=np.zeros_like(norms), where=(radii > 0) & (self.floor.sum() > 0))
        return np.vstack([self._pseudo_inverse() @ (multiplier + mu[:, None] * self.Y).T, mu[None]])

    def _pseudo_inverse(self) -> np.ndarray:
        squares = np.einsum("nr,nr->r", self.X, self.X)
        return np.divide(self.X, squares, out=np.zeros_like(self.X), where=squares > 0)

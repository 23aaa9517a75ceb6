"""The plain NumPy backend: each function is its formula. The other backends are held against it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack

from nettrim.backends.base import soft_threshold
from nettrim.operators import mirror, moments

__all__ = ["HostTransfers", "NumpyBackend", "soft_threshold"]


class HostTransfers:
    """See :class:`nettrim.backends.base.Transfers`: here everything happens at once."""

    def host_buffer(self, size, dtype):
        return np.empty(size, dtype)

    def reusable(self, slot): ...

    def send(self, slot, pairs):
        for device, host in pairs:
            np.copyto(device, host)

    def arrived(self, slot): ...

    def used(self, slot): ...

    def receive(self, slot, host, device):
        np.copyto(host, device)

    def drain(self): ...


class NumpyBackend:
    """See :class:`nettrim.backends.base.Backend` for what each function promises."""

    name = "numpy"
    on_host = True
    block_bytes = 24 << 20

    def asarray(self, a: np.ndarray, dtype: Any) -> np.ndarray:
        a = np.asarray(a, dtype=dtype)
        return a if a.flags.c_contiguous or a.flags.f_contiguous else np.ascontiguousarray(a)

    def share(self, a: Any) -> np.ndarray | None:
        return a if isinstance(a, np.ndarray) else None

    def rowwise(self, a: np.ndarray, dtype: Any) -> np.ndarray:
        # the passes of the CPU take any strides
        return self.asarray(a, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def copy(self, a: np.ndarray) -> np.ndarray:
        return a.copy()

    def to_host(self, a: np.ndarray) -> np.ndarray:
        return a

    def product(self, A, B, out=None, alpha=1.0, beta=0.0):
        result = A @ B
        if alpha != 1:
            result *= result.dtype.type(alpha)
        if out is None:
            return result
        if beta == 0:
            out[...] = result
        else:
            if beta != 1:
                out *= out.dtype.type(beta)
            out += result
        return out

    def cast(self, a, dtype):
        return a.astype(dtype, copy=False)

    def moments(self, X: np.ndarray) -> np.ndarray:
        return mirror(moments(X))

    def add_moments(self, total, X):
        total += mirror(moments(X))

    def transfers(self, slots):
        return HostTransfers()

    def memory(self):
        return None

    def out_of_memory(self, error):
        return False

    def inverse(self, A: np.ndarray) -> np.ndarray:
        factor, info = lapack.dpotrf(A, lower=1, overwrite_a=1)
        if info == 0:
            factor, info = lapack.dpotri(factor, lower=1, overwrite_c=1)
        if info != 0:
            raise np.linalg.LinAlgError(f"the {A.shape[0]} x {A.shape[0]} system is not positive definite")
        # LAPACK fills one triangle only
        return mirror(factor)

    def weight_sums(self, W, H, C):
        C = C.astype(np.float64, copy=False)
        objective = float((np.abs(W) * C).sum(dtype=np.float64))
        H = np.abs(H)
        return objective, np.divide(H, C, out=np.zeros(H.shape), where=np.broadcast_to(C > 0, H.shape)).max(0)

    def wait(self):
        """Nothing is under way."""

    def norm(self, a):
        return float(np.sqrt(np.einsum("ij,ij->", a, a, dtype=np.float64)))

    def ball_norms(self, T, target, mask):
        D = np.where(mask, T - target, 0)
        return np.einsum("mp,mp->m", D, D, dtype=np.float64)

    def shrink(self, squares, radii, dtype):
        M = squares.size
        if radii.size == 1:
            squares = squares.sum(keepdims=True)
        norms = np.sqrt(squares)
        scale = np.divide(radii, norms, out=np.ones_like(norms), where=norms > radii)
        return scale.astype(dtype).repeat(M // scale.size)

    def project_relax(self, T, target, mask, upper, scale, alpha):
        projection = np.where(mask, target + scale[:, None] * (T - target), np.minimum(T, upper))
        T -= T.dtype.type(alpha) * projection

    def soft_relax(self, T2, threshold, alpha):
        T2 -= T2.dtype.type(alpha) * soft_threshold(T2, threshold)

    def multiplier_sums(self, Q, target, mask, upper):
        Q = Q.astype(np.float64)
        inside = np.where(mask, Q, 0)
        # an infinite bound never binds: its multiplier is exactly zero, and 0 * inf must not become NaN
        outside = np.where(mask | (Q == 0), 0, np.where(np.isfinite(upper), upper, 0) * Q)
        return np.stack([(inside * target).sum(1), (inside**2).sum(1), outside.sum(1)], axis=1)

    def violation_sums(self, Z, target, mask, upper):
        Z = Z.astype(np.float64)
        distance = np.where(mask, Z - target, 0)
        excess = np.where(mask, 0, np.maximum(Z - upper, 0))
        return np.stack([(distance**2).sum(1), (excess**2).sum(1), excess.max(1, initial=0)], axis=1)

    def residual_sums(self, T, Z, target, mask, upper, scale):
        projection = np.where(mask, target + scale[:, None] * (T - target), np.minimum(T, upper))
        return np.stack([np.einsum("mp,mp->m", D, D, dtype=np.float64) for D in (projection - Z, Z, Z - T)], axis=1)

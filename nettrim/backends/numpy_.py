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

    def host_buffer(self, size: int, dtype: Any) -> np.ndarray:
        return np.empty(size, dtype)

    def reusable(self, slot: int) -> None: ...

    def send(self, slot: int, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for device, host in pairs:
            np.copyto(device, host)

    def arrived(self, slot: int) -> None: ...

    def used(self, slot: int) -> None: ...

    def receive(self, slot: int, host: np.ndarray, device: np.ndarray) -> None:
        np.copyto(host, device)

    def drain(self) -> None: ...


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

    def product(
        self, A: np.ndarray, B: np.ndarray, out: np.ndarray | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> np.ndarray:
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

    def cast(self, a: np.ndarray, dtype: Any) -> np.ndarray:
        return a.astype(dtype, copy=False)

    def moments(self, X: np.ndarray) -> np.ndarray:
        return mirror(moments(X))

    def add_moments(self, total: np.ndarray, X: np.ndarray) -> None:
        total += mirror(moments(X))

    def transfers(self, slots: int) -> HostTransfers:
        return HostTransfers()

    def memory(self) -> tuple[str, int] | None:
        return None

    def out_of_memory(self, error: BaseException) -> bool:
        return False

    def inverse(self, A: np.ndarray) -> np.ndarray:
        factor, info = lapack.dpotrf(A, lower=1, overwrite_a=1)
        if info == 0:
            factor, info = lapack.dpotri(factor, lower=1, overwrite_c=1)
        if info != 0:
            raise np.linalg.LinAlgError(f"the {A.shape[0]} x {A.shape[0]} system is not positive definite")
        # LAPACK fills one triangle only
        return mirror(factor)

    def weight_sums(self, W: np.ndarray, H: np.ndarray, C: np.ndarray) -> tuple[float, np.ndarray]:
        C = C.astype(np.float64, copy=False)
        objective = float((np.abs(W) * C).sum(dtype=np.float64))
        H = np.abs(H)
        return objective, np.divide(H, C, out=np.zeros(H.shape), where=np.broadcast_to(C > 0, H.shape)).max(0)

    def wait(self) -> None:
        """Nothing is under way."""

    def norm(self, a: np.ndarray) -> float:
        return float(np.sqrt(np.einsum("ij,ij->", a, a, dtype=np.float64)))

    def ball_norms(self, T: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
        D = np.where(mask, T - target, 0)
        return np.einsum("mp,mp->m", D, D, dtype=np.float64)

    def shrink(self, squares: np.ndarray, radii: np.ndarray, dtype: Any) -> np.ndarray:
        M = squares.size
        if radii.size == 1:
            squares = squares.sum(keepdims=True)
        norms = np.sqrt(squares)
        scale = np.divide(radii, norms, out=np.ones_like(norms), where=norms > radii)
        return scale.astype(dtype).repeat(M // scale.size)

    def project_relax(
        self, T: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray, scale: np.ndarray, alpha: float
    ) -> None:
        projection = np.where(mask, target + scale[:, None] * (T - target), np.minimum(T, upper))
        T -= T.dtype.type(alpha) * projection

    def soft_relax(self, T2: np.ndarray, threshold: np.ndarray, alpha: float) -> None:
        T2 -= T2.dtype.type(alpha) * soft_threshold(T2, threshold)

    def multiplier_sums(self, Q: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray) -> np.ndarray:
        Q = Q.astype(np.float64)
        inside = np.where(mask, Q, 0)
        # an infinite bound never binds: its multiplier is exactly zero, and 0 * inf must not become NaN
        outside = np.where(mask | (Q == 0), 0, np.where(np.isfinite(upper), upper, 0) * Q)
        return np.stack([(inside * target).sum(1), (inside**2).sum(1), outside.sum(1)], axis=1)

    def violation_sums(self, Z: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray) -> np.ndarray:
        Z = Z.astype(np.float64)
        distance = np.where(mask, Z - target, 0)
        excess = np.where(mask, 0, np.maximum(Z - upper, 0))
        return np.stack([(distance**2).sum(1), (excess**2).sum(1), excess.max(1, initial=0)], axis=1)

    def residual_sums(
        self, T: np.ndarray, Z: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        projection = np.where(mask, target + scale[:, None] * (T - target), np.minimum(T, upper))
        return np.stack([np.einsum("mp,mp->m", D, D, dtype=np.float64) for D in (projection - Z, Z, Z - T)], axis=1)

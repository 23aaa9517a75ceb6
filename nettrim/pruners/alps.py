"""ALPS: least squares under a count of non-zeros, by ADMM with a growing penalty, then conjugate gradients.

Meng, Behdin, Wang, Mazumder (2024), Algorithms 1 and 2. With H the second moments scaled to a unit diagonal and W0
the dense weights, it seeks min tr (W - W0)^T H (W - W0) over a pattern: W = (H + rho I)^-1 (H W0 - V + rho D), D the
projection of W + V / rho, V += rho (W - D). One eigendecomposition serves every rho, which grows fast while the support
moves.
"""

from __future__ import annotations

import numpy as np

from nettrim.sparsity import Sparsity

#: the paper's constants: ridge over the mean diagonal, first penalty, iterations between its updates, at most so many
_RIDGE, _RHO, _EVERY, _MOST = 0.01, 0.1, 3, 300
#: changes of the support, over the count, and the growth of the penalty above each
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
#: after so many iterations a change below this ends the search
_LATE, _STABLE = 30, 3e-4
#: steps of conjugate gradients on the support, and their relative tolerance
_STEPS, _TOL = 10, 1e-4


def alps(W: np.ndarray, moments: np.ndarray, pattern: Sparsity, products: np.ndarray | None = None) -> np.ndarray:
    """Least squares under a pattern, from the dense weights.

    Parameters
    ----------
    W : (N, M) array
    moments : (N, N) array
        X X^T of the inputs.
    pattern : Sparsity
    products : (N, M) array, optional
        X Y^T for other targets than the dense outputs, for which it is X X^T W.

    Returns
    -------
    (N, M) array
    """
    # imported with the package, it would be more than half of the time that takes
    from scipy.linalg import eigh

    count = pattern.count(W.shape)
    if count == 0:
        return np.zeros_like(W)
    H = moments.astype(np.float64)
    ridge = _RIDGE * (H.diagonal().mean() or 1.0)
    # the ridge pulls towards the dense weights
    target = (H @ W if products is None else products) + ridge * W
    H[np.diag_indices(len(H))] += ridge
    scale = np.sqrt(H.diagonal())
    H /= scale
    H /= scale[:, None]
    values, vectors = eigh(H, check_finite=False)
    # single precision from here on, as the authors' code
    H = H.astype(np.float32)
    dense = (W * scale[:, None]).astype(np.float32)
    right = (target / scale[:, None]).astype(np.float32)

    def inverse(rho: float) -> np.ndarray:
        return ((vectors / (values + rho)) @ vectors.T).astype(np.float32)

    def project(A: np.ndarray) -> np.ndarray:
        return np.where(pattern.mask(np.abs(A)), A, 0)

    start = project(dense)
    B: np.ndarray = dense
    D, V = start, np.zeros_like(dense)
    rho, moved, support = _RHO, False, start != 0
    solve = inverse(rho)
    for k in range(1, _MOST + 1):
        B = solve @ (right - V + np.float32(rho) * D)
        D = project(B + V / np.float32(rho))
        V = V + np.float32(rho) * (B - D)
        if k % _EVERY:
            continue
        change = np.count_nonzero(support != (D != 0)) / count
        support = D != 0
        growth = next((g for least, g in _GROWTH if change > least), None)
        if growth is None:
            if moved:
                break
            rho /= 5
        elif moved or change > _GROWTH[1][0]:
            moved = True
            rho *= growth
        else:
            # the penalty was so large that nothing moved: again, with a smaller one
            rho /= 5
            B, D, V = dense, start, np.zeros_like(dense)
        solve = inverse(rho)
        if k > _LATE and change < _STABLE:
            break
    return (_conjugate_gradients(H, right, project(B)) / scale[:, None]).astype(W.dtype)


def _conjugate_gradients(H: np.ndarray, right: np.ndarray, D: np.ndarray) -> np.ndarray:
    """A few steps of H D = right on the support of D, all columns at once (Algorithm 2)."""
    support = D != 0
    residual = (right - H @ D) * support
    direction, square = residual, (residual**2).sum(0)
    enough = _TOL**2 * (right**2).sum(0)
    for _ in range(_STEPS):
        if (square <= enough).all():
            break
        image = H @ direction
        curvature = (direction * image).sum(0)
        step = np.divide(square, curvature, out=np.zeros_like(square), where=curvature > 0)
        D = D + step * direction
        residual = residual - step * image * support
        before, square = square, (residual**2).sum(0)
        direction = residual + np.divide(square, before, out=np.zeros_like(square), where=before > 0) * direction
    return D

"""How far a pruned network can be from the dense one on a ball of inputs, from below and from above.

A pruned network f is epsilon-close to F if ``sup ||f(x) - F(x)||_2 <= epsilon`` over ``||x||_2 <= radius`` (Qian and
Klabjan 2021). For one linear layer the supremum is the radius times the largest singular value of what was pruned. For
more layers it is out of reach, and lies between what ascent finds and what the layers' norms allow. No sample of inputs
can show closeness: in many dimensions all of a million random inputs are far from the worst one.

Networks are lists of (N, M) weights, inputs by outputs, and of (M,) biases, with a ReLU after every layer but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Closeness", "closeness", "linear_distance", "lower_bound", "upper_bound"]

#: relative error of a singular value; upper bounds are raised by it, so that rounding cannot put them below the truth
ACCURACY = 1e-10
#: the shorter side up to which singular values come from LAPACK, of the second moments; beyond it from Lanczos steps
DENSE = 2048
#: a step that moves an input by less, relative to the radius, is no step; one that moves it by more is no longer
_LEAST, _MOST = 1e-12, 1e6


@dataclass(frozen=True)
class Closeness:
    """What is known of ``sup ||f(x) - F(x)||_2`` over a ball.

    Attributes
    ----------
    lower, upper : float
        The supremum lies between them.
    point : (N,) float64 array
        The input at which `lower` is attained.
    """

    lower: float
    upper: float
    point: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether the bounds agree to a relative 1e-9, as they do for one layer whose biases are left alone."""
        return self.upper - self.lower <= 10 * ACCURACY * self.upper


def closeness(
    weights: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    biases: Sequence[np.ndarray] | None = None,
    pruned_biases: Sequence[np.ndarray] | None = None,
    radius: float = 1.0,
    starts: int = 32,
    iterations: int = 200,
    seed: int = 0,
) -> Closeness:
    """Both bounds.

    >>> import numpy as np
    >>> from nettrim.bounds.closeness import closeness
    >>> W = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    >>> found = closeness([W], [np.where(W == 4, W, 0)])
    >>> round(found.lower, 6), found.exact, np.abs(found.point)
    (3.0, True, array([1., 0., 0.]))

    Parameters
    ----------
    weights, pruned : sequence of (N, M) arrays
        Layers of the dense and of the pruned network.
    biases, pruned_biases : sequence of (M,) arrays, optional
        Default none, and the same in the pruned network as in the dense one.
    radius : float
        Of the ball of inputs, around zero.
    starts, iterations, seed : int
        See `lower_bound`.

    Returns
    -------
    Closeness

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    lower, point = lower_bound(weights, pruned, biases, pruned_biases, radius, starts, iterations, seed)
    return Closeness(lower, upper_bound(weights, pruned, biases, pruned_biases, radius), point)


def linear_distance(W: np.ndarray, W_pruned: np.ndarray) -> float:
    """Largest ``||W^T x - W_pruned^T x||_2`` over the unit ball: the largest singular value of the difference.

    Parameters
    ----------
    W, W_pruned : (N, M) arrays

    Returns
    -------
    float
        To a relative 1e-10.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    dense = _matrix("W", W)
    return _largest_singular(dense - _matrix("W_pruned", W_pruned, dense.shape))[0]


def upper_bound(
    weights: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    biases: Sequence[np.ndarray] | None = None,
    pruned_biases: Sequence[np.ndarray] | None = None,
    radius: float = 1.0,
) -> float:
    """What the norms of the layers allow, layer by layer.

    Derivation: let h and g be the inputs of a layer in the dense and in the pruned network, V its pruned weights, c its
    pruned bias. Then
    ``(W^T h + b) - (V^T g + c) = (W - V)^T h + V^T (h - g) + (b - c) = (W - V)^T g + W^T (h - g) + (b - c)``, so that
    the distance e of the outputs obeys

        e_next <= ||b - c|| + min(||W - V|| ||h|| + ||V|| e,  ||W - V|| ||g|| + ||W|| e),

    which a ReLU cannot increase. Norms of the layers' outputs obey ``||h_next|| <= ||W|| ||h|| + ||max(b, 0)||``, since
    a ReLU moves ``W^T h + b`` and b no further apart, and g likewise.

    Parameters
    ----------
    weights, pruned : sequence of (N, M) arrays
        Layers of the dense and of the pruned network.
    biases, pruned_biases : sequence of (M,) arrays, optional
        Default none, and the same in the pruned network as in the dense one.
    radius : float
        Of the ball of inputs, around zero.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    radius = _positive("radius", radius)
    dense, sparse = _networks(weights, pruned, biases, pruned_biases)
    error, size, sparse_size = 0.0, radius, radius
    for (W, b), (V, c) in zip(dense, sparse, strict=True):
        norm, sparse_norm, change = (_largest_singular(A)[0] * (1 + ACCURACY) for A in (W, V, W - V))
        error = min(change * size + sparse_norm * error, change * sparse_size + norm * error)
        error += float(np.linalg.norm(b - c))
        size = norm * size + float(np.linalg.norm(np.maximum(b, 0)))
        sparse_size = sparse_norm * sparse_size + float(np.linalg.norm(np.maximum(c, 0)))
    return error


def lower_bound(
    weights: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    biases: Sequence[np.ndarray] | None = None,
    pruned_biases: Sequence[np.ndarray] | None = None,
    radius: float = 1.0,
    starts: int = 32,
    iterations: int = 200,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """An input at which the networks are far apart, by projected gradient ascent from many starts.

    The starts are random points of the sphere and, in both directions, the worst inputs of the networks without their
    ReLUs in which only one layer is pruned so far: the largest singular direction of
    ``W_1 .. W_(l-1) (W_l - V_l) V_(l+1) .. V_L``. For one layer that is the maximiser. A start moves only where its
    value grows; its step is doubled then, and divided by four otherwise.

    Parameters
    ----------
    weights, pruned : sequence of (N, M) arrays
        Layers of the dense and of the pruned network.
    biases, pruned_biases : sequence of (M,) arrays, optional
        Default none, and the same in the pruned network as in the dense one.
    radius : float
        Of the ball of inputs, around zero.
    starts : int
        Random points, beside the singular directions.
    iterations : int
        At most.
    seed : int
        Of the random points.

    Returns
    -------
    (float, (N,) float64 array)
        The distance of the outputs at the input found, and that input.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    radius = _positive("radius", radius)
    for name, value in (("starts", starts), ("iterations", iterations), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be a whole number; got {value!r}")
        if value < 0:
            raise ValueError(f"{name} must be at least 0; got {value}")
    dense, sparse = _networks(weights, pruned, biases, pruned_biases)
    directions = _worst_without_relus(dense, sparse)
    random = np.random.default_rng(seed).standard_normal((len(dense[0][0]), starts))
    X = np.hstack([directions, -directions, random])
    X *= radius / np.linalg.norm(X, axis=0)
    values, G = _distances(dense, sparse, X)
    steps = radius / _nonzero(np.linalg.norm(G, axis=0))
    for _ in range(iterations):
        moves = np.minimum(steps, _MOST * radius / _nonzero(np.linalg.norm(G, axis=0))) * G
        if (np.linalg.norm(moves, axis=0) <= _LEAST * radius).all():
            break
        Y = X + moves
        Y *= np.minimum(1, radius / _nonzero(np.linalg.norm(Y, axis=0)))
        reached, H = _distances(dense, sparse, Y)
        better = reached > values
        X, G, values = np.where(better, Y, X), np.where(better, H, G), np.where(better, reached, values)
        steps = np.where(better, 2 * steps, steps / 4)
    point = X[:, int(np.argmax(values))]
    # of this one input alone: a product with many columns may round otherwise
    outputs = (_forward(network, point[:, None])[0] for network in (dense, sparse))
    return float(np.linalg.norm(np.subtract(*outputs))), point


#: layers as (weights, bias)
_Network = list[tuple[np.ndarray, np.ndarray]]


def _distances(dense: _Network, sparse: _Network, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """||F(x) - f(x)||_2 of every column of X, and the gradients of half their squares."""
    full, active = _forward(dense, X)
    part, sparse_active = _forward(sparse, X)
    D = full - part
    return np.linalg.norm(D, axis=0), _backward(dense, active, D) - _backward(sparse, sparse_active, D)


def _forward(network: _Network, X: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs, and where the ReLUs of each hidden layer are active."""
    active = []
    for k, (W, b) in enumerate(network):
        if k:
            active.append(X > 0)
            X = np.maximum(X, 0)
        X = W.T @ X + b[:, None]
    return X, active


def _backward(network: _Network, active: list[np.ndarray], D: np.ndarray) -> np.ndarray:
    """The transposed Jacobians of the network, times D."""
    G = network[-1][0] @ D
    for (W, _), mask in zip(network[-2::-1], active[::-1], strict=True):
        G = W @ np.where(mask, G, 0)
    return G


def _worst_without_relus(dense: _Network, sparse: _Network) -> np.ndarray:
    """A column for each layer: the unit input that its pruning harms most in the networks without ReLUs."""
    after = [np.eye(sparse[-1][0].shape[1])]
    for V, _ in sparse[:0:-1]:
        after.insert(0, V @ after[0])
    columns, before = [], np.eye(len(dense[0][0]))
    for (W, _), (V, _), rest in zip(dense, sparse, after, strict=True):
        columns.append(_largest_singular(before @ ((W - V) @ rest))[1])
        before = before @ W
    return np.stack(columns, axis=1)


def _largest_singular(A: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest singular value and its left vector; zero and a unit vector for a zero matrix.

    The second moments' largest eigenvalue has the accuracy of its square root; only small ones would suffer.
    """
    # imported with the package, SciPy would be most of the time that takes
    from scipy.linalg import eigh
    from scipy.sparse.linalg import svds

    scale = float(np.abs(A).max())
    if scale == 0:
        return 0.0, np.eye(len(A), 1).ravel()
    A = A / scale
    if min(A.shape) > DENSE:
        # SciPy squares its tolerance, which is that of the singular values' squares
        left, values, _ = svds(A, k=1, tol=ACCURACY**0.5 / 10, v0=np.ones(min(A.shape)))
        return scale * float(values[0]), left[:, 0]
    tall = A.shape[0] > A.shape[1]
    moments = A.T @ A if tall else A @ A.T
    last = len(moments) - 1
    values, vectors = eigh(moments, subset_by_index=(last, last), check_finite=False)
    value = float(np.sqrt(values[0]))
    return scale * value, A @ vectors[:, 0] / value if tall else vectors[:, 0]


def _nonzero(norms: np.ndarray) -> np.ndarray:
    return np.where(norms > 0, norms, 1)


def _networks(
    weights: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    biases: Sequence[np.ndarray] | None,
    pruned_biases: Sequence[np.ndarray] | None,
) -> tuple[_Network, _Network]:
    """Both networks in float64, or an error that names what is wrong."""
    for name, layers in (("weights", weights), ("pruned", pruned)):
        if isinstance(layers, np.ndarray) or not isinstance(layers, Sequence):
            raise TypeError(f"{name} must be a list of matrices; got {type(layers).__name__}")
    if not len(weights):
        raise ValueError("weights must have at least one layer")
    if len(pruned) != len(weights):
        raise ValueError(f"pruned must have a matrix for each of the {len(weights)} layers; got {len(pruned)}")
    dense, inputs = [], None
    for k, W in enumerate(weights):
        found = _matrix(f"weights[{k}]", W)
        if inputs is not None and len(found) != inputs:
            raise ValueError(
                f"weights[{k}] must have {inputs} rows, as the layer before has outputs; got {found.shape}"
            )
        dense.append(found)
        inputs = found.shape[1]
    sparse = [_matrix(f"pruned[{k}]", V, W.shape) for k, (V, W) in enumerate(zip(pruned, dense, strict=True))]
    b = [np.zeros(W.shape[1]) for W in dense] if biases is None else _vectors("biases", biases, dense)
    c = b if pruned_biases is None else _vectors("pruned_biases", pruned_biases, dense)
    return list(zip(dense, b, strict=True)), list(zip(sparse, c, strict=True))


def _vectors(name: str, values: Sequence[np.ndarray], weights: list[np.ndarray]) -> list[np.ndarray]:
    if len(values) != len(weights):
        raise ValueError(f"{name} must have a vector for each of the {len(weights)} layers; got {len(values)}")
    return [_real(f"{name}[{k}]", b, (W.shape[1],)) for k, (b, W) in enumerate(zip(values, weights, strict=True))]


def _matrix(name: str, value: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    found = _real(name, value, shape)
    if found.ndim != 2 or found.size == 0:
        raise ValueError(f"{name} must be a matrix with entries; got shape {found.shape}")
    return found


def _real(name: str, value: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise TypeError(f"{name} must be an array of a floating dtype; got {getattr(value, 'dtype', type(value))}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must be of shape {shape}; got {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} contains NaN or inf")
    return value.astype(np.float64)


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}")
    return float(value)

"""Newton's method for the loss of relu_loss.py on given supports, for a block of neurons.

Derivation
----------
On a fixed support S of a neuron the loss is convex and piecewise quadratic:

    f(w) = || (X_S^T w - y)_Omega ||^2 + || ((X_S^T w - v)_+)_notOmega ||^2.

Newton's step solves H d = -X_S r with H = X_A X_A^T on S, where A is Omega and the samples over their bound, and r are
the residuals there; a step is halved until f falls. Between steps H changes by the few samples that crossed their
bound only. A step after which none does has ended at the exact minimum. Neurons of few inputs are taken one by one
(kernels/relu_newton.py), with sums over their own rows of X; those of many take their steps together, each product one
of the whole layer.

The inequalities W^T X <= V are asked for in the limit by the method of multipliers: their excess is shifted by what it
was before, f(w; u) = ... + sigma || ((X_S^T w - v + u)_+)_notOmega ||^2, u <- (X_S^T w - v + u)_+, and minimised again.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numpy as np

from nettrim.relu_loss import ReluLoss

__all__ = ["STEPS", "TOL", "Neurons", "blocks"]

#: steps, the relative decrease of the loss below which they end, and halvings of a step
STEPS, TOL, _HALVINGS = 20, 1e-7, 20
#: ridge over the mean diagonal of a system: inputs of a support may be linearly dependent
_RIDGE = 1e-10
#: first weight of the inequalities in the method of multipliers, its growth where the excess falls by less than half,
#: its steps, and the excess over the rms output that is none
_WEIGHT, _GROWTH, _MULTIPLIER_STEPS, _EXCESS = 10.0, 3.0, 30, 1e-5
#: neurons are taken one by one up to this part of the inputs: above it a product of matrices is as quick
_NARROW = 0.2
#: bytes of a block's systems and outputs
BLOCK_BYTES = 256 << 20


def blocks(loss: ReluLoss, sizes: np.ndarray, arrays: int) -> list[np.ndarray]:
    """The neurons, in order, in blocks that bound the memory.

    Parameters
    ----------
    loss : ReluLoss
    sizes : (M,) array
        Rows of each neuron's system.
    arrays : int
        Arrays of the size of a block's outputs that are needed.
    """
    _, M, P = loss.shape
    cost = 8.0 * sizes.astype(float) ** 2 + (loss.dtype.itemsize * arrays + 1) * P
    return np.split(np.arange(M), np.flatnonzero(np.diff(np.cumsum(cost) // BLOCK_BYTES)) + 1)


class Neurons:
    """A block of neurons on its way to the minimum.

    Parameters
    ----------
    loss : ReluLoss
    pool : Executor
    neurons : (B,) int array
    W : (N, M) array
        Of the whole layer; the columns of these neurons change.
    free : (N,) bool array, optional
        Inputs that belong to every support, even at a weight of zero.
    """

    def __init__(
        self, loss: ReluLoss, pool: Executor, neurons: np.ndarray, W: np.ndarray, free: np.ndarray | None = None
    ):
        self.loss, self.pool, self.neurons, self.W = loss, pool, neurons, W
        used = W[:, neurons] != 0 if free is None else (W[:, neurons] != 0) | free[:, None]
        self.supports = [np.flatnonzero(column) for column in used.T]
        #: X_A X_A^T of each neuron: on Omega, and on the samples over their bound
        self.systems: list[list[np.ndarray]] = [[] for _ in neurons]
        self.Z = np.empty((len(neurons), loss.shape[2]), loss.dtype)
        self.refresh(np.arange(len(neurons)))
        self.over = np.zeros(self.Z.shape, bool)

    def restart(self, i: int, free: np.ndarray) -> None:
        """Begin again with the weights that the neuron at this place has now."""
        self.supports[i] = np.flatnonzero((self.W[:, self.neurons[i]] != 0) | free)
        self.systems[i] = []
        self.over[i] = False

    def everyone(self) -> np.ndarray:
        """Those that have a support, by their place in the block."""
        return np.flatnonzero([s.size > 0 for s in self.supports])

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Y, Omega and V of the neuron at this place."""
        return self.loss.row(self.neurons[i])

    def derivatives(
        self, todo: np.ndarray, shift: np.ndarray | None = None, weight: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of some neurons of the block, and half their derivatives by all N weights, (N, len(todo))."""
        R = self.Z[todo]
        losses = self.loss.residuals(self.pool, R, self.neurons[todo], None if shift is None else shift[todo], weight)
        return losses, self.loss.adjoint(self.pool, R)

    def minimise(
        self,
        todo: np.ndarray,
        shift: np.ndarray | None = None,
        weight: float = 1.0,
        tol: float = TOL,
        steps: int = STEPS,
    ) -> None:
        """At most so many of Newton's steps for neurons of the block, given by their places in it.

        The steps of a neuron end when one gains less than `tol`, of its loss.
        """
        narrow = np.array([self.narrow(i) for i in todo], bool)
        list(self.pool.map(partial(self._minimise_one, shift=shift, weight=weight, tol=tol, steps=steps), todo[narrow]))
        todo = todo[~narrow]
        for _ in range(steps):
            if not todo.size:
                return
            losses, gradient = self.derivatives(todo, shift, weight)
            step = np.zeros((self.W.shape[0], todo.size), self.loss.dtype)
            list(self.pool.map(partial(self._step, shift=shift, weight=weight), todo, gradient.T, step.T))
            moved = self.loss.outputs(self.pool, step)
            move = partial(self._move, shift=shift, weight=weight, tol=tol)
            ended = list(self.pool.map(move, todo, step.T, moved, losses))
            todo = todo[~np.array(ended)]

    def minimise_within(self) -> None:
        """Under the inequalities, kept to within rounding or what the weights exceeded them by at first."""
        from nettrim.kernels import relu

        shift, weight, todo = np.zeros(self.Z.shape, self.loss.dtype), _WEIGHT, self.everyone()
        level = _EXCESS * np.sqrt((self.loss.target[self.neurons].astype(np.float64) ** 2).mean(1))
        allowed = np.maximum(level, [self._excess(i) for i in range(len(self.neurons))])
        before = np.full(len(self.neurons), np.inf)
        for _ in range(_MULTIPLIER_STEPS):
            self.minimise(todo, shift, weight)
            excess = np.zeros(len(self.neurons))
            for i in todo:
                _, inside, bound = self.row(i)
                excess[i] = relu.raise_shift(self.Z[i], inside, bound, shift[i])
            todo = todo[excess[todo] > allowed[todo]]
            if not todo.size:
                break
            if (excess[todo] > before[todo] / 2).any():
                # the shifts are multipliers over the weight
                shift /= self.loss.dtype.type(_GROWTH)
                weight *= _GROWTH
            before = excess

    def _excess(self, i: int) -> float:
        _, inside, bound = self.row(i)
        return float(np.max(self.Z[i] - bound, where=~inside, initial=0.0))

    def narrow(self, i: int) -> bool:
        """Whether the neuron at this place is taken by itself."""
        return self.loss.operator.rows is not None and self.supports[i].size <= _NARROW * self.loss.shape[0]

    def refresh(self, todo: np.ndarray) -> None:
        """Outputs of some neurons' weights, for their own rows where these are few."""
        from nettrim.kernels import relu_newton

        narrow = np.array([self.narrow(i) for i in todo], bool)

        def one(i: int) -> None:
            s = self.supports[i]
            relu_newton.outputs(self.loss.operator.rows, s, self.W[s, self.neurons[i]].astype(np.float64), self.Z[i])

        list(self.pool.map(one, todo[narrow]))
        wide = todo[~narrow]
        if wide.size:
            self.Z[wide] = self.loss.outputs(self.pool, self.W[:, self.neurons[wide]])

    def _minimise_one(self, i: int, shift: np.ndarray | None, weight: float, tol: float, steps: int) -> None:
        """All steps of one neuron."""
        from nettrim.kernels import relu_newton

        s, m = self.supports[i], self.neurons[i]
        if not s.size:
            return
        y, inside, bound = self.row(i)
        self._begin(i, inside)
        w = self.W[s, m].astype(np.float64)
        relu_newton.minimise(
            *(self.loss.operator.rows, s, w, self.Z[i], y, inside, bound),
            *(self.loss.no_shift[0] if shift is None else shift[i], weight, *self.systems[i], self.over[i]),
            *(tol, _RIDGE, steps, _HALVINGS),
        )
        self.W[s, m] = w

    def _begin(self, i: int, inside: np.ndarray) -> None:
        """The system on Omega, where there is none yet."""
        s = self.supports[i]
        if not self.systems[i]:
            self.systems[i] = [np.empty((s.size, s.size)), np.zeros((s.size, s.size))]
            self.loss.operator.gather_products(np.flatnonzero(inside), s, 0, self.systems[i][0])

    def _step(self, i: int, gradient: np.ndarray, out: np.ndarray, shift: np.ndarray | None, weight: float) -> None:
        """Newton's step of one neuron."""
        from scipy.linalg import cho_factor, cho_solve

        from nettrim.kernels import relu

        s, operator = self.supports[i], self.loss.operator
        if not s.size:
            return
        _, inside, bound = self.row(i)
        u = self.loss.no_shift[0] if shift is None else shift[i]

        def products(samples: np.ndarray) -> np.ndarray:
            G = np.empty((s.size, s.size))
            operator.gather_products(samples, s, 0, G)
            return G

        self._begin(i, inside)
        up, down = relu.crossings(self.Z[i], inside, bound, u, self.over[i])
        if up.size:
            self.systems[i][1] += products(up)
        if down.size:
            self.systems[i][1] -= products(down)
        H = self.systems[i][0] + weight * self.systems[i][1]
        H[np.diag_indices(s.size)] += _RIDGE * H.diagonal().mean() or 1.0
        right = gradient[s].astype(np.float64)
        try:
            out[s] = -cho_solve(cho_factor(H, overwrite_a=True, check_finite=False), right, check_finite=False)
        except np.linalg.LinAlgError:
            # rounding has made it indefinite: a shorter step along the gradient still falls
            out[s] = -right / np.abs(H).sum(1).max()

    def _move(
        self,
        i: int,
        step: np.ndarray,
        moved: np.ndarray,
        before: float,
        shift: np.ndarray | None,
        weight: float,
        tol: float,
    ) -> bool:
        """Take the step as far as the loss falls; whether that was the last."""
        from nettrim.kernels import relu

        y, inside, bound = self.row(i)
        u = self.loss.no_shift[0] if shift is None else shift[i]
        t, after = relu.descend(self.Z[i], moved, y, inside, bound, u, weight, before, _HALVINGS)
        if t > 0:
            self.W[:, self.neurons[i]] += self.W.dtype.type(t) * step
        return t == 0 or before - after <= tol * before

"""Local search over supports: inputs of a neuron are exchanged, and counts moved between neurons, while the loss falls.

Derivation
----------
Near the present weights w of a neuron the loss of relu_loss.py is a quadratic with gradient X r and Hessian X_A X_A^T;
A is Omega and the samples over their bound. On this model, what a neuron loses without an input and gains by
another in its place is known in closed form, for all pairs at once (kernels/swaps.py). The search makes the best
exchange, and again, until none gains; then Newton's method finds the true minimum on the new support, and what has not
become better is undone. Inputs that are not in a support are tried if their slope promises most, g_t^2 / ||x_t||^2.

Counts move between neurons by the same prices: after the exchanges of a round, inputs that cost little leave their
neurons for those that gain much in others. The sum of all is then judged, not each neuron.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.relu_loss import ReluLoss
from nettrim.relu_newton import STEPS, TOL, Neurons, blocks

__all__ = ["improve", "settle"]

#: inputs outside the support that a round tries for each neuron
TRIED = 64
#: an exchange must gain this part of the neuron's loss, and a round this part of the layer's, or it is the last
_LEAST, _ROUND = 1e-4, 5e-3
#: a move between neurons must gain so many times what it costs, and takes at most this part of a neuron's inputs
_MARGIN, _MOVED = 1.5, 0.1
#: a neuron whose samples in Omega are fewer than so many times its inputs, which can fit them all, gives none away
_OWN = 1
#: neurons with more than this part of the inputs are exchanged again after moves
_MANY = 0.25
#: ridge over the mean diagonal of a model
_RIDGE = 1e-6
#: to settle: samples of a Hessian for each weight, ridge, least gain of a step, Hessians, steps of each, halvings
_SETTLE = (30, _RIDGE, 1e-3, 4, 3, 4)


@dataclass
class _Model:
    """The quadratic of one neuron over `inputs`, after its exchanges; `basis` and `others` are places among them.

    Of G, the rows and columns that are `known` are there, and the diagonal. An input of the basis has a cost, what the
    loss rises by without it, and one of the others a gain.
    """

    inputs: np.ndarray
    G: np.ndarray
    known: np.ndarray
    b: np.ndarray
    basis: np.ndarray
    others: np.ndarray
    #: the minimum on the basis, until inputs move
    weights: np.ndarray | None = None
    costs: np.ndarray | None = None
    gains: np.ndarray | None = None
    made: int = 0
    #: basis, others, weights and exchanges before any moved
    unmoved: tuple[np.ndarray, np.ndarray, np.ndarray | None, int] | None = None

    def give(self, place: int) -> None:
        """Out of the basis with the input at this place."""
        self._move(self.basis[self.basis != place], np.append(self.others, place))

    def take(self, place: int) -> None:
        """Into the basis with it."""
        self._move(np.append(self.basis, place), self.others[self.others != place])

    def _move(self, basis: np.ndarray, others: np.ndarray) -> None:
        # exchanges write into the arrays
        self.unmoved = self.unmoved or (self.basis.copy(), self.others.copy(), self.weights, self.made)
        self.basis, self.others, self.weights = basis, others, None

    def back(self) -> None:
        """To the basis before any input moved."""
        if self.unmoved is not None:
            self.basis, self.others, self.weights, self.made = self.unmoved


def improve(
    loss: ReluLoss,
    W: np.ndarray,
    *,
    free: np.ndarray,
    groups: np.ndarray,
    movable: bool,
    rounds: int,
    tol: float = TOL,
    steps: int = STEPS,
    tried: int = TRIED,
    time_limit: float = math.inf,
    progress: Callable[[dict[str, Any]], Any] | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Better supports with the same counts.

    Parameters
    ----------
    loss : ReluLoss
    W : (N, M) array
        Where the search starts.
    free : (N,) bool array
        Inputs that stay in every support.
    groups : (N,) int array
        Only inputs of one group are exchanged for each other.
    movable : bool
        Whether counts may move between neurons.
    rounds : int
        At most.
    tol : float
        Newton's method ends, in every round, when a step gains less than this part of a neuron's loss,
    steps : int
        or after so many.
    tried : int
        Inputs outside its support that a round tries for each neuron.
    time_limit : float
        Seconds after which no further round begins.
    progress : callable, optional
        Called with the row of each round.

    Returns
    -------
    (N, M) array
    list of dict
        A row a round: samples, loss over them after it, exchanges, moves, neurons that were put back, seconds.
    """
    # a column a neuron, which is read and written on its own
    began, W = time.perf_counter(), W.copy(order="F")
    norms = _squared_norms(loss)
    rows: list[dict[str, Any]] = []
    sizes = np.count_nonzero(W, axis=0) + tried
    parts = blocks(loss, sizes, 5)
    moving = {k: movable for k in range(len(parts))}
    with loss.workers() as pool:
        for number in range(1, rounds + 1):
            if rows and time.perf_counter() - began > time_limit:
                break
            before, after = 0.0, 0.0
            counts = {"exchanges": 0, "moves": 0, "undone": 0}
            for k, neurons in enumerate(parts):
                state = _Round(loss, pool, neurons, W, free, groups, norms, tol, steps, tried)
                one = state.run(moving[k])
                before, after = before + state.before, after + state.after
                moving[k] = moving[k] and one["moves"] > 0
                counts = {name: counts[name] + one[name] for name in counts}
            about = {"round": number, "samples": loss.shape[2], "loss": after}
            rows.append(about | counts | {"seconds": time.perf_counter() - began})
            if progress is not None:
                progress(rows[-1])
            if before - after <= _ROUND * before:
                break
    return np.ascontiguousarray(W), rows


def settle(loss: ReluLoss, W: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Weights near the minimum on their supports and the `free` inputs, from those of a part of the samples."""
    from nettrim.kernels import quadratic

    new = W.copy(order="F")
    if loss.operator.rows is None:
        with loss.workers() as pool:
            for neurons in blocks(loss, np.count_nonzero(W, axis=0), 3):
                block = Neurons(loss, pool, neurons, new, free)
                block.minimise(block.everyone(), tol=_SETTLE[2])
        return np.ascontiguousarray(new)

    def one(m: int) -> None:
        support = np.flatnonzero((W[:, m] != 0) | free)
        weights = W[support, m].astype(np.float64)
        quadratic.settle(loss.operator.rows, support, weights, *loss.row(m), *_SETTLE)
        new[support, m] = weights

    with loss.workers() as pool:
        list(pool.map(one, range(W.shape[1])))
    return np.ascontiguousarray(new)


def _squared_norms(loss: ReluLoss) -> np.ndarray:
    """||x_n||^2 of every input."""
    N, _, P = loss.shape
    total, step = np.zeros(N), max(1, (16 << 20) // (8 * N))
    for p in range(0, P, step):
        chunk = loss.operator.columns(slice(p, min(p + step, P)))
        total += np.einsum("np,np->n", chunk, chunk, dtype=np.float64)
    return total


class _Round:
    """One round of a block of neurons."""

    def __init__(
        self,
        loss: ReluLoss,
        pool: Executor,
        neurons: np.ndarray,
        W: np.ndarray,
        free: np.ndarray,
        groups: np.ndarray,
        norms: np.ndarray,
        tol: float,
        steps: int,
        tried: int,
    ):
        self.loss, self.pool, self.W = loss, pool, W
        self.free, self.groups, self.norms, self.tried = free, groups, norms, tried
        self.tol, self.steps = tol, steps
        self.block = Neurons(loss, pool, neurons, W, free)
        self.own = loss.mask[neurons].sum(1)
        self.before = self.after = 0.0

    def run(self, move: bool) -> dict[str, int]:
        """Exchange, move if asked to, minimise, and undo what did not help."""
        block = self.block
        everyone = np.arange(len(block.neurons))
        losses, gradient = block.derivatives(everyone)
        self.before = float(losses.sum())
        least = _LEAST * losses
        models = list(self.pool.map(self._model, everyone, np.ascontiguousarray(gradient.T, np.float64), least))
        moves = self._move(models) if move else 0
        if moves:
            list(self.pool.map(self._again, everyone, models, least))
        old_W, old_Z = self.W[:, block.neurons].copy(), block.Z.copy()
        over = block.over.copy() if moves else block.over
        new = self._entered(models)
        if moves and new.sum() >= losses.sum():
            # all that gained by giving and taking at once is less than it seemed: the exchanges alone
            moves, block.over[...] = 0, over
            for q in models:
                q.back()
            new = self._entered(models)
        made = np.array([q.made for q in models])
        # neurons that gave inputs away are worse, and must be
        undone = everyone[new > losses] if moves == 0 else np.empty(0, int)
        del models
        if undone.size:
            self.W[:, block.neurons[undone]], block.Z[undone] = old_W[:, undone], old_Z[undone]
            for i in undone.tolist():
                block.restart(i, self.free)
            block.minimise(undone[made[undone] > 0], tol=self.tol, steps=self.steps)
            new = self._losses()
        self.after = float(new.sum())
        return {"exchanges": int(made.sum()), "moves": moves, "undone": int(undone.size)}

    def _entered(self, models: list[_Model]) -> np.ndarray:
        """Losses at the minima on the supports of the models."""
        block = self.block
        everyone = np.arange(len(block.neurons))
        list(self.pool.map(self._enter, everyone, models))
        block.refresh(everyone)
        block.minimise(block.everyone(), tol=self.tol, steps=self.steps)
        return self._losses()

    def _losses(self) -> np.ndarray:
        return self.loss.residuals(self.pool, self.block.Z.copy(), self.block.neurons)

    def _model(self, i: int, slope: np.ndarray, least: float) -> _Model:
        """The quadratic of the neuron at this place, over its support and the inputs that promise most, exchanged."""
        from nettrim.kernels import quadratic

        block, support = self.block, self.block.supports[i]
        weights = self.W[support, block.neurons[i]].astype(np.float64)
        _, inside, bound = block.row(i)
        X = self.loss.operator.rows
        if X is not None:
            *parts, made = quadratic.search(
                *(X, block.Z[i], inside, bound, block.over[i], slope),
                *(self.norms, self.free, self.groups, support, weights, self.tried, least, _RIDGE),
            )
            q = _Model(*parts)
            q.made = made
            q.costs[self.free[q.inputs[q.basis]]] = np.inf
            return q
        # the same for rows that are made when they are needed
        used = self.free.copy()
        used[support] = True
        others = quadratic.promising(slope, self.norms, used, min(self.tried, slope.size))
        inputs = np.concatenate([support, others])
        curved = quadratic.curved(block.Z[i], inside, bound, block.over[i])
        G, known, rows = self.loss.operator.gram_of(curved, inputs, support.size)
        size = G.diagonal().mean() if inputs.size else 0.0
        # a neuron that nothing reaches has no curvature at all
        G[np.diag_indices(inputs.size)] += _RIDGE * size or 1.0
        b = weights @ G[: support.size] - slope[inputs]
        basis, others = np.arange(support.size), np.arange(support.size, inputs.size)
        q = _Model(inputs, G, known, b, basis, others)
        self._exchange(q, least, rows)
        return q

    def _exchange(self, q: _Model, least: float, rows: np.ndarray) -> None:
        """Exchanges on a model, whose further rows are made of `rows`."""
        from nettrim.kernels import swaps

        made, q.weights, q.costs, q.gains = swaps.exchange(
            *(q.G, q.b, q.basis, q.others, self.groups[q.inputs], self.free[q.inputs], least, 2 * q.basis.size),
            *(q.known, rows),
        )
        q.made += made
        q.costs[self.free[q.inputs[q.basis]]] = np.inf

    def _again(self, i: int, q: _Model, least: float) -> None:
        """Exchanges once more, if inputs have moved and there are many: together moves cost more than each alone."""
        if q.unmoved is not None and q.basis.size > _MANY * self.W.shape[0]:
            self._exchange(q, least, self.loss.operator.block_of(self._counted(i), q.inputs))

    def _counted(self, i: int) -> np.ndarray:
        """Samples that the neuron's model counts."""
        _, inside, _ = self.block.row(i)
        return np.flatnonzero(inside | self.block.over[i])

    def _enter(self, i: int, q: _Model) -> None:
        """Give the neuron the model's support, its weights there, and its products."""
        from nettrim.kernels import quadratic

        block, m = self.block, self.block.neurons[i]
        new = q.basis[~q.known[q.basis]]
        if new.size > 1:
            # of inputs that moved here, the products with each other
            G = np.empty((new.size, new.size))
            self.loss.operator.gather_products(self._counted(i), q.inputs[new], 0, G)
            G[np.diag_indices(new.size)] = q.G[new, new]
            q.G[np.ix_(new, new)] = G
        given = q.weights is not None and np.isfinite(q.weights).all()
        support, G, weights = quadratic.enter(q.inputs, q.G, q.b, q.basis, q.weights if given else np.empty(0))
        block.supports[i] = support
        block.systems[i] = [G, np.zeros_like(G)]
        self.W[:, m] = 0
        self.W[support, m] = weights

    def _move(self, models: list[_Model]) -> int:
        """Take the inputs that cost least out of their neurons for those that gain most in others; how many."""
        leave, enter = _Changes(), _Changes()
        for i, q in enumerate(models):
            most = max(1, int(_MOVED * q.basis.size))
            # on few samples of its own a neuron fits them with fewer inputs than it needs
            few = 0 < self.own[i] < _OWN * q.basis.size
            leave.add(i, q.basis, np.full(q.costs.size, np.inf) if few else q.costs, most)
            enter.add(i, q.others, -q.gains, most)
        (cost, j, leaving), (gain, k, entering) = leave.sorted(), enter.sorted()
        count = min(cost.size, gain.size)
        chosen = int(np.count_nonzero(-gain[:count] > np.maximum(_MARGIN * cost[:count], 0.0)))
        for n in range(chosen):
            models[j[n]].give(leaving[n])
            models[k[n]].take(entering[n])
        return chosen


class _Changes:
    """Places of models with what an input there costs, the cheapest first."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, model: int, places: np.ndarray, costs: np.ndarray, most: int) -> None:
        """The cheapest `most` of these places of a model."""
        if costs.size > most:
            best = np.argpartition(costs, most - 1)[:most]
            places, costs = places[best], costs[best]
        self.parts.append((costs, np.full(costs.size, model), places))

    def sorted(self) -> list[np.ndarray]:
        """Costs, models and places."""
        costs, models, places = (np.concatenate(one) for one in zip(*self.parts, strict=True))
        order = np.argsort(costs, kind="stable")
        return [costs[order], models[order], places[order]]

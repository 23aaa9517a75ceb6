"""The demonstration: prune the hidden layers of a trained digits classifier, with certificates and a picture.

The network (64-300-100-10, ReLU) is package data, the images are scikit-learn's bundled handwritten digits. Each
hidden layer is pruned by itself, between the inputs and outputs that it has in the ORIGINAL network (the parallel
scheme); the last layer, which makes the ten logits, stays dense. Four disjoint sets of images are used: one that
trained the network, one (calibration) that the layer programs see, one (held-out) on which their error is measured
again, and one (test) for the accuracy.
"""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.demo_picture import draw
from nettrim.extras import install
from nettrim.interrupt import Interrupt
from nettrim.problem import Problem
from nettrim.report import write_atomically
from nettrim.settings import Settings
from nettrim.solution import Solution, Status
from nettrim.solver import Solver

__all__ = ["DemoReport", "LayerReport", "Network", "load_network", "run_demo"]

SPLIT_NAMES = ("train", "calibration", "heldout", "test")
#: radii of the trade-off curve, relative to ||Y||_F
CURVE = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)

Progress = Callable[[str, dict[str, Any] | None], None]


@dataclass(frozen=True)
class Network:
    """A trained network: `weights` are inputs x outputs, `split` holds indices into scikit-learn's digits."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    split: dict[str, np.ndarray]
    test_accuracy: float
    provenance: str


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes
    ----------
    name : str
    inputs, neurons : int
        Shape of the weights, the bias row apart.
    weights, weights_kept, biases, biases_kept : int
        Non-zero entries before and after.
    error_calibration, error_heldout : float
        ``||relu(W^T X) - Y||_F / ||Y||_F`` on either set, Y being the original layer's outputs after the ReLU.
    gap, violation : float
        Of the certificate: relative duality gap and relative violation of the constraints.
    status : str
    iterations : int
    seconds : float
        Wall-clock time of the solve, the compilation of the kernels left out.
    """

    name: str
    inputs: int
    neurons: int
    weights: int
    weights_kept: int
    biases: int
    biases_kept: int
    error_calibration: float
    error_heldout: float
    gap: float
    violation: float
    status: str
    iterations: int
    seconds: float


@dataclass(frozen=True)
class DemoReport:
    """Result of the demonstration.

    Attributes
    ----------
    epsilon : float
        Relative error allowed in each hidden layer.
    layers : tuple of LayerReport
    logit_weights : int
        Weights of the last layer, which stays dense.
    images : dict of str to int
        Number of images in each set.
    samples : dict of str to int
        Number of columns of X (images and their one-pixel shifts) for "calibration" and "heldout".
    accuracy_dense, accuracy_pruned : float
        On the test images.
    trade_off : tuple of dict
        For each epsilon: "epsilon", "kept" (fraction of each hidden layer's weights), "accuracy" and "certified".
    certified : bool
        Whether every layer's solve, those of the trade-off included, was made and ended with the status "solved".
    interrupted : bool
        Whether Ctrl-C ended it early; what was finished is in the report.
    picture, network : Path or None
        Files written.
    seconds : dict of str to float
        "compile", "layers", "trade_off", "picture" and "total".
    """

    epsilon: float
    layers: tuple[LayerReport, ...]
    logit_weights: int
    images: dict[str, int]
    samples: dict[str, int]
    accuracy_dense: float
    accuracy_pruned: float
    trade_off: tuple[dict[str, Any], ...]
    certified: bool
    interrupted: bool
    picture: Path | None
    network: Path | None
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def load_network() -> Network:
    """The trained network that ships with the package, its float16 weights as float32.

    Returns
    -------
    Network
    """
    with (importlib.resources.files("nettrim") / "data" / "digits_relu.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        layers = range(sum(name.startswith("W") for name in stored.files))
        return Network(
            [stored[f"W{i}"].astype(np.float32) for i in layers],
            [stored[f"b{i}"].astype(np.float32) for i in layers],
            {name: stored[name].astype(np.intp) for name in SPLIT_NAMES},
            float(stored["test_accuracy"]),
            str(stored["provenance"]),
        )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 64) in [0, 1] as float32 and labels of scikit-learn's handwritten digits.

    Raises
    ------
    ImportError
        scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"the demo needs scikit-learn (its digits): {install('demo')}") from error
    bundle = load_digits()
    return (bundle.data / 16).astype(np.float32), bundle.target


def shifted(images: np.ndarray) -> np.ndarray:
    """The (n, 64) images followed by their shifts by one pixel to the right, left, bottom and top: (5 n, 64)."""
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1))
    return np.concatenate([padded[:, y : y + 8, x : x + 8].reshape(-1, 64) for y, x in corners])


def hidden_outputs(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], images: np.ndarray) -> list[np.ndarray]:
    """The images and the outputs of every hidden layer, samples in rows."""
    outputs = [images]
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        outputs.append(np.maximum(outputs[-1] @ W + b, 0))
    return outputs


def accuracy(
    weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], images: np.ndarray, labels: np.ndarray
) -> float:
    """Fraction of the images whose largest logit is the right one."""
    logits = hidden_outputs(weights, biases, images)[-1] @ weights[-1] + biases[-1]
    return float((logits.argmax(1) == labels).mean())


class _Layer:
    """One hidden layer between its original inputs and outputs, and its solver."""

    def __init__(
        self,
        name: str,
        bias: np.ndarray,
        calibration: tuple[np.ndarray, ...],
        heldout: tuple[np.ndarray, ...],
        epsilon: float,
        settings: Settings,
    ):
        self.name, self.bias = name, bias
        self.calibration, self.heldout = self._columns(*calibration), self._columns(*heldout)
        X, Y = self.calibration
        self.inputs, self.neurons = X.shape[0] - 1, Y.shape[0]
        # the row of ones holds the biases, which cost nothing to keep: they are not penalised
        C = np.ones(X.shape[0], X.dtype)
        C[-1] = 0
        self.solver = Solver(Problem(X, Y, epsilon, C=C), settings)

    @staticmethod
    def _columns(inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X with a row of ones at the end, and Y, samples in columns."""
        X = np.vstack([inputs.T, np.ones((1, len(inputs)), inputs.dtype)])
        return X, np.ascontiguousarray(outputs.T)

    def report(self, dense: np.ndarray, solution: Solution) -> LayerReport:
        W = solution.W
        certificate = solution.certificate
        return LayerReport(
            name=self.name,
            inputs=self.inputs,
            neurons=self.neurons,
            weights=int(np.count_nonzero(dense)),
            weights_kept=int(np.count_nonzero(W[:-1])),
            biases=int(np.count_nonzero(self.bias)),
            biases_kept=int(np.count_nonzero(W[-1])),
            error_calibration=_relu_error(W, *self.calibration),
            error_heldout=_relu_error(W, *self.heldout),
            gap=certificate.gap,
            violation=certificate.violation,
            status=str(solution.status),
            iterations=solution.iterations,
            seconds=solution.seconds["total"],
        )


def _relu_error(W: np.ndarray, X: np.ndarray, Y: np.ndarray) -> float:
    Y = Y.astype(np.float64)
    return float(np.linalg.norm(np.maximum(W.T.astype(np.float64) @ X, 0) - Y) / np.linalg.norm(Y))


def run_demo(
    epsilon: float = 0.1,
    output_dir: str | Path = "nettrim-demo",
    *,
    gap_tol: float = 1e-3,
    feas_tol: float = 1e-4,
    n_threads: int | None = 1,
    progress: Progress | None = None,
) -> DemoReport:
    """Prune the hidden layers of the bundled network; write a picture and the pruned network.

    Parameters
    ----------
    epsilon : float
        Error allowed in each hidden layer, relative to the norm of its outputs, in (0, 1]. 0.1 leaves
        the test accuracy within half a per cent.
    output_dir : path
        Folder for ``demo.png`` and ``digits_pruned.npz``; created if need be.
    gap_tol, feas_tol
        As in `Settings`.
    n_threads : int or None
        As in `Settings`. One thread by default: these layers are so small that a second one gains little, and costs
        much where other programs keep the cores busy.
    progress : callable, optional
        Called with the name of the present stage, and None or the row of a solver's check (see `Settings`).

    Returns
    -------
    DemoReport

    Raises
    ------
    ImportError
        scikit-learn or matplotlib is missing.
    ValueError, TypeError
        A wrong epsilon or setting.
    OSError
        The folder cannot be written to.
    KeyboardInterrupt
        Ctrl-C before a layer was begun; later it ends the demonstration early, with a report.
    """
    began = time.perf_counter()
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be a number above 0 and at most 1; got {epsilon!r}")
    watch = _Watch(progress)
    settings = Settings(gap_tol=gap_tol, feas_tol=feas_tol, n_threads=n_threads, callback=watch.check)
    matplotlib = _matplotlib()
    images, labels = digits()
    network = load_network()
    sets = {name: images[network.split[name]] for name in SPLIT_NAMES}
    layers = _layers(network, sets, epsilon, settings)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    def test_accuracy(solutions: Sequence[Solution]) -> float:
        weights, biases = _replaced(network, solutions)
        return accuracy(weights, biases, sets["test"], labels[network.split["test"]])

    seconds = {}
    with watch:
        watch.begin("compiling the kernels")
        seconds["compile"] = _warm_up(settings)
        solutions = _prune(layers, epsilon, "pruning", watch)
        if not solutions:
            raise KeyboardInterrupt
        seconds["layers"] = time.perf_counter() - began - sum(seconds.values())
        trade_off = [] if watch.interrupted else [_point(epsilon, solutions, test_accuracy)]
        # outwards from the chosen epsilon, so that each solve starts from a near one
        for value in [e for e in reversed(CURVE) if e < epsilon] + [e for e in CURVE if e > epsilon]:
            found = _prune(layers, value, f"trade-off, epsilon {value:g},", watch)
            if watch.interrupted:
                break
            trade_off.append(_point(value, found, test_accuracy))
    trade_off.sort(key=lambda point: point["epsilon"])
    seconds["trade_off"] = time.perf_counter() - began - sum(seconds.values())

    watch.begin("drawing")
    written = folder / "digits_pruned.npz"
    _save(written, network, solutions, epsilon)
    picture = None
    if trade_off:
        picture = folder / "demo.png"
        figure = draw(matplotlib, network, solutions, trade_off, epsilon, network.test_accuracy)
        with write_atomically(picture) as file:
            figure.savefig(file, format="png", dpi=150, facecolor="white")
    seconds["picture"] = time.perf_counter() - began - sum(seconds.values())
    seconds["total"] = time.perf_counter() - began
    solved = all(s.status is Status.SOLVED for s in solutions) and all(p["certified"] for p in trade_off)
    return DemoReport(
        epsilon=float(epsilon),
        layers=tuple(
            layer.report(W, solution) for layer, W, solution in zip(layers, network.weights, solutions, strict=False)
        ),
        logit_weights=network.weights[-1].size,
        images={name: len(rows) for name, rows in sets.items()},
        samples={"calibration": layers[0].calibration[0].shape[1], "heldout": layers[0].heldout[0].shape[1]},
        accuracy_dense=test_accuracy([]),
        accuracy_pruned=test_accuracy(solutions),
        trade_off=tuple(trade_off),
        certified=solved and not watch.interrupted,
        interrupted=watch.interrupted,
        picture=picture,
        network=written,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


class _Watch:
    """Reports the progress, and turns Ctrl-C, whenever it comes, into the end of the present solve and of the demo."""

    def __init__(self, progress: Progress | None):
        self._tell = progress or (lambda stage, check: None)
        self._stage = ""
        self._interrupt = Interrupt()

    def __enter__(self) -> None:
        self._interrupt.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._interrupt.__exit__(*error)

    @property
    def interrupted(self) -> bool:
        return self._interrupt.requested

    def begin(self, stage: str) -> None:
        self._stage = stage
        self._tell(stage, None)

    def check(self, row: dict[str, Any]) -> bool:
        """Callback of the solves: whether to stop."""
        self._tell(self._stage, row)
        return self.interrupted


def _prune(layers: Sequence[_Layer], epsilon: float, verb: str, watch: _Watch) -> list[Solution]:
    """Solutions of the layers at this epsilon, of fewer if interrupted."""
    solutions: list[Solution] = []
    for layer in layers:
        if watch.interrupted:
            break
        watch.begin(f"{verb} {layer.name}")
        solutions.append(layer.solver.update(epsilon=epsilon).solve())
    return solutions


def _layers(network: Network, sets: dict[str, np.ndarray], epsilon: float, settings: Settings) -> list[_Layer]:
    """The hidden layers, between the inputs and outputs that they have in the original network."""
    calibration = hidden_outputs(network.weights, network.biases, shifted(sets["calibration"]))
    heldout = hidden_outputs(network.weights, network.biases, shifted(sets["heldout"]))
    return [
        _Layer(
            f"hidden {i + 1}",
            network.biases[i],
            tuple(calibration[i : i + 2]),
            tuple(heldout[i : i + 2]),
            epsilon,
            settings,
        )
        for i in range(len(network.weights) - 1)
    ]


def _warm_up(settings: Settings) -> float:
    """Compile (or load from Numba's cache) what the solves use, on a tiny layer; returns the seconds."""
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 60)).astype(np.float32)
    Y = np.maximum(rng.standard_normal((3, 8)).astype(np.float32) @ X, 0)
    C = np.ones(8, np.float32)
    C[-1] = 0
    Solver(Problem(X, Y, 0.1, C=C), n_threads=settings.n_threads).solve()
    return time.perf_counter() - began


def _replaced(network: Network, solutions: Sequence[Solution]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases with the first layers taken from the solutions."""
    weights, biases = list(network.weights), list(network.biases)
    for i, solution in enumerate(solutions):
        weights[i], biases[i] = solution.W[:-1], solution.W[-1]
    return weights, biases


def _point(epsilon: float, solutions: Sequence[Solution], test_accuracy: Callable[..., float]) -> dict[str, Any]:
    return {
        "epsilon": float(epsilon),
        "kept": [float(np.count_nonzero(s.W[:-1]) / s.W[:-1].size) for s in solutions],
        "accuracy": test_accuracy(solutions),
        "certified": all(s.status is Status.SOLVED for s in solutions),
    }


def _save(path: Path, network: Network, solutions: Sequence[Solution], epsilon: float) -> None:
    """The pruned network, in the layout of the bundled one."""
    weights, biases = _replaced(network, solutions)
    arrays: dict[str, Any] = {f"W{i}": W for i, W in enumerate(weights)} | {f"b{i}": b for i, b in enumerate(biases)}
    provenance = f"{network.provenance}; {len(solutions)} hidden layers pruned by nettrim demo --epsilon {epsilon:g}"
    with write_atomically(path) as file:
        np.savez_compressed(file, **arrays, epsilon=np.float64(epsilon), provenance=np.str_(provenance))


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"the demo needs matplotlib (its picture): {install('demo')}") from error
    return matplotlib

"""What a worker does with its samples: the passes of ADMM and those of the certificate. Nothing here knows of Dask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nettrim import backends
from nettrim.checkpoint import Writer
from nettrim.chunked import Chunked
from nettrim.diskplan import plan
from nettrim.distributed.source import Source
from nettrim.fingerprint import digests
from nettrim.fromdisk import FromDisk
from nettrim.problem import Problem
from nettrim.samples import Resident, Samples, operator_of
from nettrim.solution import samples_of
from nettrim.survey import Survey

__all__ = ["Call", "Piece", "Shard", "Total", "zeros"]


@dataclass(frozen=True)
class Piece:
    """Some samples of a problem, and how a worker lays them out.

    Parameters
    ----------
    X, Y : Source
    omega : str or Source
    V : float or Source
    dtype : str
    first : int
        Number of the first sample, for messages.
    backend : str
    memory : float
        Bytes.
    scratch : str or None
    """

    X: Source
    Y: Source
    omega: str | Source
    V: float | Source
    dtype: str
    first: int
    backend: str
    memory: float
    scratch: str | None

    def problem(self) -> Problem:
        """The program on these samples alone; its radius means nothing."""
        omega, V = (a.open() if isinstance(a, Source) else a for a in (self.omega, self.V))
        with warnings.catch_warnings():
            # whoever made the problem is told, once
            warnings.simplefilter("ignore", UserWarning)
            return Problem(self.X.open(), self.Y.open(), epsilon_abs=0.0, omega=omega, V=V, dtype=np.dtype(self.dtype))


@dataclass
class Total:
    """Results over some samples: arrays that are added, and arrays of which the larger entries count."""

    sums: Sequence[Any] = ()
    peaks: Sequence[Any] = ()

    def __add__(self, other: Total) -> Total:
        # new arrays: what a shard remembers of its last call must not change
        return Total(
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(np.maximum(a, b) for a, b in zip(self.peaks, other.peaks, strict=True)),
        )


@dataclass(frozen=True)
class Call:
    """A function of every shard.

    Parameters
    ----------
    name : str
    arguments : tuple
    number : int
        Of those that change the state, counted from 1; 0 for others.
    """

    name: str
    arguments: tuple[Any, ...] = field(default=())
    number: int = 0


class Shard:
    """Samples on a device, with their columns of the state T.

    A call that changes T has a number. It is done once: asked for again, as after the loss of another worker, its
    result is what it was.

    Parameters
    ----------
    piece : Piece
    threads : int
    """

    def __init__(self, piece: Piece, threads: int):
        self.problem, self._piece = piece.problem(), piece
        self.backend = backends.get("numba" if piece.backend == "auto" else piece.backend, threads)
        self._samples: Samples | None = None
        self._T: Any = None
        self._number, self._last = 0, Total()

    @property
    def survey(self) -> Survey:
        """What the problem has to know of these samples."""
        return self.problem._survey

    def do(self, call: Call) -> Total:
        """The result of a call.

        Raises
        ------
        RuntimeError
            Calls that change the state are missing.
        """
        if not call.number:
            return getattr(self, f"_{call.name}")(*call.arguments)
        if call.number == self._number + 1:
            self._last = getattr(self, f"_{call.name}")(*call.arguments)
            self._number = call.number
        if call.number != self._number:
            raise RuntimeError(f"the state is that of call {self._number}, and the next is {call.number}")
        return self._last

    def restore(self, columns: Any, number: int) -> bool:
        """Take over the state that a checkpoint has, of so many calls; None for no state."""
        self._T, self._number = None, number
        if columns is not None:
            self._T = self.samples.state()
            self.samples.load(self._T, columns)
        return True

    @property
    def samples(self) -> Samples:
        """The samples on the device, as ADMM asks for them."""
        if self._samples is None:
            p, piece = self.problem, self._piece
            if not self.backend.on_host:
                self._samples = self._on_device()
            else:
                given = {"X": p.X, "Y": p.Y, "omega": p.mask, "V": p.V}
                stored = {name: a.sample_bytes for name, a in given.items() if isinstance(a, Chunked)}
                copies = max((a.sample_bytes for a in given.values() if isinstance(a, Chunked) and a.copies), default=0)
                made = plan(
                    *(p.N, p.M, p.P, p.dtype.itemsize, piece.memory),
                    stored=stored,
                    copies=copies,
                    numpy=self.backend.name == "numpy",
                )
                self._samples = FromDisk(p, self.backend, made, piece.scratch)
        return self._samples

    def _on_device(self) -> Resident:
        p, be = self.problem, self.backend
        X, Y, mask, V = p.part(slice(0, p.P))
        mask = np.broadcast_to(True, Y.shape) if mask is None else mask
        return Resident(
            operator_of(X, be, p.dtype), be.rowwise(Y, p.dtype), be.rowwise(mask, bool), be.rowwise(V, p.dtype), be
        )

    def close(self) -> None:
        """Give memory and scratch space back."""
        if hasattr(self._T, "close"):
            self._T.close()
        self._samples = self._T = None

    # calls that change the state

    def _zero(self) -> Total:
        if self._T is None or not self.samples.fits(self._T):
            self._T = self.samples.state()
        else:
            self.samples.load(self._T, zeros(self.problem.M, self.problem.P, self.problem.dtype))
        return Total()

    def _load(self, values: Any) -> Total:
        self._T = self.samples.state() if self._T is None else self._T
        return self._result(self.samples.load(self._T, values))

    def _project(self, scale: np.ndarray, alpha: float, sums: bool) -> Total:
        R, found = self.samples.project(self._T, self._here(scale), alpha, sums)
        return self._result(R, *([found] if sums else []))

    def _advance(self, F: np.ndarray) -> Total:
        return self._result(self.samples.advance(self._T, self._here(F)))

    def _rescale(self, W: np.ndarray, keep: float) -> Total:
        return self._result(self.samples.rescale(self._T, self._here(W), keep))

    # and that do not

    def _squares(self) -> Total:
        return self._result(self.samples.squares(self._T))

    def _target_product(self) -> Total:
        return self._result(self.samples.target_product())

    def _measure(self, W: np.ndarray, step: np.ndarray, scale: np.ndarray) -> Total:
        moved, sums = self.samples.measure(self._T, *(self._here(a) for a in (W, step, scale)))
        return Total((np.float64(moved) ** 2, sums))

    def _violations(self, W: np.ndarray) -> Total:
        sums = self.samples.violations(self._here(W))
        return Total((sums[:, :2],), (sums[:, 2],))

    def _gram(self) -> Total:
        samples = self.samples
        operator = getattr(samples, "operator", None)
        if operator is None:
            return Total((samples.gram(),))  # type: ignore[attr-defined]
        return Total((self.backend.moments(operator.X),))

    def _moments(self) -> Total:
        gram = self.problem.moments()
        return Total((gram.XX, gram.XY, gram.YY))

    def _digests(self, block: int) -> list[str]:
        return digests(self.problem, block)

    def _save(self, writer: Writer, first: int) -> list[dict[str, Any]]:
        records = self.samples.save(self._T, _Moved(writer, first))
        return records

    # of the certificate: from the problem's own samples, by the functions of `certify`

    def _input_norm(self) -> Total:
        return Total((np.float64(samples_of(self.problem).input_norm()) ** 2,))

    def _residuals(self, W: np.ndarray) -> Total:
        squares, excess, largest, flips = samples_of(self.problem).residuals(W)
        return Total((squares, np.float64(excess), np.int64(flips)), (np.float64(largest),))

    def _multiplier(self, dual: Any, shift: np.ndarray | None) -> Total:
        p = self.problem
        if isinstance(dual, float):
            # of the state, which is the multiplier but for its size
            dual = self.samples.multiplier(self._T, dual) if dual and self._T is not None else zeros(p.M, p.P, p.dtype)
        return Total(samples_of(p).multiplier(dual, shift))

    def _grams(self, free: np.ndarray) -> Total:
        return Total((samples_of(self.problem).grams(free),))

    def _here(self, a: np.ndarray) -> Any:
        """On the device, and of an order that its passes take."""
        return self.backend.asarray(a, a.dtype)

    def _result(self, *arrays: Any) -> Total:
        return Total(tuple(a if type(a) is np.ndarray else self.backend.to_host(a) for a in arrays))


@dataclass(frozen=True)
class _Moved:
    """A writer of columns that are counted from another first one."""

    writer: Writer
    first: int

    def write(self, first: int, values: Any) -> dict[str, Any]:
        return self.writer.write(self.first + first, values)


def zeros(M: int, P: int, dtype: Any) -> np.ndarray:
    """An M x P array of zeros that takes no memory."""
    return np.broadcast_to(np.dtype(dtype).type(0), (M, P))

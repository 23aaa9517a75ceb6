"""The client's side of shards on a cluster: which worker has which, what has been asked of them, and their loss.

Every call that changes the state is numbered and kept, with its arguments, until a checkpoint has what it did. When a
worker is lost, its shards are opened again elsewhere from their sources, their columns of the state are read from the
checkpoint, and the calls since are done again; then the call that failed is asked for once more, and whoever has done
it already answers with what it remembers. The shards that were not lost go on from where they are. Since sums do not
depend on the workers, the iterates are those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np

from nettrim.distributed.cluster import address_of, alive, lost_scheduler, workers
from nettrim.distributed.shard import Call, Piece, Total
from nettrim.distributed.site import Failure, Gone, Site, ask
from nettrim.problem import Problem
from nettrim.solution import balance
from nettrim.survey import Survey

__all__ = ["Multiplier", "Shards"]

#: seconds in which a worker that was lost may come back (a nanny starts it again) before its shards go to others
REPLACED = 20.0
#: seconds to wait for a first worker when none is left
NONE_LEFT = 60.0
#: recoveries after which the same call is given up
ATTEMPTS = 6
#: bytes of arguments that are kept between two checkpoints
KEPT = 1 << 30
#: seconds between two looks at who is still there while a call is under way
WATCH = 5.0
#: bytes of calls that are sent at once to be done again
MESSAGE = 64 << 20

log = logging.getLogger("nettrim")


class Multiplier:
    """Multipliers that are on the workers: rho times their state, M x P; valid as long as that does not change."""

    #: not in the memory of this process
    elsewhere = True

    def __init__(self, shape: tuple[int, int], rho: float):
        self.shape, self.rho = shape, float(rho)


class Shards:
    """The samples of a problem on the workers of a cluster.

    Parameters
    ----------
    client : distributed.Client
    pieces : list of Piece
        One for each shard.
    slices : list of slice
        Their samples.
    threads : int, optional
        Of a worker's arithmetic.

    Attributes
    ----------
    surveys : list of Survey
    recovered : int
        Shards that have been opened again.
    """

    def __init__(self, client: Any, pieces: list[Piece], slices: list[slice], threads: int | None = None):
        self.client, self.pieces, self.slices, self._threads = client, pieces, slices, threads
        self.recovered, self.number = 0, 0
        #: stands for the state that is there
        self.token: Any = None
        self._sites: dict[str, Any] = {}
        self._kept: list[Call] = []
        self._kept_bytes, self._incomplete = 0, False
        # of the last checkpoint: T's columns, and how many calls they are the result of
        self._columns: Any = None
        self._columns_number = self._saved_number = 0
        self._closed = set(range(len(pieces)))
        addresses = workers(client)
        count = len(pieces)
        # neighbours together: sums of neighbours then need no other worker
        holders = min(count, len(addresses))
        self._owners = [addresses[k * holders // count] for k in range(count)]
        self.surveys: list[Survey] = [None] * count
        try:
            self._settle()
            if self._closed:
                self._recover()
        except BaseException:
            self.close()
            raise

    # what is asked of all shards

    def total(self, name: str, *arguments: Any, changes: bool = False) -> Total:
        """Sum of a call's results over all shards."""
        call = self._call(name, arguments, changes)
        return self._persistently(partial(self._ask, 0, "reduce", 0, len(self.pieces), call))

    def each(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A call's result of each shard, with its own arguments; none that changes the state."""
        calls = [Call(name, own) for own in arguments]
        return [self._persistently(partial(self._ask, k, "each", k, call)) for k, call in enumerate(calls)]

    def load(self, values: Any) -> Total:
        """T <- values, and X T^T. Each shard is sent its own columns."""
        self.number += 1
        total = None
        own = [values.between(s.start, s.stop) if hasattr(values, "between") else values[:, s] for s in self.slices]
        # kept as a whole: who opens a shard again takes its part of it
        self._keep(Call("load", (own,), self.number))
        for k, part in enumerate(own):
            call = Call("load", (part,), self.number)
            found = self._persistently(partial(self._ask, k, "each", k, call))
            total = found if total is None else total + found
        return total

    def _call(self, name: str, arguments: tuple[Any, ...], changes: bool) -> Call:
        if not changes:
            return Call(name, arguments)
        self.number += 1
        call = Call(name, arguments, self.number)
        self._keep(call)
        return call

    def _keep(self, call: Call) -> None:
        if call.name == "zero":
            # whatever was before does not matter
            self._kept, self._kept_bytes, self._incomplete = [], 0, False
            self._columns, self._columns_number = None, call.number - 1
        if self._incomplete:
            return
        self._kept.append(call)
        self._kept_bytes += _bytes(call)
        if self._kept_bytes > KEPT:
            log.warning("what is kept to replace a lost worker exceeds 1 GB: set checkpoint, or a loss ends the solve")
            self._kept, self._kept_bytes, self._incomplete = [], 0, True

    def save(self, writer: Any) -> list[dict[str, Any]]:
        """Let each shard write its columns of T."""
        self._saved_number = self.number
        records = self.each("save", [(writer, s.start) for s in self.slices])
        return [record for part in records for record in part]

    def saved(self, columns: Any) -> None:
        """From now on the state of a lost worker is read from there."""
        self._columns, self._columns_number, self._incomplete = columns, self._saved_number, False
        self._kept = [call for call in self._kept if call.number > self._saved_number]
        self._kept_bytes = sum(map(_bytes, self._kept))

    # asking

    def _ask(self, shard: int, method: str, *arguments: Any) -> Any:
        """From the worker that has a shard; Gone also if any worker is lost while it is waited for."""
        address = self._owners[shard]
        return self._wait(ask, self._connect, address, self._sites[address].key, method, *arguments)

    def _connect(self, address: str) -> Any:
        return address_of(self.client, address)

    def _wait(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.sync(_watched, self.client, set(self._owners), function, *arguments)

    def _persistently(self, asked: Callable[[], Any]) -> Any:
        """The answer, after as many recoveries as it takes.

        Raises
        ------
        RuntimeError
            No workers are left, the scheduler is gone, or calls fail again and again.
        """
        for _ in range(ATTEMPTS):
            found = asked()
            if isinstance(found, Failure):
                raise self._explained(found)
            if not isinstance(found, Gone):
                return found
            log.warning("worker %s cannot be reached", found.address)
            self._recover()
        raise RuntimeError(f"workers were lost {ATTEMPTS} times during one call: the solve is given up")

    def _explained(self, failure: Failure) -> Exception:
        s, error = self.slices[failure.shard], failure.error
        where = f"{error} (of the samples from {s.start}, on worker {self._owners[failure.shard]})"
        if isinstance(error, OSError) and error.errno is not None:
            return type(error)(error.errno, where)
        return type(error)(where) if type(error) in (ValueError, TypeError, MemoryError, RuntimeError) else error

    # who has what

    def _recover(self) -> None:
        """Open the shards of lost workers elsewhere, with their state.

        Raises
        ------
        RuntimeError
            There are no workers, the scheduler is gone, the samples have changed, or the state cannot be built again.
        """
        for _ in range(ATTEMPTS):
            there = alive(self.client)
            gone = {owner for owner in set(self._owners) if owner not in there or not self._answers(owner)}
            wanted = len(set(self._owners))
            self._closed |= {k for k, owner in enumerate(self._owners) if owner in gone}
            if not self._closed:
                # it was the connection
                return
            if self._incomplete:
                raise RuntimeError(
                    "a worker was lost, and what its state could be built from again is not there: set checkpoint to a "
                    "folder that all workers can write to"
                )
            for address in gone:
                log.warning("lost worker %s", address)
                self._sites.pop(address, None)
            self._place(workers(self.client, wanted, REPLACED, NONE_LEFT, without=gone))
            count = len(self._closed)
            self._settle()
            if not self._closed:
                self.recovered += count
                return
        raise RuntimeError(f"workers were lost {ATTEMPTS} times, one after the other: the solve is given up")

    def _place(self, there: list[str]) -> None:
        """Give the shards that nobody has to workers that have none, or to those that have the fewest."""
        held = Counter({address: 0 for address in there})
        held.update(owner for k, owner in enumerate(self._owners) if k not in self._closed and owner in held)
        for k in sorted(self._closed):
            self._owners[k] = min(there, key=lambda address: (held[address], address))
            held[self._owners[k]] += 1

    def _settle(self) -> None:
        """Open the shards that nobody has where they belong, bring them up to date, and tell everybody."""
        for address in dict.fromkeys(self._owners):
            if address not in self._sites:
                key = f"nettrim-samples-{uuid4().hex}"
                options: dict[str, Any] = {"key": key, "actor": True, "workers": [address], "pure": False}
                self._sites[address] = self.client.submit(Site, self._threads, **options)
        for k in sorted(self._closed):
            if self._opened(k):
                self._closed.discard(k)
        routes = [(owner, self._sites[owner].key) for owner in self._owners]
        for address, site in self._sites.items():
            if site.status == "finished":
                self._wait(ask, self._connect, address, site.key, "route", routes)

    def _opened(self, k: int) -> bool:
        """Whether a shard is there now, up to date; False if its worker is gone in turn."""
        if not self._started(self._owners[k]):
            return False
        survey = self._done(self._ask(k, "open", k, self.pieces[k]))
        if survey is None:
            return False
        if self.surveys[k] is not None and not _same(self.surveys[k], survey):
            raise RuntimeError(f"the samples from {self.slices[k].start} have changed since the solve began")
        self.surveys[k] = survey
        columns, s = self._columns, self.slices[k]
        mine = None if columns is None else columns.between(s.start, s.stop)
        if self._done(self._ask(k, "restore", k, mine, self._columns_number)) is None:
            return False
        calls = [replace(c, arguments=(c.arguments[0][k],)) if c.name == "load" else c for c in self._kept]
        while calls:
            size, count = 0, 0
            while count < len(calls) and size <= MESSAGE:
                size, count = size + _bytes(calls[count]), count + 1
            if self._done(self._ask(k, "redo", k, calls[:count])) is None:
                return False
            calls = calls[count:]
        return True

    def _done(self, found: Any) -> Any:
        """The answer; None if the worker is gone."""
        if isinstance(found, Failure):
            raise self._explained(found)
        return None if isinstance(found, Gone) else found

    def _started(self, address: str) -> bool:
        """Whether the actor of a worker runs."""
        from distributed import TimeoutError, wait

        site = self._sites[address]
        while not site.done():
            if address not in alive(self.client):
                return False
            try:
                wait(site, timeout=WATCH)
            except TimeoutError:
                log.info("waiting for worker %s", address)
        if site.status == "error":
            raise site.exception()
        return site.status == "finished"

    def _answers(self, address: str) -> bool:
        site = self._sites.get(address)
        return site is not None and self._wait(ask, self._connect, address, site.key, "answer") is True

    def close(self) -> None:
        """Free the workers. What has been asked for before is lost."""
        sites, self._sites = self._sites, {}
        for address, site in sites.items():
            try:
                if site.status == "finished":
                    self._wait(ask, self._connect, address, site.key, "close")
                site.release()
            except (OSError, RuntimeError) as error:
                # there is nothing to free then
                log.info("worker %s was gone already: %s", address, error)

    # what the solver and the certificate ask for

    def samples(self, problem: Problem, backend: Any) -> Any:
        """As what ADMM asks for."""
        from nettrim.distributed.sharded import Sharded

        return Sharded(self, problem, backend)

    def view(self, problem: Problem) -> Any:
        """As what a certificate asks for."""
        return _View(self, problem)

    def multiplier(self, rho: float) -> Multiplier:
        """rho times the state."""
        survey = self.surveys[0]
        return Multiplier((survey.squares.size, self.slices[-1].stop), rho)

    def digests(self, block: int) -> list[str]:
        """Of each block of samples, see `nettrim.fingerprint`."""
        found = self.each("digests", [(block,)] * len(self.pieces))
        return [digest for part in found for digest in part]

    def __del__(self) -> None:
        # whoever has dropped the problem needs its workers no longer; a client that is closed has freed them
        for site in getattr(self, "_sites", {}).values():
            site.release()


async def _watched(client: Any, owners: set[str], function: Callable[..., Any], *arguments: Any) -> Any:
    """What the coroutine returns; Gone if a worker that has shards is lost while it is waited for."""
    task = asyncio.ensure_future(function(*arguments))
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=WATCH)
            if done:
                return task.result()
            try:
                there = await asyncio.wait_for(client.scheduler.ncores(), NONE_LEFT)
            except (OSError, RuntimeError, AttributeError) as error:
                raise lost_scheduler(client) from error
            missing = owners - set(there)
            if missing:
                return Gone(min(missing))
    finally:
        task.cancel()


class _View:
    """The samples as a certificate sums over them: by shards, each by itself."""

    def __init__(self, shards: Shards, problem: Problem):
        self._shards, self._problem = shards, problem
        self.dual_shape = (problem.M, problem.P)

    def input_norm(self) -> float:
        (square,) = self._shards.total("input_norm").sums
        return float(np.sqrt(square))

    def residuals(self, W: np.ndarray) -> tuple[np.ndarray, float, float, int]:
        total = self._shards.total("residuals", W)
        squares, excess, flips = total.sums
        return squares, float(excess), float(total.peaks[0]), int(flips)

    def multiplier(self, dual: Any, shift: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if isinstance(dual, Multiplier):
            return tuple(self._shards.total("multiplier", dual.rho, shift).sums)
        parts = self._shards.each("multiplier", [(np.asarray(dual[:, s]), shift) for s in self._shards.slices])
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return tuple(total.sums)

    def shift(self, H: np.ndarray, C: np.ndarray, free: np.ndarray) -> np.ndarray:
        return balance(H, C, free, self._shards.total("grams", free).sums[0])


def _bytes(call: Call) -> int:
    parts = call.arguments[0] if call.name == "load" else call.arguments
    return sum(getattr(a, "nbytes", 0) for a in (parts if isinstance(parts, (list, tuple)) else [parts]))


def _same(a: Survey, b: Survey) -> bool:
    return np.array_equal(a.squares, b.squares) and tuple(a[1:]) == tuple(b[1:])

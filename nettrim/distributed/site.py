"""The actor that a worker runs: it holds shards, and reduces their results with those of other workers.

A result over all shards is a sum along a binary tree over their numbers, whatever worker has which of them, so that it
does not depend on the workers or on which of them is quicker: ``reduce(low, high)`` is the result of the first half,
here, plus that of the second, from the worker that has its first shard. Both are worked on at once. Arguments go down
the same way, so that an array is sent to each worker once, and one comes back from each.

All that waits is a coroutine on the worker's event loop, so that two workers may wait for each other; the arithmetic is
in one thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nettrim.distributed.shard import Call, Piece, Shard, Total
from nettrim.survey import Survey
from nettrim.threads import limit

__all__ = ["Failure", "Gone", "Site", "ask", "half"]


@dataclass(frozen=True)
class Gone:
    """In the place of a result: a worker could not be reached."""

    address: str


@dataclass(frozen=True)
class Failure:
    """In the place of a result: what a shard raised."""

    error: Exception
    shard: int


def half(low: int, high: int) -> int:
    """Where the tree over the shards from `low` up to `high` divides: at the largest power of two."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


async def ask(connect: Callable[[str], Any], address: str, key: str, method: str, *arguments: Any) -> Any:
    """What a method of another worker's actor returns; Gone if it cannot be reached, or has no such actor."""
    from distributed.protocol.serialize import to_serialize

    try:
        found = await connect(address).actor_execute(
            function=method, actor=key, args=[to_serialize(a) for a in arguments], kwargs={}
        )
    except (OSError, RuntimeError):
        # closed connections and time-outs are OSErrors; a client that has given up its scheduler has closed its pool
        return Gone(address)
    if found["status"] == "OK":
        return found["result"]
    if isinstance(found["exception"], KeyError):
        return Gone(address)
    raise found["exception"]


class Site:
    """See the module.

    Parameters
    ----------
    threads : int or None
        Of the arithmetic; default those of the worker.
    """

    def __init__(self, threads: int | None = None):
        from distributed import get_worker

        self._worker = get_worker()
        self._threads = threads or self._worker.state.nthreads
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nettrim-site")
        self._shards: dict[int, Shard] = {}
        self._routes: list[tuple[str, str]] = []

    async def open(self, index: int, piece: Piece) -> Survey | Failure:
        """Take a shard over."""

        def make() -> Survey:
            self._shards[index] = Shard(piece, self._threads)
            return self._shards[index].survey

        return await self._work(index, make)

    async def restore(self, index: int, columns: Any, number: int) -> bool | Failure:
        """Give a shard the state of a checkpoint, see `Shard.restore`."""
        return await self._work(index, lambda: self._shards[index].restore(columns, number))

    async def redo(self, index: int, calls: Sequence[Call]) -> bool | Failure:
        """Let a shard do calls of which nobody needs the results."""
        return await self._work(index, lambda: all(self._shards[index].do(call) is not None for call in calls))

    async def route(self, routes: list[tuple[str, str]]) -> None:
        """Be told where each shard is: its worker's address and the key of the actor there."""
        self._routes = routes

    async def reduce(self, low: int, high: int, call: Call) -> Total | Gone | Failure:
        """Sum of a call's results over the shards from `low`, which is here, up to `high`."""
        if high - low == 1:
            return await self._work(low, lambda: self._shards[low].do(call))
        middle = half(low, high)
        # both are waited for, also if one fails: nothing goes on behind the back of whoever asked
        parts = await asyncio.gather(self.reduce(low, middle, call), self._beyond(middle, high, call))
        for part in parts:
            if isinstance(part, (Gone, Failure)):
                return part
        return parts[0] + parts[1]

    async def each(self, index: int, call: Call) -> Any:
        """A call's result of one shard."""
        return await self._work(index, lambda: self._shards[index].do(call))

    async def answer(self) -> bool:
        """True: it is there."""
        return True

    async def close(self) -> None:
        """Give memory and scratch space back."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()
        self._pool.shutdown(wait=False)

    async def _beyond(self, low: int, high: int, call: Call) -> Any:
        address, key = self._routes[low]
        if address == self._worker.address:
            return await self.reduce(low, high, call)
        return await ask(self._worker.rpc, address, key, "reduce", low, high, call)

    async def _work(self, index: int, function: Callable[[], Any]) -> Any:
        """A function's result, in the thread of the arithmetic; what it raises is a Failure."""

        def run() -> Any:
            with limit(self._threads):
                return function()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except Exception as error:
            return Failure(error, index)

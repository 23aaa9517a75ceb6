"""What happens before what on a GPU's streams: finds accesses to the same memory that nothing orders.

Each stream, and the host, has a clock that counts its own steps and knows how far it has seen the others: an event
carries the clock of the stream that it was recorded on, and waiting for it means to learn that clock. Two accesses to a
buffer, one of them a write, must be ordered; that they happened to be harmless in one run is not asked.
"""

from __future__ import annotations

from collections import defaultdict


class Race(AssertionError):
    """Two accesses that nothing orders."""


class Timeline:
    """Clocks of the streams and the host, and the last accesses to each buffer, by its address."""

    HOST = "host"

    def __init__(self) -> None:
        self.clocks: dict[object, dict] = defaultdict(dict)
        self.writes: dict[int, tuple] = {}
        self.reads: dict[int, dict] = defaultdict(dict)
        #: accesses that were looked at, by kind
        self.count = defaultdict(int)

    def learn(self, who: object, clock: dict) -> None:
        mine = self.clocks[who]
        for other, tick in clock.items():
            mine[other] = max(mine.get(other, 0), tick)

    def snapshot(self, stream: object) -> dict:
        """What an event recorded now carries."""
        self.learn(stream, self.clocks[self.HOST])
        return dict(self.clocks[stream])

    def forget(self, address: int) -> None:
        """Memory there is new: who used it before, under the same address, is not waited for."""
        self.writes.pop(address, None)
        self.reads.pop(address, None)

    def access(self, who: object, reads: list[int] = (), writes: list[int] = ()) -> None:
        """A step of a stream or of the host."""
        if who != self.HOST:
            # what the host did before it gave this to the stream
            self.learn(who, self.clocks[self.HOST])
        clock = self.clocks[who]
        clock[who] = clock.get(who, 0) + 1
        for address in (*reads, *writes):
            self._ordered(clock, self.writes.get(address), who, "write", address)
        for address in writes:
            for reader in self.reads[address].items():
                self._ordered(clock, reader, who, "read", address)
            self.reads[address] = {}
            self.writes[address] = who, clock[who]
        for address in reads:
            self.reads[address][who] = clock[who]
        self.count[who] += 1

    @staticmethod
    def _ordered(clock: dict, earlier: tuple | None, who: object, kind: str, address: int) -> None:
        if earlier is not None and earlier[1] > clock.get(earlier[0], 0):
            raise Race(f"{who} does not wait for the {kind} of {address:#x} by {earlier[0]}")

"""What a solve with samples on disk takes of the memory, counted before it begins, and what an iteration moves."""

from __future__ import annotations

from dataclasses import dataclass, field

from nettrim.chunked import READ_BYTES
from nettrim.units import as_bytes

__all__ = ["SLOTS", "DiskPlan", "plan"]

#: buffers: one is worked on, and one is written back and filled again meanwhile
SLOTS = 2
#: bytes of a buffer at most: what is gained by more is better used for samples that stay
_SLOT_BYTES = 64 << 20
#: bytes of a buffer at least, where the state would else be kept in memory
_USEFUL = 4 << 20
#: samples of a chunk: a multiple of this, and at least so many
_ALIGNED = 32
#: N x N float64 matrices: X X^T, two kept inverses, the copy that becomes a third
_SYSTEMS = 4
#: N x M matrices in the working dtype: W, its copies and steps, the state, right-hand sides, and a certificate's
_WEIGHTS = {4: 26, 8: 18}
#: bytes of parts in float64: moments, and a certificate's arrays, beside the part that is read
_BLOCKS = 48 << 20
#: bytes of a sample's outputs in the numpy backend's temporaries, over M
_NUMPY = 56


@dataclass(frozen=True)
class DiskPlan:
    """How the samples of a solve are laid out between memory and disk.

    Attributes
    ----------
    available : int
        Bytes that the solve may take.
    fixed : dict of str to int
        Bytes that do not depend on the number of samples, by what they are for.
    samples : int
        P.
    per_sample : int
        Bytes of a sample that stays: its columns of X, Y, Omega, V and the state.
    kept : int
        Samples that stay in memory.
    width : int
        Samples of a chunk.
    buffers : int
        Bytes of the buffers for the others, and of what is computed from a chunk at a time.
    state : int
        Bytes of the state of the others that stay in memory; 0 if it is on disk.
    scratch : int
        Bytes of the state that are on disk.
    read, written : int
        Bytes that an iteration without a check reads and writes.
    flops : float
        Floating-point operations of an iteration.
    """

    available: int
    fixed: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    per_sample: int = 0
    kept: int = 0
    width: int = 0
    buffers: int = 0
    state: int = 0
    scratch: int = 0
    read: int = 0
    written: int = 0
    flops: float = 0.0

    @property
    def streamed(self) -> bool:
        """Whether some samples are read again in every iteration."""
        return self.kept < self.samples

    @property
    def needed(self) -> int:
        """Bytes that the solve takes."""
        return sum(self.fixed.values()) + self.per_sample * self.kept + self.buffers + self.state

    def seconds(self, flops: float, reading: float, writing: float) -> float:
        """Expected seconds of an iteration at so many `flops` a second and bytes a second of `reading` and `writing`.

        The arithmetic and the disk work at the same time, so the slower of the two counts.
        """
        return max(self.flops / flops, self.read / reading + self.written / writing)

    def table(self) -> str:
        """The plan in a few lines."""
        rows = [(self.available, "for the solve")]
        rows += [(value, name) for name, value in self.fixed.items()]
        rows.append((self.per_sample * self.kept, f"{self.kept:,} of {self.samples:,} samples that stay in memory"))
        if self.streamed:
            rows.append((self.buffers, f"{SLOTS} buffers of {self.width:,} samples for those on disk"))
            rows.append((self.state, "state of these"))
        rows.append((self.needed, "in all"))
        lines = ["memory plan"] + [f"{as_bytes(value):>12}  {name}" for value, name in rows]
        if self.streamed:
            lines.append(f"{as_bytes(self.read):>12}  read by an iteration")
            where = f"{as_bytes(self.scratch)} of scratch"
            lines.append(f"{as_bytes(self.written):>12}  written by an iteration, to {where}")
        return "\n".join(lines)


def plan(
    N: int,
    M: int,
    P: int,
    itemsize: int,
    memory: float,
    *,
    stored: dict[str, int] | None = None,
    copies: int = 0,
    numpy: bool = False,
) -> DiskPlan:
    """Lay P samples of a layer with N inputs and M outputs out between memory and disk.

    First the state stays in memory, which an iteration reads twice and writes twice, then as many samples as fit.

    Parameters
    ----------
    N, M, P : int
        Inputs, outputs, samples.
    itemsize : int
        Bytes of a number of the working dtype: 4 or 8.
    memory : float
        Bytes that the solve may take.
    stored : dict of str to int, optional
        Bytes of a sample on disk, of "X", "Y", "omega" and "V" as far as they are there; default X and Y in the working
        dtype.
    copies : int
        Bytes of a sample that reading it takes beside the buffer.
    numpy : bool
        Whether the passes are those of the numpy backend, which have temporaries.

    Returns
    -------
    DiskPlan

    Raises
    ------
    MemoryError
        Not even the smallest buffers fit; the message holds the counts and says what to change.
    """
    stored = stored or {"X": itemsize * N, "Y": itemsize * M}
    fixed = {
        f"systems of {N:,} x {N:,} in float64": _SYSTEMS * 8 * N**2,
        f"weights of {N:,} x {M:,} and their copies": _WEIGHTS[itemsize] * itemsize * N * M,
        "parts of samples in float64": _BLOCKS + READ_BYTES,
    }
    state = itemsize * M
    columns = itemsize * (N + M + (M if "V" in stored else 0)) + M
    flops = 4.0 * N * M * P + 2.0 * N**2 * M
    # the outputs of a chunk, and the part of the state that a certificate holds
    temporary = 2 * itemsize * M + (_NUMPY * M if numpy else 0) + copies
    room = int(memory) - sum(fixed.values())

    def chunk(slots: int, limit: int) -> int:
        """Samples of a chunk of which so many buffers, and what is computed from one, take at most `limit` bytes."""
        width = min(limit // (slots * columns + temporary), _SLOT_BYTES // columns)
        return min(P, width // _ALIGNED * _ALIGNED) if P > _ALIGNED else min(P, width)

    # chunks that stay need no buffers
    width = chunk(0, room - (columns + state) * P) if room > (columns + state) * P else 0
    if width > 0:
        fit = DiskPlan(int(memory), fixed, P, columns + state, P, width, width * temporary, flops=flops)
        if fit.needed <= memory:
            return fit
    smallest = _ALIGNED * (SLOTS * columns + temporary)
    inside = room - state * P >= max((SLOTS + 1) * _USEFUL, smallest)
    left = room - (state * P if inside else 0)
    slot = columns + (0 if inside else state)
    buffer = SLOTS * slot + temporary
    width = min(left // (2 * buffer), _SLOT_BYTES // slot, P)
    width = max(width // _ALIGNED * _ALIGNED, min(_ALIGNED, P))
    if width * buffer > left:
        least = DiskPlan(int(memory), fixed, P, columns + state, 0, width, width * buffer)
        raise MemoryError(f"memory is too little for the smallest buffers.\n{least.table()}\n{ADVICE}")
    kept = min((left - width * buffer) // (slot * width), (P - 1) // width) * width
    streamed = P - kept
    # V is for the projection only
    read = streamed * (2 * sum(stored.values()) - stored.get("V", 0) + (0 if inside else 2 * state))
    written = 0 if inside else streamed * 2 * state
    return DiskPlan(
        int(memory),
        fixed,
        P,
        columns + state,
        kept,
        width,
        width * buffer,
        state * streamed if inside else 0,
        0 if inside else state * streamed,
        read,
        written,
        flops,
    )


#: what a user can do about too little memory
ADVICE = (
    "Raise memory, solve fewer neurons at a time (rows of Y; with neuronwise=True nothing is lost), or use float32."
)

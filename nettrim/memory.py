"""What a solve needs of a device's memory, counted before it begins: all samples on the device, or a part of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nettrim.backends.base import MOMENTS_BYTES
from nettrim.units import as_bytes

__all__ = ["MemoryPlan", "plan"]

#: part of what is free that is left alone: the libraries' workspaces, and what a pool cannot reuse
RESERVE_PART, RESERVE_BYTES = 0.04, 256 << 20
#: buffers that streamed samples go through: one arrives, one is worked on, one leaves
SLOTS = 3
#: bytes of a buffer at most (about 10 ms of transfer, beside which the launches are nothing), samples of one at least
SLOT_BYTES, LEAST_SAMPLES = 512 << 20, 64
#: a buffer's samples are a multiple of this, so that rows are aligned to 16 bytes
ALIGNED = 32
#: N x N float64 matrices: one kept inverse, and while the next is made its system, factor, inverse factor and product
INVERSES = 6
#: N x M matrices in the working dtype: W, its copies and steps, the state, right-hand sides, two in float64
WEIGHTS = 16
BLOCKS = "blocks of outputs, and of inputs in float64"


@dataclass(frozen=True)
class MemoryPlan:
    """How the samples of a solve are laid out on a device.

    Attributes
    ----------
    device : str
        Its name.
    free, available : int
        Bytes that are free, and that a solve may take.
    fixed : dict of str to int
        Bytes that do not depend on the number of samples, by what they are for.
    per_sample : int
        Bytes of a sample: its columns of X, Y, Omega, V and the state.
    samples : int
        P.
    kept : int
        Samples that stay on the device; all of them unless `streamed`.
    width : int
        Samples of a buffer, through which those that do not stay come and go; 0 if all stay.
    buffers : int
        Bytes of the buffers, and of what is computed from one of them at a time.
    moved : int
        Bytes that an iteration moves over the bus, both ways together.
    page_locked : int
        Bytes of the host's memory that are locked for the transfers.
    """

    device: str
    free: int
    available: int
    fixed: dict[str, int] = field(default_factory=dict)
    per_sample: int = 0
    samples: int = 0
    kept: int = 0
    width: int = 0
    buffers: int = 0
    moved: int = 0
    page_locked: int = 0

    @property
    def streamed(self) -> bool:
        """Whether some samples do not stay on the device."""
        return self.kept < self.samples

    @property
    def needed(self) -> int:
        """Bytes of the device that the solve takes."""
        return sum(self.fixed.values()) + self.per_sample * self.kept + self.buffers

    def table(self) -> str:
        """The plan in a few lines."""
        rows = [(self.available, f"available of {as_bytes(self.free)} free on {self.device}")]
        rows += [(value, name) for name, value in self.fixed.items()]
        rows.append((self.per_sample * self.kept, f"{self.kept:,} of {self.samples:,} samples that stay"))
        if self.streamed:
            rows.append((self.buffers, f"{SLOTS} buffers of {self.width:,} samples for the others"))
        rows.append((self.needed, "in all"))
        lines = ["memory plan"] + [f"{as_bytes(value):>12}  {name}" for value, name in rows]
        if self.streamed:
            lines.append(
                f"{as_bytes(self.moved):>12}  moved by an iteration, through {as_bytes(self.page_locked)} of "
                "page-locked memory of the host"
            )
        return "\n".join(lines)


def plan(
    N: int,
    M: int,
    P: int,
    itemsize: int,
    free: int,
    limit: float | None = None,
    device: str = "the device",
    bounds: bool = False,
    there: int = 0,
    chunked: bool = False,
    block_bytes: int = 512 << 20,
) -> MemoryPlan:
    """Lay P samples of a layer with N inputs and M outputs out on a device.

    Parameters
    ----------
    N, M, P : int
        Inputs, outputs, samples.
    itemsize : int
        Bytes of a number: 4 or 8.
    free : int
        Bytes that are free on the device.
    limit : float, optional
        Bytes that the solve may take; default what is free, less a reserve.
    device : str
        Its name.
    bounds : bool
        Whether V is an array rather than a number.
    there : int
        Bytes a sample of X and Y that are on the device already.
    chunked : bool
        Whether samples have to come in chunks, even if all fit: those of a convolution, which are made so.
    block_bytes : int
        Bytes of outputs that are held at a time, beside the state.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    MemoryError
        Not even a buffer's worth of samples fits; the message holds the counts and says what to change.
    """
    available = int(free - max(RESERVE_PART * free, RESERVE_BYTES)) if limit is None else int(min(limit, free))
    side = N if chunked else min(N, P)
    fixed = {
        f"systems of {side:,} x {side:,} in float64": INVERSES * 8 * side**2,
        f"weights of {N:,} x {M:,} and their copies": WEIGHTS * itemsize * N * M,
        BLOCKS: max(2 * min(max(block_bytes, itemsize * P), itemsize * M * P), 2 * min(MOMENTS_BYTES, 8 * N * P)),
    }
    columns = itemsize * (N + 2 * M + (M if bounds else 0)) + M
    whole = MemoryPlan(device, free, available, fixed, columns - there, P, P)
    if whole.needed <= available and not chunked:
        return whole
    # what the caller has on the device is not used then, and outputs and moments are those of a buffer
    fixed = {f"systems of {N:,} x {N:,} in float64": INVERSES * 8 * N**2, **dict(list(fixed.items())[1:2])}
    buffer = SLOTS * columns + 2 * itemsize * M + 16 * N
    room = available - sum(fixed.values())
    # half for the buffers at most, unless the smallest ones need more
    width = max(room // (2 * buffer), min(room // buffer, LEAST_SAMPLES))
    width = min(P, SLOT_BYTES // columns, width)
    if P > LEAST_SAMPLES:
        width = width // ALIGNED * ALIGNED
    if width < min(LEAST_SAMPLES, P):
        least = f"without any samples {as_bytes(sum(fixed.values()))} are needed"
        raise MemoryError(f"the problem does not fit on {device}: {least}.\n{whole.table()}\n{ADVICE}")
    kept = min((room - buffer * width) // (columns * width), (P - 1) // width) * width
    streamed = P - kept
    # X, Y and Omega go up twice, the state up and down twice
    moved = streamed * (2 * columns + 2 * itemsize * M)
    locked = streamed * itemsize * M + SLOTS * width * (columns - itemsize * M)
    return MemoryPlan(device, free, available, fixed, columns, P, kept, width, buffer * width, moved, locked)


#: what a user can do about too little memory
ADVICE = (
    "Solve fewer neurons at a time (rows of Y; with neuronwise=True nothing is lost) or fewer samples, in float32, "
    'free what else is on the device, or use backend="numba".'
)

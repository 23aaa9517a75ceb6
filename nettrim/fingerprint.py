"""What tells one problem from another: a digest of all that its solution depends on, read a block of samples at a time.

Blocks of samples are hashed by themselves, so that whoever holds some of them can hash those: the digest does not
depend on where the samples are, or on how they lie there.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from nettrim.convolution import Convolution
from nettrim.problem import Problem

__all__ = ["block_of", "digests", "fingerprint"]

#: blocks at most
_BLOCKS = 4096


def block_of(P: int) -> int:
    """Samples of a block."""
    return -(-P // _BLOCKS)


def digests(problem: Problem, block: int) -> list[str]:
    """Of each block of so many samples: X, Y, Omega and V in the working dtype, the last two of a ReLU layer only."""
    found = []
    for first in range(0, problem.P, block):
        hashed = hashlib.sha256()
        X, Y, mask, V = problem.part(slice(first, min(first + block, problem.P)))
        for a in (X, Y, mask, None if mask is None or V.size == 1 else V):
            if a is not None:
                hashed.update(np.ascontiguousarray(a.T).data)
        found.append(hashed.hexdigest())
    return found


def fingerprint(problem: Problem) -> str:
    """Digest of a problem; reads its samples once.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    str
        The same for the same program on the same samples, in memory, on disk or on other machines.
    """
    p = problem
    about: dict[str, Any] = {
        "sizes": [p.N, p.M, p.P],
        "dtype": str(p.dtype),
        "radii": p.radii.tolist(),
        "linear": p.linear,
        "penalty": p.penalty.to_dict(),
        # off Omega; an array is part of the samples
        "V": repr(float(p.V[0, 0])) if p.V.size == 1 and not p.linear else None,
    }
    hashed = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    hashed.update(np.ascontiguousarray(np.broadcast_to(p.C, (p.N, p.M))).data)
    if p.compact:
        moments = p.moments()
        for a in (moments.XX, moments.XY, moments.YY):
            hashed.update(np.ascontiguousarray(a).data)
    elif isinstance(p.X, Convolution):
        # unfolded, its images would be hashed many times over
        hashed.update(repr((p.X.geometry, p.X.images.shape)).encode())
        for image in p.X.images:
            hashed.update(np.ascontiguousarray(image).data)
        for s in (slice(i, min(i + block_of(p.P), p.P)) for i in range(0, p.P, block_of(p.P))):
            for a in (p.Y[:, s], None if p.linear else p.mask[:, s], None if p.V.size == 1 else p.V[:, s]):
                if a is not None:
                    hashed.update(np.ascontiguousarray(a.T).data)
    else:
        block = block_of(p.P)
        found = digests(p, block) if p.shards is None else p.shards.digests(block)
        hashed.update(json.dumps(found).encode())
    return hashed.hexdigest()

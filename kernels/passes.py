"""Passes over the layer's samples for one neuron's working set, compiled by Numba (see nettrim/working_set.py)."""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.systems import FAST, OPTIONS

#: samples gathered at a time, and rows of a block of the symmetric product
_CHUNK, _ROWS = 512, 64


@nb.njit(**OPTIONS)
def gather_products(X, index, rows, old, G):
    """Fill G[old:, :] and G[:, old:] with the products of rows `rows` of X over the samples `index`, in float64.

    The leading old x old block is left as it is.
    """
    n = rows.size
    for i in range(old, n):
        for j in range(n):
            G[i, j] = 0.0
    for start in range(0, index.size, _CHUNK):
        stop = min(start + _CHUNK, index.size)
        block = np.empty((n, stop - start))
        for i in range(n):
            row = X[rows[i]]
            for q in range(start, stop):
                block[i, q - start] = row[index[q]]
        for first in range(old, n, _ROWS):
            last = min(first + _ROWS, n)
            G[first:last, :last] += np.dot(block[first:last], block[:last].T)
    for i in range(old, n):
        for j in range(i):
            G[j, i] = G[i, j]


@nb.njit(**OPTIONS)
def gather_columns(X, rows, columns, out):
    """out[i, k] = X[rows[i], columns[k]]."""
    for i in range(rows.size):
        row = X[rows[i]]
        for k in range(columns.size):
            out[i, k] = row[columns[k]]


@nb.njit(**OPTIONS)
def gather_block(X, index, rows):
    """Rows `rows` of X over the samples `index`, as (chunks, rows, _CHUNK); the last chunk ends in zeros."""
    chunks = -(-index.size // _CHUNK)
    block = np.empty((chunks, rows.size, _CHUNK), X.dtype)
    # no sign, which every access would look at
    part = np.empty(_CHUNK, np.uint32)
    for c in range(chunks):
        count = min(_CHUNK, index.size - c * _CHUNK)
        for k in range(count):
            part[k] = index[c * _CHUNK + k]
        block[c, :, count:] = 0
        gather_columns(X, rows, part[:count], block[c])
    return block


@nb.njit(**OPTIONS)
def block_products(block, count, G):
    """Fill the first `count` rows and columns of G, and its diagonal, with the products of the block's rows."""
    n = block.shape[1]
    for i in range(n):
        for j in range(n if i < count else 0):
            G[i, j] = 0.0
        G[i, i] = 0.0
    for first in range(0, count, _ROWS):
        last = min(first + _ROWS, count)
        # from the diagonal on
        product = np.empty((last - first, n - first), block.dtype)
        for c in range(block.shape[0]):
            np.dot(block[c, first:last], block[c, first:].T, product)
            for i in range(first, last):
                for j in range(i, n):
                    G[i, j] += product[i - first, j - first]
    for i in range(count, n):
        G[i, i] = block_product(block, i, i)
    for i in range(count):
        for j in range(i + 1, n):
            G[j, i] = G[i, j]


@nb.njit(**FAST)
def block_product(block, i, j):
    """The inner product of two rows of a block: in its dtype within chunks, in float64 over them."""
    total = 0.0
    for c in range(block.shape[0]):
        x, y, part = block[c, i], block[c, j], block.dtype.type(0)
        for p in range(x.size):
            part += x[p] * y[p]
        total += part
    return total


@nb.njit(**OPTIONS)
def judge_row(z, y, inside, upper, level):
    """Turn outputs z into residuals on Omega (zero elsewhere), and list the violated bounds off Omega.

    Returns the samples with z - v > level, their excess, the squared residual and the squared excess over the bounds.
    """
    P = z.size
    constant = upper.size == 1
    count, square, excess = 0, 0.0, 0.0
    for p in range(P):
        if inside[p]:
            z[p] -= y[p]
            square += np.float64(z[p]) * z[p]
        else:
            z[p] -= upper[0] if constant else upper[p]
            if z[p] > 0:
                excess += np.float64(z[p]) * z[p]
            if z[p] > level:
                count += 1
    samples, over, k = np.empty(count, np.int64), np.empty(count), 0
    for p in range(P):
        if not inside[p]:
            if z[p] > level:
                samples[k], over[k] = p, z[p]
                k += 1
            z[p] = 0
    return samples, over, square, excess

"""Inputs of a convolution layer as a matrix X that is never unfolded in full.

A convolution multiplies its weights with windows of the images. With one window a column, X is N x P, where N is
channels times the size of the kernel and P is images times positions of the window. Neighbouring windows overlap: X
would take the memory of the images times the size of the kernel.

The rows of X are in the order of ``weight.reshape(C_out, -1)`` of a torch layer (channel, then the kernel's rows and
columns), then the ones of a bias. Its columns run over the images, then the rows and columns of the output, so that
outputs of shape (B, M, h, w) are the M x P matrix ``outputs.transpose(1, 0, 2, 3).reshape(M, -1)``.
"""

from __future__ import annotations

from copy import copy as shallow_copy
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nettrim.arrays import to_host
from nettrim.geometry import Axis, Geometry

__all__ = ["Box", "Convolution"]

#: a slice of columns is unfolded with all windows of its images, if these are at most so many times as many
_WASTE = 2


class Box(NamedTuple):
    """A block of windows whose columns of X are adjacent: whole images, rows of one output, or a part of one row."""

    images: slice
    height: slice
    width: slice
    columns: slice


class Convolution:
    """X of a convolution layer, for `Problem` and `solve`: X[:, samples] unfolds some columns, nothing unfolds all.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> images = rng.standard_normal((20, 3, 8, 8))
    >>> weight, bias = rng.standard_normal((4, 3, 3, 3)) ** 3, rng.standard_normal(4)
    >>> X = nt.Convolution(images, kernel=3, padding=1, bias=True)
    >>> X.shape                                     # 3 channels of 3 x 3 and ones; 20 images of 8 x 8
    (28, 1280)
    >>> Y = np.maximum(X.matrix(weight, bias).T @ X[:, :], 0)   # or a layer's outputs, (20, 4, 8, 8)
    >>> sol = nt.solve(X, Y, epsilon=0.1)
    >>> sol.status
    <Status.SOLVED: 'solved'>
    >>> weight, bias = X.weight(sol.W)
    >>> weight.shape, bias.shape
    ((4, 3, 3, 3), (4,))

    Parameters
    ----------
    images : (B, C_in, H, W) or (B, C_in, L) array of a floating dtype
        Inputs of the layer, with any strides, or a memory map. Used as they are; what is not of the working dtype is
        converted a part at a time.
    kernel : int, tuple of int, or Geometry
        Size of the window; or a Geometry, which holds all that follows.
    stride, padding, dilation : int or tuple of int
        See `Geometry`; padding may also be "same", "valid" or pairs (before, after).
    bias : bool
        Whether X has a last row of ones.
    dtype : {None, numpy.float32, numpy.float64}
        Working precision; default that of the images, float32 for float16.

    Raises
    ------
    TypeError
        `images` are not of a floating dtype, `dtype` is not one of the two, or the geometry is of wrong types.
    ValueError
        `images` are empty, have other dimensions than the kernel or are smaller than it; or a wrong geometry.

    Attributes
    ----------
    shape : (N, P)
    output_shape : tuple of int
        Shape of an output: (h, w) or (l,).
    """

    ndim = 2

    def __init__(
        self,
        images: Any,
        kernel: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = False,
        dtype: Any = None,
    ):
        geometry = kernel if isinstance(kernel, Geometry) else Geometry(kernel, stride, padding, dilation, bias)
        #: as given, perhaps on a GPU
        self.given = images
        images = to_host(images, "images")
        if images.dtype.kind != "f":
            raise TypeError(f"images must be of a floating dtype; got {images.dtype}")
        self.dtype = np.result_type(images.dtype.newbyteorder("="), np.float32) if dtype is None else np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype must be float32 or float64; got {self.dtype}")
        if images.ndim != geometry.ndim + 2:
            form = "(B, C, L)" if geometry.ndim == 1 else "(B, C, H, W)"
            raise ValueError(f"images must be {form} for kernel {geometry.kernel}; got shape {images.shape}")
        if 0 in images.shape:
            raise ValueError(f"images are empty: shape {images.shape}")
        self.output_shape = geometry.output_shape(images.shape[2:])
        self.geometry = geometry
        # one dimension is the second of two
        self._images = images if geometry.ndim == 2 else images[:, :, None]
        self._axes = geometry.axes if geometry.ndim == 2 else (Axis(1, 1, 0, 0, 1), *geometry.axes)
        self._grid = (images.shape[0], *((1,) * (2 - geometry.ndim)), *self.output_shape)
        self._kernel = (images.shape[1], *(axis.kernel for axis in self._axes))
        self._entries = int(np.prod(self._kernel))
        self.shape = (self._entries + geometry.bias, int(np.prod(self._grid)))

    @property
    def images(self) -> np.ndarray:
        """The images, as they are on the host."""
        return self._images if self.geometry.ndim == 2 else self._images[:, :, 0]

    def astype(self, dtype: Any, copy: bool = False) -> Convolution:
        """The same in another working dtype; the images are not converted, whatever `copy` says."""
        if np.dtype(dtype) == self.dtype:
            return self
        other = shallow_copy(self)
        other.dtype = np.dtype(dtype)
        return other

    def __getitem__(self, key: Any) -> np.ndarray:
        """``X[:, samples]``: columns for a slice or sample numbers, (N, k)."""
        if not isinstance(key, tuple) or len(key) != 2 or key[0] != slice(None):
            raise IndexError("a Convolution gives columns only: X[:, samples]")
        return self.columns(key[1])

    # weights and outputs of a layer

    def matrix(self, weight: Any, bias: Any = None) -> np.ndarray:
        """Weights of a layer as the matrix W, (N, C_out).

        Parameters
        ----------
        weight : (C_out, C_in, ...) array
        bias : (C_out,) array, optional
            Given if and only if X has a row of ones.

        Returns
        -------
        (N, C_out) array

        Raises
        ------
        ValueError
            The shapes are not those of this layer, or a bias is given where X has no ones, or missing where it has.
        """
        weight = to_host(weight, "weight")
        kernel = self._kernel if self.geometry.ndim == 2 else (self._kernel[0], self._kernel[2])
        if weight.shape[1:] != kernel:
            raise ValueError(f"weight must be (C_out, {', '.join(map(str, kernel))}); got {weight.shape}")
        if (bias is None) == self.geometry.bias:
            raise ValueError("bias must be given if and only if X has a row of ones (bias=True)")
        rows = [weight.reshape(len(weight), -1).T]
        if bias is not None:
            rows.append(to_host(bias, "bias").reshape(1, -1))
        return np.vstack(rows)

    def weight(self, W: Any) -> tuple[Any, Any]:
        """Weights (C_out, C_in, ...) and bias (C_out,), or None without one, of a solution's W, (N, C_out).

        Raises
        ------
        ValueError
            W has another number of rows.
        """
        if W.shape[0] != self.shape[0]:
            raise ValueError(f"W must have {self.shape[0]} rows; got {W.shape}")
        kernel = self._kernel if self.geometry.ndim == 2 else (self._kernel[0], self._kernel[2])
        weight = W[: self._entries].T.reshape(W.shape[1], *kernel)
        return weight, W[self._entries] if self.geometry.bias else None

    def flatten(self, outputs: Any) -> Any:
        """Outputs (B, M, h, w) or (B, M, l) as the M x P matrix Y; a matrix or a number stays as it is.

        Raises
        ------
        ValueError
            Other numbers of images or positions.
        """
        if getattr(outputs, "ndim", 0) <= 2:
            return outputs
        outputs = to_host(outputs, "outputs")
        batch, spatial = self._images.shape[0], self.output_shape
        if outputs.shape[0] != batch or outputs.shape[2:] != spatial:
            expected = ", ".join(map(str, (batch, "M", *spatial)))
            raise ValueError(f"outputs of this layer are ({expected}); got {outputs.shape}")
        return np.moveaxis(outputs, 1, 0).reshape(outputs.shape[1], -1)

    # parts of X

    def columns(self, index: Any) -> np.ndarray:
        """Columns `index` of X, (N, k) in the working dtype, for a slice or k sample numbers in 0..P - 1.

        Raises
        ------
        ValueError
            A number is negative or not below P.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[1])
            windows = self._grid[1] * self._grid[2]
            first, last = start // windows, -(-stop // windows)
            if step == 1 and start < stop and (last - first) * windows <= _WASTE * (stop - start):
                return self._whole(first, last)[:, start - first * windows : stop - first * windows]
            index = np.arange(start, stop, step)
        b, *positions = np.unravel_index(np.atleast_1d(index), self._grid)
        out = np.zeros((self.shape[0], b.size), self.dtype)
        out[self._entries :] = 1
        windows = out[: self._entries].reshape(*self._kernel, b.size)
        for i, j in np.ndindex(self._kernel[1:]):
            y, x = (
                q * axis.stride + k * axis.dilation - axis.before
                for q, k, axis in zip(positions, (i, j), self._axes, strict=True)
            )
            inside = (y >= 0) & (y < self._images.shape[2]) & (x >= 0) & (x < self._images.shape[3])
            windows[:, i, j, inside] = self._images[b[inside], :, y[inside], x[inside]].T
        return out

    def row(self, n: int, out: np.ndarray | None = None) -> np.ndarray:
        """Row `n` of X, (P,): a channel's images, shifted. Into `out` if given, else new, in the working dtype.

        Raises
        ------
        ValueError
            `n` is negative or not below N.
        """
        N, P = self.shape
        if not 0 <= n < N:
            raise ValueError(f"n must be in 0..{N - 1}; got {n}")
        if out is None:
            out = np.empty(P, self.dtype)
        if n == self._entries:
            out.fill(1)
            return out
        c, i, j = np.unravel_index(n, self._kernel)
        (height, y), (width, x) = (
            axis.meeting(int(k), size) for axis, k, size in zip(self._axes, (i, j), self._images.shape[2:], strict=True)
        )
        out.fill(0)
        out.reshape(self._grid)[:, height, width] = self._images[:, c, y, x]
        return out

    def _whole(self, first: int, last: int) -> np.ndarray:
        """Columns of whole images."""
        windows = self._grid[1] * self._grid[2]
        X = np.empty((self.shape[0], (last - first) * windows), self.dtype)
        height, width = (slice(0, n) for n in self._grid[1:])
        box = Box(slice(first, last), height, width, slice(first * windows, last * windows))
        self._unfold(box, X, np.empty(0, self.dtype))
        return X

    def _unfold(self, box: Box, X: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """Copy the box's windows to X, its columns; returns `scratch` for the next."""
        part, scratch = self._padded(box, scratch)
        grid = [side.stop - side.start for side in box[:3]]
        images, channels, *steps = part.strides
        inner = [step * axis.dilation for step, axis in zip(steps, self._axes, strict=True)]
        outer = [step * axis.stride for step, axis in zip(steps, self._axes, strict=True)]
        windows = as_strided(part, (*self._kernel, *grid), (channels, *inner, images, *outer))
        X[: self._entries].reshape(windows.shape)[...] = windows
        X[self._entries :] = 1
        return scratch

    def _padded(self, box: Box, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Padded part of the images that the windows of a box see, in the working dtype; and `scratch`, for the next.

        It is a view where there is nothing to pad or to convert.
        """
        inside, within, whole = [], [], []
        for axis, positions, size in zip(self._axes, (box.height, box.width), self._images.shape[2:], strict=True):
            start, stop = axis.seen(positions)
            first = max(start, 0)
            last = max(min(stop, size), first)
            inside.append(slice(first, last))
            within.append(slice(first - start, last - start))
            whole.append(stop - start)
        images = self._images[box.images, :, inside[0], inside[1]]
        shape = (*images.shape[:2], *whole)
        if images.shape == shape and images.dtype == self.dtype and images.strides[3] == images.itemsize:
            return images, scratch
        if scratch.size < np.prod(shape):
            scratch = np.empty(np.prod(shape), self.dtype)
        part = scratch[: np.prod(shape)].reshape(shape)
        if images.shape != shape:
            part.fill(0)
        part[:, :, within[0], within[1]] = images
        return part, scratch

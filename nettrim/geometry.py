"""The geometry of a convolution: kernel, stride, padding, dilation, and what its windows see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Axis", "Geometry", "channel_groups"]


class Axis(NamedTuple):
    """A convolution along one dimension of the images."""

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    @property
    def extent(self) -> int:
        """Entries from the first to the last that a window sees."""
        return (self.kernel - 1) * self.dilation + 1

    def outputs(self, size: int) -> int:
        """Positions of the window on `size` entries; none if it does not fit."""
        return max(0, (size + self.before + self.after - self.extent) // self.stride + 1)

    def seen(self, positions: slice) -> tuple[int, int]:
        """First entry that windows at these positions see, and the one after the last; what is outside is padding."""
        start = positions.start * self.stride - self.before
        return start, start + (positions.stop - positions.start - 1) * self.stride + self.extent

    def meeting(self, k: int, size: int) -> tuple[slice, slice]:
        """Positions at which entry `k` of the kernel meets the image and not padding, and the entries it meets."""
        offset = k * self.dilation - self.before
        first = max(0, -(offset // self.stride))
        last = min(self.outputs(size), -((offset - size) // self.stride))
        start = first * self.stride + offset
        count = max(0, last - first)
        return slice(first, first + count), slice(start, start + count * self.stride, self.stride)


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and dilation of a convolution in one or two dimensions, as in torch's layers.

    An int counts for every dimension. The number of dimensions is that of the tuples given, and two if there is none.

    >>> from nettrim import Geometry
    >>> Geometry(3, padding="same").output_shape((32, 20))
    (32, 20)
    >>> Geometry((5,), stride=2).output_shape((32,))
    (14,)

    Parameters
    ----------
    kernel : int or tuple of int
        Size of the window.
    stride : int or tuple of int
    padding : int, tuple of int, tuple of (before, after), "same" or "valid"
        Zeros around the images. "same" keeps their size, with the one more of an odd number of zeros after them;
        "valid" is none.
    dilation : int or tuple of int
        Distance of the window's entries.
    bias : bool
        Whether X has a last row of ones.

    Raises
    ------
    TypeError
        An argument is of the wrong type.
    ValueError
        A size is too small, the tuples are not of one length of 1 or 2, or padding is "same" with a stride.

    Attributes
    ----------
    axes : tuple of Axis
        The same, by dimension.
    """

    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | str | tuple[int, ...] | tuple[tuple[int, int], ...] = 0
    dilation: int | tuple[int, ...] = 1
    bias: bool = False
    axes: tuple[Axis, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {"kernel": self.kernel, "stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        lengths = {name: len(value) for name, value in given.items() if isinstance(value, tuple)}
        if len(set(lengths.values())) > 1 or not set(lengths.values()) <= {1, 2}:
            found = ", ".join(f"{name} of {length}" for name, length in lengths.items())
            raise ValueError(f"tuples must have one entry for each dimension, 1 or 2; got {found}")
        ndim = next(iter(lengths.values()), 2)
        if not isinstance(self.bias, (bool, np.bool_)):
            raise TypeError(f"bias must be a bool; got {self.bias!r}")
        kernel, stride, dilation = (_integers(name, given[name], 1, ndim) for name in ("kernel", "stride", "dilation"))
        if self.padding == "same":
            if any(s != 1 for s in stride):
                raise ValueError(f'padding "same" needs stride 1; got stride {self.stride}')
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        elif self.padding == "valid":
            padding = ((0, 0),) * ndim
        elif isinstance(self.padding, str):
            raise ValueError(f'padding must be int, tuple, "same" or "valid"; got {self.padding!r}')
        else:
            entries = self.padding if isinstance(self.padding, tuple) else (self.padding,) * ndim
            padding = tuple(_pair(entry, self.padding) for entry in entries)
        axes = zip(kernel, stride, padding, dilation, strict=True)
        self._keep(kernel=kernel, stride=stride, padding=padding, dilation=dilation, bias=bool(self.bias))
        self._keep(axes=tuple(Axis(k, s, before, after, d) for k, s, (before, after), d in axes))

    def _keep(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def ndim(self) -> int:
        """1 or 2."""
        return len(self.axes)

    def output_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the outputs on images of shape `spatial`: (L,) or (H, W), without batch and channels.

        Raises
        ------
        ValueError
            Another number of dimensions, or a kernel that is larger than the padded image.
        """
        if len(spatial) != self.ndim:
            raise ValueError(f"spatial must have {self.ndim} entries, as the kernel has; got {tuple(spatial)}")
        shape = tuple(axis.outputs(size) for axis, size in zip(self.axes, spatial, strict=True))
        if 0 in shape:
            raise ValueError(
                f"kernel {self.kernel} with dilation {self.dilation} is larger than the image {tuple(spatial)} "
                f"with padding {self.padding}"
            )
        return shape


def _integers(name: str, value: Any, least: int, count: int) -> tuple[int, ...]:
    """`count` integers from one or from a tuple."""
    entries = value if isinstance(value, tuple) else (value,) * count
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (int, np.integer)):
            raise TypeError(f"{name} must be an int or a tuple of int; got {value!r}")
        if entry < least:
            raise ValueError(f"{name} must be at least {least}; got {value!r}")
    return tuple(int(entry) for entry in entries)


def _pair(entry: Any, padding: Any) -> tuple[int, int]:
    """(before, after) from an entry of `padding`."""
    if isinstance(entry, tuple) and len(entry) != 2:
        raise ValueError(f"padding must be (before, after) for each dimension; got {padding!r}")
    before, after = _integers("padding", entry, 0, 2)
    return before, after


def channel_groups(inputs: int, outputs: int, groups: int) -> list[tuple[slice, slice]]:
    """Channels of a grouped convolution, which is one problem a group: (input channels, output channels) of each.

    >>> from nettrim import channel_groups
    >>> channel_groups(4, 6, 2)
    [(slice(0, 2, None), slice(0, 3, None)), (slice(2, 4, None), slice(3, 6, None))]

    ``images[:, channels]`` is a view, and the group's own images.

    Parameters
    ----------
    inputs, outputs, groups : int

    Raises
    ------
    TypeError
        They are not integers.
    ValueError
        They are not positive, or the channels do not divide into groups.
    """
    for name, value in (("inputs", inputs), ("outputs", outputs), ("groups", groups)):
        _integers(name, value, 1, 1)
    if inputs % groups or outputs % groups:
        raise ValueError(f"{inputs} inputs and {outputs} outputs do not divide into {groups} groups")
    c, m = inputs // groups, outputs // groups
    return [(slice(g * c, (g + 1) * c), slice(g * m, (g + 1) * m)) for g in range(groups)]

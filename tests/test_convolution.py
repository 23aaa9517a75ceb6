"""X of a convolution layer, held against a matrix that is unfolded entry by entry, and against torch."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nettrim as nt
from nettrim import backends, unfolding
from nettrim import solution as certificate
from nettrim.backends.gemm import gemm
from nettrim.convolution import Convolution
from nettrim.geometry import Geometry, channel_groups
from nettrim.threads import blas_threads, limit
from nettrim.unfolding import Unfolding


def operator_of(images, geometry, backend, dtype) -> Unfolding:
    return Unfolding(Convolution(images, geometry), backend, dtype)


def unfold(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """X by its definition, entry by entry, for one or two dimensions, in float64."""
    padding = [(0, 0), (0, 0), *geometry.padding]
    padded = np.pad(images.astype(np.float64), padding)
    rows = []
    for c in range(images.shape[1]):
        for offset in np.ndindex(geometry.kernel):
            row = []
            for image in padded:
                sizes = zip(image.shape[1:], geometry.stride, geometry.dilation, geometry.kernel, strict=True)
                grid = [range(0, n - d * (k - 1), s) for n, s, d, k in sizes]
                for corner in np.ndindex(*(len(g) for g in grid)):
                    place = [g[q] + o * d for g, q, o, d in zip(grid, corner, offset, geometry.dilation, strict=True)]
                    row.append(image[c, *place])
            rows.append(row)
    if geometry.bias:
        rows.append([1.0] * len(rows[0]))
    return np.array(rows)


def tolerance(dtype) -> float:
    return 1e-4 if np.dtype(dtype) == np.float32 else 1e-11


@st.composite
def layers(draw, ndim=None):
    """(images, geometry): small, of one or two dimensions, with anything that a layer may have."""
    ndim = ndim or draw(st.integers(1, 2))

    def each(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * ndim))

    kernel, dilation = each(1, 4), each(1, 3)
    kind = draw(st.sampled_from(["ints", "pairs", "same", "valid"]))
    stride = (1,) * ndim if kind == "same" else each(1, 3)
    pairs = tuple(zip(each(0, 5), each(0, 5), strict=True))
    padding = {"ints": tuple(pair[0] for pair in pairs), "pairs": pairs}.get(kind, kind)
    geometry = Geometry(kernel, stride, padding, dilation, draw(st.booleans()))
    spatial = tuple(
        max(1, (k - 1) * d + 1 - sum(pair)) + extra
        for k, d, pair, extra in zip(kernel, dilation, geometry.padding, each(0, 5), strict=True)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.standard_normal((draw(st.integers(1, 4)), draw(st.integers(1, 3)), *spatial)), geometry


def layer(geometry: Geometry, shape: tuple[int, ...]) -> tuple[np.ndarray, Geometry]:
    return np.random.default_rng(0).standard_normal(shape), geometry


#: windows that see nothing but padding, and entries of the images that no window sees
SPARSE = layer(Geometry((2, 3), (3, 2), ((5, 0), (0, 4)), (1, 2), True), (2, 1, 6, 4))
#: torch pads an even kernel after the images
EVEN = layer(Geometry((4, 2), padding="same", bias=True), (2, 3, 5, 6))
ONE_DIMENSION = layer(Geometry((3,), 2, 1, 2), (3, 2, 11))
ONE_WINDOW = layer(Geometry(1), (1, 1, 1, 1))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def use_chunks(patch: pytest.MonkeyPatch, columns: int) -> None:
    """Chunks of at most so many windows, and threads for the smallest work."""
    patch.setattr(unfolding, "_THREAD_BYTES", 1)
    patch.setattr(unfolding, "_CHUNK_BYTES", 1)
    patch.setattr(unfolding, "_LEAST_COLUMNS", columns)


@pytest.fixture
def tiny_chunks(monkeypatch):
    use_chunks(monkeypatch, 5)


@given(layers(), st.sampled_from([np.float32, np.float64]), st.integers(1, 4), st.integers(1, 50))
@example(SPARSE, np.float64, 2, 1)
@example(SPARSE, np.float32, 1, 50)
@example(EVEN, np.float32, 3, 12)
@example(ONE_DIMENSION, np.float64, 1, 2)
@example(ONE_WINDOW, np.float32, 1, 50)
def test_adjoint(layer, dtype, M, columns):
    """<A(W), Z> = <W, A*(Z)>, and A(W) = W^T X."""
    images, geometry = layer
    X, rng, tol = unfold(images, geometry), np.random.default_rng(0), tolerance(dtype)
    W, Z = (rng.standard_normal(shape).astype(dtype) for shape in ((X.shape[0], M), (M, X.shape[1])))
    for backend in ("numpy", "numba"):
        operator = operator_of(images, geometry, backends.get(backend, 2), dtype)
        assert operator.shape == X.shape
        with pytest.MonkeyPatch.context() as patch:
            use_chunks(patch, columns)
            forward, adjoint = operator.forward(W, np.full(Z.shape, np.nan, dtype)), operator.adjoint(Z)
        assert forward.dtype == adjoint.dtype == dtype
        np.testing.assert_allclose(forward, W.T @ X, atol=tol)
        np.testing.assert_allclose(adjoint, X @ Z.T, atol=tol * np.sqrt(X.shape[1]))
        size = float(np.linalg.norm(forward) * np.linalg.norm(Z))
        assert np.vdot(forward, Z) == pytest.approx(np.vdot(W, adjoint), abs=tol * max(size, 1))


@given(layers(), st.sampled_from([np.float32, np.float64]))
@example(SPARSE, np.float64)
@example(EVEN, np.float32)
@example(ONE_DIMENSION, np.float32)
def test_parts_of_the_matrix(layer, dtype):
    """Rows, columns and second moments are those of the unfolded matrix; copies are exact."""
    images, geometry = layer
    images = images.astype(dtype)
    X = unfold(images, geometry)
    operator = operator_of(images, geometry, backends.get("numpy"), dtype)
    columns = operator.columns(np.arange(X.shape[1]))
    assert columns.dtype == dtype
    np.testing.assert_array_equal(columns, X)
    np.testing.assert_array_equal([operator.row(n) for n in range(X.shape[0])], X)
    gram = operator.gram()
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, X @ X.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)


def test_columns_in_any_order(rng):
    images, geometry = SPARSE
    X = unfold(images, geometry)
    operator = operator_of(images, geometry, backends.get("numpy"), np.float64)
    index = rng.integers(0, X.shape[1], 30)
    np.testing.assert_array_equal(operator.columns(index), X[:, index])
    assert operator.columns(index[:0]).shape == (X.shape[0], 0)
    for wrong in (-1, X.shape[1]):
        with pytest.raises(ValueError, match="bounds"):
            operator.columns([0, wrong])


def test_row_into_a_given_array(dtype):
    images, geometry = SPARSE
    X = unfold(images, geometry)
    operator = operator_of(images, geometry, backends.get("numpy"), np.float64)
    out = np.full((X.shape[1], 2), np.nan, dtype)
    for n, row in enumerate(X):
        # a column of a matrix: not contiguous
        assert operator.row(n, out[:, 0]).base is out
        np.testing.assert_allclose(out[:, 0], row, rtol=1e-6)
    assert np.isnan(out[:, 1]).all()
    for wrong in (-1, X.shape[0]):
        with pytest.raises(ValueError, match="n must be in"):
            operator.row(wrong)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("columns", [1, 3, 7, 8, 30, 56, 57, 112, 10_000])
def test_chunk_boundaries(backend, rng, dtype, columns, n_threads, monkeypatch):
    """Parts of a row of an output, rows, images: 5 images with outputs of 7 x 8, by any number of windows."""
    images, geometry = rng.standard_normal((5, 2, 8, 8)).astype(dtype), Geometry((2, 3), padding=(0, 1), bias=True)
    use_chunks(monkeypatch, columns)
    X, operator = unfold(images, geometry), operator_of(images, geometry, backends.get(backend, n_threads), dtype)
    W, Z = (rng.standard_normal(shape).astype(dtype) for shape in ((13, 4), (4, 280)))
    expected, out = 0.5 * W.T @ X - 2 * Z, Z.copy()
    assert operator.forward(W, out, 0.5, -2.0) is out
    np.testing.assert_allclose(out, expected, atol=tolerance(dtype))
    np.testing.assert_allclose(operator.adjoint(Z), X @ Z.T, atol=10 * tolerance(dtype))
    np.testing.assert_allclose(operator.gram(), X @ X.T, atol=1e-10)


@pytest.mark.parametrize("columns", [1, 10, 100])
def test_chunks_are_bounded(rng, columns, monkeypatch):
    """Every column once, in order, in blocks no larger than allowed; the parts of a long row, too."""
    # by bytes here
    monkeypatch.setattr(unfolding, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(unfolding, "_CHUNK_BYTES", columns * 6 * 8)
    for shape, geometry in (((3, 6, 4, 5), Geometry(1)), ((2, 6, 300), Geometry((1,)))):
        images = rng.standard_normal(shape)
        operator = operator_of(images, geometry, backends.get("numpy"), np.float64)
        X, end = unfold(images, geometry), 0
        for box, chunk in operator._chunks(operator._boxes(np.dtype(np.float64)), np.dtype(np.float64)):
            assert box.columns.start == end
            end = box.columns.stop
            assert chunk.shape[1] <= columns
            np.testing.assert_array_equal(chunk, X[:, box.columns])
        assert end == X.shape[1]


def test_same_number_of_threads_same_bits(rng, tiny_chunks):
    images, geometry = rng.standard_normal((6, 3, 9, 9)), Geometry(3, padding=1)
    operator = operator_of(images, geometry, backends.get("numba", 3), np.float64)
    Z = rng.standard_normal((4, operator.shape[1]))
    first = operator.adjoint(Z)
    for _ in range(20):
        np.testing.assert_array_equal(operator.adjoint(Z), first)


def test_blas_has_one_thread_meanwhile(rng, tiny_chunks):
    """Each of the operator's own threads has BLAS's; the number before is there again afterwards."""
    images, seen = rng.standard_normal((6, 3, 9, 9)), []
    operator = operator_of(images, Geometry(3), backends.get("numba", 2), np.float64)

    def product(*arguments):
        seen.append((blas_threads(), threading.get_ident()))
        gemm(*arguments)

    operator._product = product
    with limit(2):
        operator.forward(rng.standard_normal((27, 2)), np.empty((2, 6 * 49)))
        assert blas_threads() == 2
    threads, callers = zip(*seen, strict=True)
    assert set(threads) == {1}
    assert threading.get_ident() not in callers


def as_stored(images: np.ndarray, storage: str, folder) -> np.ndarray:
    """The same numbers in another memory layout."""
    if storage == "channels last":
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if storage == "every other":
        wide = np.full((images.shape[0], 2 * images.shape[1], *images.shape[2:]), np.nan, images.dtype)
        wide[:, ::2] = images
        return wide[:, ::2]
    if storage == "reversed":
        return np.ascontiguousarray(images[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1]
    if storage == "big-endian":
        return images.astype(images.dtype.newbyteorder(">"))
    if storage == "read-only":
        images.flags.writeable = False
        return images
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(
    "storage", ["channels last", "every other", "reversed", "big-endian", "read-only", "memory map"]
)
@pytest.mark.parametrize("given_in", [np.float16, np.float32, np.float64])
def test_any_storage(backend, rng, dtype, storage, padding, given_in, tmp_path, tiny_chunks):
    images = rng.standard_normal((3, 4, 6, 5)).astype(given_in)
    geometry = Geometry((3, 2), (1, 2), padding, bias=True)
    X = unfold(images, geometry)
    before = images.copy()
    operator = operator_of(as_stored(images, storage, tmp_path), geometry, backends.get(backend, 2), dtype)
    W, Z = (rng.standard_normal(shape).astype(dtype) for shape in ((X.shape[0], 3), (3, X.shape[1])))
    tol = tolerance(dtype)
    np.testing.assert_allclose(operator.forward(W, np.empty_like(Z)), W.T @ X, atol=tol)
    np.testing.assert_allclose(operator.adjoint(Z), X @ Z.T, atol=10 * tol)
    np.testing.assert_allclose(operator.gram(), X @ X.T, atol=10 * tol)
    np.testing.assert_allclose(operator.columns([3, 0, 5]), X[:, [3, 0, 5]], rtol=1e-6)
    np.testing.assert_allclose(operator.row(7), X[7], rtol=1e-6)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("storage", ["channels last", "read-only", "memory map"])
def test_memory_is_that_of_chunks(rng, tmp_path, monkeypatch, storage):
    """Neither X nor a converted or padded copy of the images: 26 and 3 MB in the working dtype."""
    monkeypatch.setattr(unfolding, "_CHUNK_BYTES", 1 << 18)
    images = as_stored(rng.standard_normal((200, 2, 30, 30)).astype(np.float32), storage, tmp_path)
    operator = operator_of(images, Geometry(3, padding=1), backends.get("numba", 1), np.float64)
    W, Z = rng.standard_normal((18, 1)), rng.standard_normal((1, operator.shape[1]))
    row = np.empty(operator.shape[1])
    for call in (
        lambda: operator.forward(W, Z),
        lambda: operator.adjoint(Z),
        operator.gram,
        lambda: operator.columns(np.arange(100)),
        lambda: operator.row(4, row),
    ):
        call()
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.6e6


@pytest.mark.parametrize("weights", ["rows", "columns", "block"])
def test_weights_and_outputs_of_any_layout(backend, rng, weights, tiny_chunks):
    """ADMM passes blocks of columns of W and of rows of Z."""
    images, geometry = EVEN
    X, operator = unfold(images, geometry), operator_of(images, geometry, backends.get(backend, 2), np.float64)
    W, outputs = rng.standard_normal((X.shape[0], 6)), rng.standard_normal((8, X.shape[1]))
    W = np.asarray(W, order="F" if weights == "columns" else "C")
    if weights == "block":
        W = W[:, 1:4]
    Z = outputs[1 : 1 + W.shape[1]]
    before = outputs.copy()
    operator.forward(W, Z, 1.0, 1.0)
    np.testing.assert_allclose(Z, before[1 : 1 + W.shape[1]] + W.T @ X, atol=1e-11)
    np.testing.assert_array_equal(outputs[[0, 7]], before[[0, 7]])
    np.testing.assert_allclose(operator.adjoint(Z), X @ Z.T, atol=1e-10)


def test_a_group_is_a_layer_on_a_view(rng):
    """Outputs of a grouped convolution, entry by entry over all channels, are those of its groups."""
    images, geometry = rng.standard_normal((2, 6, 5, 4)), Geometry(2, bias=True)
    groups = channel_groups(6, 4, 2)
    weights, whole = rng.standard_normal((4, 3 * 4)), np.zeros((4, 6 * 4 + 1))
    for c, m in groups:
        whole[m, 4 * c.start : 4 * c.stop] = weights[m]
        assert np.shares_memory(images[:, c], images)
    whole[:, -1] = bias = rng.standard_normal(4)
    expected, found = whole @ unfold(images, geometry), np.empty((4, 2 * 4 * 3))
    for c, m in groups:
        W = np.vstack([weights[m].T, bias[m]])
        operator_of(images[:, c], geometry, backends.get("numba"), np.float64).forward(W, found[m])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_groups_divide_all_channels():
    assert channel_groups(3, 5, 1) == [(slice(0, 3), slice(0, 5))]
    depthwise = channel_groups(3, 6, 3)
    assert [c for c, _ in depthwise] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert [m for _, m in depthwise] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    for wrong in ((4, 6, 4), (5, 6, 2), (0, 6, 1), (4, 4, 0)):
        with pytest.raises(ValueError):
            channel_groups(*wrong)
    with pytest.raises(TypeError, match="groups must be"):
        channel_groups(4, 4, 2.0)


@given(layers())
@example(EVEN)
@example(SPARSE)
@example(ONE_DIMENSION)
def test_equals_torch(torch, layer):
    """Orders of rows and columns are those of torch's weights and outputs."""
    images, geometry = layer
    rng, M = np.random.default_rng(0), 3
    weight = rng.standard_normal((M, images.shape[1], *geometry.kernel))
    bias = rng.standard_normal(M) if geometry.bias else None
    padded = torch.nn.functional.pad(torch.tensor(images), [p for pair in geometry.padding[::-1] for p in pair])
    conv = torch.nn.functional.conv1d if geometry.ndim == 1 else torch.nn.functional.conv2d
    arguments = torch.tensor(weight), None if bias is None else torch.tensor(bias), geometry.stride
    outputs = conv(padded, *arguments, 0, geometry.dilation).numpy()
    W = weight.reshape(M, -1).T
    if bias is not None:
        W = np.vstack([W, bias])
    # torch's own tensors are images, too
    operator = operator_of(torch.tensor(images), geometry, backends.get("numba"), np.float64)
    assert outputs.shape[2:] == operator.output_shape
    Z = operator.forward(W, np.empty((M, operator.shape[1])))
    np.testing.assert_allclose(Z, np.moveaxis(outputs, 1, 0).reshape(M, -1), atol=1e-11)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(st.integers(1, 6), st.integers(1, 3), st.integers(12, 16))
@example(4, 1, 12)
@example(2, 3, 13)
def test_same_padding_is_torchs(torch, kernel, dilation, size):
    rng = np.random.default_rng(0)
    images, weight = rng.standard_normal((2, 1, size)), rng.standard_normal((1, 1, kernel))
    expected = torch.nn.functional.conv1d(torch.tensor(images), torch.tensor(weight), padding="same", dilation=dilation)
    geometry = Geometry((kernel,), padding="same", dilation=dilation)
    operator = operator_of(images, geometry, backends.get("numpy"), np.float64)
    Z = operator.forward(weight.reshape(1, -1).T, np.empty((1, operator.shape[1])))
    np.testing.assert_allclose(Z, expected.numpy().reshape(1, -1), atol=1e-12)


def test_geometry_of_ints_and_tuples():
    geometry = Geometry(3, padding=1)
    assert (geometry.kernel, geometry.stride, geometry.padding) == ((3, 3), (1, 1), ((1, 1), (1, 1)))
    assert geometry == Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert Geometry(np.int64(3), stride=(2,)).kernel == (3,)
    assert Geometry(4, padding="same").padding == ((1, 2), (1, 2))
    assert Geometry((2, 3), padding=(1, (0, 2))).padding == ((1, 1), (0, 2))
    assert Geometry((3, 2), 2, "valid", (1, 4)).output_shape((9, 9)) == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"kernel": 0}, ValueError, "kernel must be at least 1"),
        ({"kernel": (3, -1)}, ValueError, "kernel must be at least 1"),
        ({"kernel": 2.0}, TypeError, "kernel must be an int"),
        ({"kernel": [3, 3]}, TypeError, "kernel must be an int"),
        ({"kernel": True}, TypeError, "kernel must be an int"),
        ({"kernel": (3, 3, 3)}, ValueError, "1 or 2; got kernel of 3"),
        ({"kernel": ()}, ValueError, "1 or 2; got kernel of 0"),
        ({"kernel": (3, 3), "stride": (1,)}, ValueError, "got kernel of 2, stride of 1"),
        ({"kernel": 3, "stride": 0}, ValueError, "stride must be at least 1"),
        ({"kernel": 3, "dilation": 0}, ValueError, "dilation must be at least 1"),
        ({"kernel": 3, "padding": -1}, ValueError, "padding must be at least 0"),
        ({"kernel": 3, "padding": (1, -1)}, ValueError, "padding must be at least 0"),
        ({"kernel": 3, "padding": 0.5}, TypeError, "padding must be an int"),
        ({"kernel": 3, "padding": ((1, 2, 3), (0, 0))}, ValueError, "padding must be (before, after)"),
        ({"kernel": 3, "padding": "full"}, ValueError, "'full'"),
        ({"kernel": 3, "padding": "same", "stride": 2}, ValueError, "needs stride 1"),
        ({"kernel": 3, "bias": 1}, TypeError, "bias must be a bool"),
    ],
)
def test_geometry_refuses(arguments, error, match):
    with pytest.raises(error) as caught:
        Geometry(**arguments)
    assert match in str(caught.value)


def test_kernel_larger_than_the_image():
    assert Geometry(3, dilation=2).output_shape((5, 5)) == (1, 1)
    # one entry more than the stride steps back: the floor of a negative number must not pass as a position
    for geometry, size in (
        (Geometry(3, dilation=2), (5, 4)),
        (Geometry(4, stride=3, padding=1), (1, 9)),
        (Geometry((7, 1)), (2, 9)),
    ):
        with pytest.raises(ValueError, match="larger than the image"):
            geometry.output_shape(size)
    with pytest.raises(ValueError, match="spatial must have 1"):
        Geometry((3,)).output_shape((5, 5))


def test_convolution_refuses(rng):
    images, geometry = rng.standard_normal((2, 3, 5, 5)), Geometry(3)
    for arguments, error, match in (
        ((images, 3.0), TypeError, "kernel must be an int"),
        ((images.astype(int), geometry), TypeError, "images must be of a floating dtype"),
        ((images[0], geometry), ValueError, "images must be (B, C, H, W)"),
        ((images, Geometry((3,))), ValueError, "images must be (B, C, L)"),
        ((images[:0], geometry), ValueError, "images are empty"),
        ((images[..., :2], geometry), ValueError, "larger than the image"),
    ):
        with pytest.raises(error) as caught:
            Convolution(*arguments)
        assert match in str(caught.value)
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        Convolution(images, geometry, dtype=np.float16)

    class Elsewhere:
        on_host, name = False, "elsewhere"

    with pytest.raises(ValueError, match="backend must be on the host"):
        operator_of(images, geometry, Elsewhere(), np.float64)


@given(layers(), st.data())
@example(SPARSE, None)
@example(EVEN, None)
@example(ONE_DIMENSION, None)
def test_slices_of_columns(layer, data):
    images, geometry = layer
    X, lazy = unfold(images, geometry), Convolution(images, geometry)
    P = X.shape[1]
    pairs = [(0, P), (0, 1), (P // 2, P), (1, P - 1), (P, P)]
    if data is not None:
        pairs.append((data.draw(st.integers(0, P)), data.draw(st.integers(0, P))))
    for start, stop in pairs:
        np.testing.assert_array_equal(lazy[:, start:stop], X[:, start:stop])
    np.testing.assert_array_equal(lazy[:, ::3], X[:, ::3])
    np.testing.assert_array_equal(lazy[:, -2:], X[:, -2:])


def test_only_columns_can_be_taken(rng):
    X = Convolution(rng.standard_normal((2, 1, 4, 4)), 3)
    for key in (0, (0, 0), slice(3), (slice(3), slice(None))):
        with pytest.raises(IndexError, match="columns only"):
            X[key]


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 7)], ids=["2-d", "1-d"])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_a_layer_there_and_back(rng, shape, bias):
    kernel = (2, 3)[: len(shape) - 2]
    X = Convolution(rng.standard_normal(shape), kernel, bias=bias)
    weight, b = rng.standard_normal((4, 3, *kernel)), rng.standard_normal(4) if bias else None
    W = X.matrix(weight, b)
    assert W.shape == (X.shape[0], 4)
    back, back_b = X.weight(W)
    np.testing.assert_array_equal(back, weight)
    if bias:
        np.testing.assert_array_equal(back_b, b)
    else:
        assert back_b is None
    outputs = rng.standard_normal((2, 4, *X.output_shape))
    Y = X.flatten(outputs)
    assert Y.shape == (4, X.shape[1])
    np.testing.assert_array_equal(Y[1, : X.shape[1] // 2], outputs[0, 1].ravel())
    assert X.flatten(Y) is Y and X.flatten("active") == "active"
    for call, match in (
        (lambda: X.matrix(weight[:, :2], b), "weight must be"),
        (lambda: X.matrix(weight, None if bias else np.zeros(4)), "bias must be given if"),
        (lambda: X.weight(W[1:]), "W must have"),
        (lambda: X.flatten(outputs[:1]), "outputs of this layer"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_another_precision_shares_the_images(rng):
    X = Convolution(rng.standard_normal((2, 1, 4, 4)).astype(np.float32), 3)
    other = X.astype(np.float64)
    assert X.dtype == np.float32 and other.dtype == np.float64
    assert other.images is X.images and X.astype(np.float32) is X
    assert Convolution(X.images.astype(np.float16), 3).dtype == np.float32


# whole problems


def convolution_layer(rng, shape=(12, 3, 7, 6), M=4, dtype=np.float64, **geometry):
    """(X, Y as a layer puts it out, before the ReLU)."""
    options = {"kernel": 3, "padding": 1, "bias": True} | geometry
    X = Convolution(rng.standard_normal(shape).astype(dtype), **options)
    W = rng.standard_normal((X.shape[0], M)) ** 3
    Z = (W.T @ unfold(X.images, X.geometry)).astype(dtype)
    return X, np.moveaxis(Z.reshape(M, shape[0], *X.output_shape), 0, 1)


SOLVES = {
    "relu": {},
    "stride": {"stride": 2, "padding": (0, 1)},
    "no bias": {"bias": False},
    "one dimension": {"shape": (20, 4, 15), "kernel": (5,), "padding": 2},
    "more inputs than samples": {"shape": (2, 6, 5, 5), "padding": 0},
    "float32": {"dtype": np.float32},
}


@pytest.mark.parametrize("kind", SOLVES)
def test_solve_equals_the_unfolded_layer(rng, kind, method, backend):
    """The same certified optimum, by the same path, as with X unfolded in full."""
    X, outputs = convolution_layer(rng, **SOLVES[kind])
    Y = np.maximum(outputs, 0)
    problem = nt.Problem(X, Y, 0.1)
    dense = nt.Problem(unfold(X.images, X.geometry).astype(X.dtype), X.flatten(Y), 0.1)
    assert (problem.N, problem.M, problem.P) == (dense.N, dense.M, dense.P)
    settings = {"method": method, "backend": backend, "polish": False, "gap_tol": 1e-4, "feas_tol": 1e-4}
    ours, plain = (nt.Solver(p, **settings).solve() for p in (problem, dense))
    assert ours.status == plain.status == nt.Status.SOLVED
    assert ours.certificate.objective == pytest.approx(plain.certificate.objective, rel=3e-4)
    # weights of the one are weights of the other
    for solution in (ours, plain):
        a, b = (nt.certify(p, solution.W, solution.dual) for p in (problem, dense))
        assert a.objective == pytest.approx(b.objective, rel=1e-9)
        assert a.dual_bound == pytest.approx(b.dual_bound, rel=1e-6)
        assert (a.nnz, a.violation) == (b.nnz, pytest.approx(b.violation, rel=1e-4, abs=1e-8))


@pytest.mark.parametrize("method", ["admm", "working_set", "auto"])
def test_a_free_bias_and_bounds(rng, method):
    X, outputs = convolution_layer(rng)
    C = np.ones((X.shape[0], 1))
    C[-1] = 0
    V = np.abs(rng.standard_normal(outputs.shape))
    options = {"omega": outputs > 0, "V": V, "C": C, "neuronwise": True}
    problem = nt.Problem(X, np.maximum(outputs, 0), 0.1, **options)
    flat = options | {"omega": X.flatten(options["omega"]), "V": X.flatten(V)}
    dense = nt.Problem(unfold(X.images, X.geometry), problem.Y, 0.1, **flat)
    settings = {"method": method, "gap_tol": 1e-6, "feas_tol": 1e-6}
    ours, plain = (nt.Solver(p, **settings).solve() for p in (problem, dense))
    assert ours.status == plain.status == nt.Status.SOLVED
    assert ours.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-5)


def test_a_linear_layer_needs_its_moments_only(rng):
    X, outputs = convolution_layer(rng, dtype=np.float64)
    problem = nt.Problem(X, outputs, 0.1, omega="linear")
    assert problem.compact
    gram = nt.Gram(X.shape[0], outputs.shape[1]).add(X, outputs)
    a, b = (nt.Solver(p, gap_tol=1e-8).solve() for p in (problem, nt.Problem.from_gram(gram, 0.1)))
    assert a.status == b.status == nt.Status.SOLVED
    assert a.certificate.objective == pytest.approx(b.certificate.objective, rel=1e-7)


def test_warm_starts_and_changes(rng):
    X, outputs = convolution_layer(rng)
    solver = nt.Solver(nt.Problem(X, np.maximum(outputs, 0), 0.1), gap_tol=1e-6)
    first = solver.solve()
    assert solver.update(epsilon=0.2).solve().density < first.density
    assert solver.problem.X is X
    assert solver.update(epsilon=0.1).solve().certificate.objective == pytest.approx(
        first.certificate.objective, rel=1e-5
    )


def test_infeasible(rng):
    """Two equal images with different outputs."""
    images = rng.standard_normal((1, 1, 5, 5)).repeat(2, axis=0)
    X = Convolution(images, 3)
    Y = np.abs(rng.standard_normal((2, 2, 3, 3))) + np.array([0, 5])[:, None, None, None]
    problem = nt.Problem(X, Y, 0.01)
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert nt.verify_ray(problem, solution.ray) > 1e4


def test_agrees_with_cvxpy(rng):
    X, outputs = convolution_layer(rng, shape=(4, 2, 5, 5), M=2)
    problem = nt.Problem(X, np.maximum(outputs, 0), 0.1)
    ours = nt.Solver(problem, gap_tol=1e-9, feas_tol=1e-9).solve()
    pytest.importorskip("cvxpy")
    reference = nt.reference.solve(problem, "CLARABEL")
    assert ours.certificate.objective == pytest.approx(reference.certificate.objective, rel=1e-7)


def test_bad_images_are_named(rng):
    images = rng.standard_normal((2, 1, 4, 4))
    Y = np.abs(rng.standard_normal((2, 3, 2, 2)))
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="images of X contains NaN"):
        nt.Problem(Convolution(images, 3), Y, 0.1)
    images[0, 0, 0, 0] = 1e300
    with pytest.raises(ValueError, match="X contains inf in float32"):
        nt.Problem(Convolution(images, 3), Y, 0.1, dtype=np.float32)
    with pytest.raises(ValueError, match="outputs of this layer are"):
        nt.Problem(Convolution(images, 3), Y[:, :, :1], 0.1)


def test_memory_of_a_solve(rng):
    """The unfolded matrix would take 12 MB; what ADMM holds beside the outputs is a fraction of it."""
    images = rng.standard_normal((60, 8, 16, 16)).astype(np.float32)
    X = Convolution(images, 3, padding=1)
    W = rng.standard_normal((72, 2)).astype(np.float32) ** 3
    Y = np.maximum(W.T @ X[:, :], 0)
    solver = nt.Solver(nt.Problem(X, Y, 0.1), method="admm", backend="numba", max_iterations=3)
    solver.solve()
    with pytest.MonkeyPatch.context() as patch:
        for module in (unfolding, certificate):
            patch.setattr(module, "_CHUNK_BYTES", 1 << 18)
        tracemalloc.start()
        solver.solve()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    unfolded = X.shape[0] * X.shape[1] * 4
    assert unfolded > 4e6 and peak < unfolded

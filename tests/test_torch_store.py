"""Models on disk, bit for bit and whole or not at all; sizes against the bytes that are written; latencies."""

from __future__ import annotations

import json
import math
import os
import sys

import pytest
import scipy.sparse

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
safetensors_torch = pytest.importorskip("safetensors.torch")

from nettrim import report  # noqa: E402
from nettrim.torch import store  # noqa: E402
from nettrim.torch.store import latency, load, save, sizes  # noqa: E402

ABOUT = {"scheme": "cascade", "kept": 0.25, "layers": [{"name": "conv", "gap": 1e-4}, {"name": "fc", "gap": None}]}


class Net(torch.nn.Module):
    """A convolution, a batch norm with its buffers, and a dense layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 6, 3)
        self.norm = torch.nn.BatchNorm2d(6)
        self.fc = torch.nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).flatten(1))


def made(dtype=torch.float32, seed=0):
    """With about a third of the weights left, an empty row, and a NaN and an infinity among them."""
    torch.manual_seed(seed)
    model = Net().to(dtype)
    with torch.no_grad():
        for p in (model.conv.weight, model.fc.weight):
            p.masked_fill_(torch.rand(p.shape) < 0.67, 0)
            p[2] = 0
            p.view(-1)[[0, 1]] = torch.tensor([math.nan, math.inf], dtype=dtype)
    model.norm.num_batches_tracked.fill_(7)
    return model


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def same(left, right):
    return left.keys() == right.keys() and all(bits(left[key]) == bits(right[key]) for key in left)


def raw(path):
    """Tensors and metadata as any reader finds them."""
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def rewrite(path, tensors=None, **metadata):
    """The file with other tensors or metadata; None leaves a key out."""
    old, about = raw(path)
    about = {key: value for key, value in (about | metadata).items() if value is not None}
    path.write_bytes(safetensors_torch.save(old if tensors is None else tensors, about))


# save and load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_round_trip_is_bit_for_bit(tmp_path, layout, dtype):
    model, other = made(dtype), made(dtype, seed=1)
    path = tmp_path / "net.safetensors"
    save(path, model, ABOUT, layout)
    state, about = load(path)
    assert same(state, model.state_dict())
    assert about == ABOUT
    assert not same(other.state_dict(), model.state_dict())
    load(path, other)
    assert same(other.state_dict(), model.state_dict())


def test_a_dense_file_is_a_plain_state_dict(tmp_path):
    model = made()
    save(tmp_path / "net.safetensors", model, ABOUT)
    tensors = safetensors_torch.load_file(tmp_path / "net.safetensors")
    assert same(tensors, model.state_dict())


def test_a_csr_file_holds_what_is_not_zero(tmp_path):
    model = made()
    save(tmp_path / "net.safetensors", model, ABOUT, "csr")
    tensors, _ = raw(tmp_path / "net.safetensors")
    kept = set(model.state_dict()) - {"conv.weight", "fc.weight"}
    parts = {f"{a}.weight.{b}" for a in ("conv", "fc") for b in ("crow_indices", "col_indices", "values")}
    assert set(tensors) == kept | parts
    matrix = model.conv.weight.detach().reshape(6, 18)
    expected = scipy.sparse.csr_array(matrix.numpy())
    for part, array in (("crow_indices", "indptr"), ("col_indices", "indices"), ("values", "data")):
        assert bits(tensors[f"conv.weight.{part}"]) == bits(torch.from_numpy(getattr(expected, array)))
    assert {tensors[f"fc.weight.{b}"].dtype for b in ("crow_indices", "col_indices")} == {torch.int32}


def test_csr_loses_only_the_sign_of_zeros(tmp_path):
    model = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 2.0, 0.0]]))
    path = tmp_path / "net.safetensors"
    about = {"layers": [{"name": ""}]}
    for layout, negative in (("dense", True), ("csr", False)):
        save(path, model, about, layout)
        weight = load(path)[0]["weight"]
        assert torch.equal(weight, model.weight) and bool(torch.signbit(weight[0, 0])) is negative


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_csr_of_nothing_and_of_everything(tmp_path, value):
    model = torch.nn.Conv1d(4, 6, 5, groups=2)
    torch.nn.init.constant_(model.weight, value)
    save(tmp_path / "net.safetensors", model, {"layers": [{"name": ""}]}, "csr")
    tensors, _ = raw(tmp_path / "net.safetensors")
    assert len(tensors["weight.values"]) == (60 if value else 0)
    assert same(load(tmp_path / "net.safetensors")[0], model.state_dict())


def test_layers_without_outputs_or_inputs(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Linear(1, 2))
    # torch warns when it makes such layers itself
    model[0].weight.data, model[1].weight.data = torch.zeros(0, 3), torch.zeros(2, 0)
    save(tmp_path / "net.safetensors", model, {"layers": [{"name": "0"}, {"name": "1"}]}, "csr")
    state, _ = load(tmp_path / "net.safetensors")
    assert state["0.weight"].shape == (0, 3) and state["1.weight"].shape == (2, 0)
    assert sizes(model, ["0", "1"])["layers"]["1"] == {"weights": 0, "nnz": 0, "dense": 0, "csr": 12, "bitmask": 0}


class Report:
    def to_dict(self):
        return {"bound": math.inf, "layers": ({"name": "fc"},)}


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_the_report_is_in_the_file_and_beside_it(tmp_path, layout):
    save(tmp_path / "net.safetensors", made(), Report(), layout)
    text = (tmp_path / "net.json").read_text()
    _, metadata = raw(tmp_path / "net.safetensors")
    assert metadata["nettrim"] == text
    assert json.loads(text) == {"bound": None, "layers": [{"name": "fc"}]} == load(tmp_path / "net.safetensors")[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


class Tied(torch.nn.Module):
    """An embedding and a head with one weight; and two buffers that are parts of one tensor."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        whole = torch.arange(10.0)
        self.register_buffer("low", whole[:6])
        self.register_buffer("high", whole[3:])
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_tied_tensors_are_written_under_each_name(tmp_path, layout):
    model, path = Tied(), tmp_path / "net.safetensors"
    save(path, model, {"layers": [{"name": "head"}]}, layout)
    state, _ = load(path)
    assert same(state, model.state_dict())
    assert json.loads(raw(path)[1]["nettrim.store"])["tied"] == {"head.weight": "embed.weight"}
    other = Tied()
    load(path, other)
    assert other.head.weight is other.embed.weight and torch.equal(other.head.weight, model.head.weight)


def test_what_is_loaded_does_not_depend_on_the_file(tmp_path):
    model, path = made(), tmp_path / "net.safetensors"
    save(path, model, ABOUT)
    state, _ = load(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same(state, model.state_dict())


def test_loading_converts_to_the_models_dtype(tmp_path):
    model, other = made(torch.bfloat16), made(torch.float32, seed=1)
    save(tmp_path / "net.safetensors", model, ABOUT, "csr")
    load(tmp_path / "net.safetensors", other)
    assert bits(other.fc.weight) == bits(model.fc.weight.float())


# a killed write ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_killed_write_leaves_the_old_files(tmp_path, monkeypatch, what):
    """fsync comes before the first of the two files is renamed, replace is that renaming."""
    path = tmp_path / "net.safetensors"
    save(path, made(), ABOUT)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(report.os, what, kill)
        with pytest.raises(Killed):
            save(path, made(seed=1), {"layers": []})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old
    save(path, made(seed=1), {"layers": []})
    assert path.read_bytes() != old["net.safetensors"]


def test_killed_between_the_files_the_weights_have_their_own_report(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save(path, made(), ABOUT)
    replace, calls = os.replace, []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        replace(*args)

    new, other = made(seed=1), ABOUT | {"kept": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(report.os, "replace", second_fails)
        with pytest.raises(Killed):
            save(path, new, other)
    state, about = load(path)
    assert about == other and bits(state["fc.weight"]) == bits(new.fc.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    assert json.loads((tmp_path / "net.json").read_text()) == ABOUT


# what is refused -----------------------------------------------------------------------------------------------------


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "coo"}, ValueError, "layout must be one of dense, csr; got 'coo'"),
        ({"model": {}}, TypeError, "model must be a torch.nn.Module; got dict"),
        ({"model": Extra(2, 2)}, TypeError, "_extra_state in the model's state must be a dense tensor; got dict"),
        ({"about": [1]}, TypeError, "about must be a mapping; got list"),
        ({"about": {"f": print}}, TypeError, "cannot write builtin_function_or_method as JSON"),
        ({"about": {}, "layout": "csr"}, ValueError, 'layout "csr" needs about'),
        ({"about": {"layers": ["fc"]}, "layout": "csr"}, ValueError, 'layout "csr" needs about'),
        (
            {"about": {"layers": [{"name": "fc9"}]}, "layout": "csr"},
            ValueError,
            "layer 'fc9' must have .*; it has none",
        ),
        ({"about": {"layers": [{"name": "norm"}]}, "layout": "csr"}, ValueError, r"layer 'norm' .* shape \(6,\)"),
        ({"path": "net.json"}, ValueError, "net.json is where the report goes"),
        ({"path": "missing/net.safetensors"}, FileNotFoundError, "missing is not a folder that exists"),
        ({"path": "folder"}, IsADirectoryError, "folder is a folder, and is not overwritten"),
        ({"path": "beside.safetensors"}, OSError, "beside.json is not a regular file"),
    ],
)
def test_wrong_arguments_of_save(tmp_path, change, error, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "beside.json").mkdir()
    arguments = {"model": made(), "about": ABOUT, **change, "path": tmp_path / change.get("path", "net.safetensors")}
    with pytest.raises(error, match=message):
        save(**arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside.json", "folder"]


def test_names_of_parts_that_are_taken_are_refused(tmp_path):
    model = torch.nn.Linear(3, 2)
    state = model.state_dict()
    model.state_dict = lambda: state | {"weight.values": torch.zeros(1)}
    with pytest.raises(ValueError, match="the model has other tensors named"):
        save(tmp_path / "net.safetensors", model, {"layers": [{"name": ""}]}, "csr")


def test_files_that_are_not_nettrims(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="net.safetensors does not exist"):
        load(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)
    for content in (b"", b"PK and so on, for long enough"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable safetensors file"):
            load(path)
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(safetensors_torch.save({"weight": torch.zeros(2, 3)}, metadata))
        with pytest.raises(ValueError, match="was not written by nettrim: its metadata has no 'nettrim'"):
            load(path)
    save(path, made(), ABOUT)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nettrim", '{"layers": [', "'nettrim' in the metadata of .* is not JSON"),
        ("nettrim", "[]", "'nettrim' in the metadata of .* is not a JSON object"),
        ("nettrim.store", "{", "'nettrim.store' in the metadata of .* is not JSON"),
        ("nettrim.store", None, "its metadata has no 'nettrim.store'"),
        ("nettrim.store", '{"version": 2, "csr": {}}', "a form that this version of nettrim does not know"),
        ("nettrim.store", '{"version": 1}', "a form that this version of nettrim does not know"),
        ("nettrim.store", '{"version": 1, "csr": {"fc.weight": [5, 23]}}', "fc.weight in .* column indices outside"),
        ("nettrim.store", '{"version": 1, "csr": {"fc.weight": [6, 24]}}', "fc.weight in .* row indices"),
        ("nettrim.store", '{"version": 1, "csr": {"fc.weight": []}}', "fc.weight in .* is damaged"),
        ("nettrim.store", '{"version": 1, "csr": {"fc.weight": "x"}}', "fc.weight in .* is damaged"),
        ("nettrim.store", '{"version": 1, "csr": {"norm.bias": [6]}}', "lacks norm.bias.crow_indices, norm.bias.col"),
    ],
)
def test_damaged_metadata(tmp_path, key, value, message):
    path = tmp_path / "net.safetensors"
    model = made()
    # the last column of fc is used, so that one less is too few
    torch.nn.init.ones_(model.fc.weight)
    save(path, model, ABOUT, "csr")
    load(path)
    rewrite(path, **{key: value})
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("values", lambda t: t[:-1], "numbers of indices and of values differ"),
        ("col_indices", lambda t: t - 1, "column indices outside of 0 to 23"),
        ("col_indices", lambda t: t + 24, "column indices outside of 0 to 23"),
        ("crow_indices", lambda t: t + 1, "row indices do not increase from 0"),
        ("crow_indices", lambda t: t[:-1], "row indices do not increase from 0"),
        ("crow_indices", lambda t: torch.cat([t[:1], t[1:].flip(0)]), "row indices do not increase from 0"),
        ("crow_indices", lambda t: torch.clamp(t, max=int(t[-1]) - 1), "numbers of indices and of values differ"),
        ("crow_indices", lambda t: t[0], "is damaged"),
    ],
)
def test_damaged_indices(tmp_path, part, change, message):
    path = tmp_path / "net.safetensors"
    save(path, made(), ABOUT, "csr")
    tensors, _ = raw(path)
    key = f"fc.weight.{part}"
    tensors[key] = change(tensors[key]).contiguous().clone()
    rewrite(path, tensors)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_a_model_that_does_not_fit_is_left_alone(tmp_path, layout):
    path = tmp_path / "net.safetensors"
    save(path, made(), ABOUT, layout)
    tensors, _ = raw(path)
    wider = made(seed=1)
    wider.fc = torch.nn.Linear(24, 6)
    fewer = made(seed=1)
    fewer.norm = torch.nn.Identity()
    for model, message in (
        (wider, r"fc.weight is \(5, 24\), in the model \(6, 24\)"),
        (fewer, "the model has no norm.bias"),
    ):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load(path, model)
        assert same(model.state_dict(), before)
    del tensors["conv.bias"]
    rewrite(path, tensors)
    with pytest.raises(ValueError, match="does not fit the model: it lacks conv.bias"):
        load(path, made())
    with pytest.raises(TypeError, match="model must be a torch.nn.Module; got str"):
        load(path, "net")


def test_a_part_that_is_missing(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, made(), ABOUT, "csr")
    tensors, _ = raw(path)
    del tensors["fc.weight.values"]
    rewrite(path, tensors)
    with pytest.raises(ValueError, match="lacks fc.weight.values"):
        load(path)


@pytest.mark.parametrize("call", [lambda path: save(path, torch.nn.Linear(2, 2), {}), load], ids=["save", "load"])
def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="extra torch"):
        call(tmp_path / "net.safetensors")


# sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_sizes_are_those_of_the_tensors_written(tmp_path, dtype):
    model, path = made(dtype), tmp_path / "net.safetensors"
    found = sizes(model, ["conv", "fc"])
    for layout in ("dense", "csr"):
        save(path, model, ABOUT, layout)
        tensors, _ = raw(path)
        assert found["total"][layout] == sum(t.numel() * t.element_size() for t in tensors.values())
        for name in ("conv", "fc"):
            held = [t for key, t in tensors.items() if key.startswith(f"{name}.weight")]
            assert found["layers"][name][layout] == sum(t.numel() * t.element_size() for t in held)


def test_sizes_of_a_small_layer():
    """2 x 9 entries, 3 of them kept: 18 bits are 3 bytes."""
    model = torch.nn.Sequential(torch.nn.Linear(9, 2), torch.nn.Linear(2, 1)).half()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight.view(-1)[[0, 5, 12]] = 1
    found = sizes(model, ["0", "0"])
    csr, mask = 4 * (3 + 3) + 2 * 3, 3 + 2 * 3
    assert found["layers"] == {"0": {"weights": 18, "nnz": 3, "dense": 36, "csr": csr, "bitmask": mask}}
    rest = 2 * (2 + 2 + 1)
    assert found["total"] == {"dense": rest + 36, "csr": rest + csr, "bitmask": rest + mask}


def test_indices_that_need_64_bits_have_them():
    assert store._index_dtype(2**31 - 1, 5) == store._index_dtype(5, 2**31 - 1) == torch.int32
    assert store._index_dtype(2**31, 5) == store._index_dtype(5, 2**31) == torch.int64


def test_wrong_arguments_of_sizes():
    with pytest.raises(ValueError, match="layer 'norm' must have a weight of at least two dimensions"):
        sizes(made(), ["norm"])
    with pytest.raises(ValueError, match="layer 'head' .* it has none"):
        sizes(made(), ["head"])
    with pytest.raises(TypeError, match="names must be a list of names; got the string 'fc'"):
        sizes(made(), "fc")


# latency -------------------------------------------------------------------------------------------------------------


def sparse_weight(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(30, 40, dtype=dtype).masked_fill(torch.rand(30, 40) < 0.8, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_products_that_are_timed_are_equal(dtype):
    weight, x = sparse_weight(dtype), torch.randn(17, 40, dtype=dtype)
    products = store._products(weight, x)
    made = {name: torch.as_tensor(product()) for name, product in products.items()}
    assert list(made) == ["dense", "torch_csr", "scipy_csr"]
    torch.testing.assert_close(made["dense"], torch.nn.functional.linear(x, weight))
    for name in ("torch_csr", "scipy_csr"):
        assert made[name].dtype == dtype
        torch.testing.assert_close(made[name].T, made["dense"])


def test_latency_reports_medians_of_the_rounds_after_the_warm_up(monkeypatch):
    """With a clock that says how long each product took: 1 s a call while warming up, then 2, 9, 4 ms, and so on."""
    calls = {"dense": [2, 9, 4], "torch_csr": [1, 1, 7], "scipy_csr": [8, 3, 8]}
    clock, left = [0.0], {name: [1000.0] * store._WARM_UP + list(times) for name, times in calls.items()}

    def product_of(name):
        def product():
            clock[0] += left[name].pop(0) / 1e3

        return product

    monkeypatch.setattr(store, "_products", lambda weight, x: {name: product_of(name) for name in calls})
    monkeypatch.setattr(store.time, "perf_counter", lambda: clock[0])
    found = latency(sparse_weight(), torch.randn(4, 40), repeats=3)
    assert not any(left.values())
    assert [found[name] for name in calls] == pytest.approx([4, 1, 8])
    assert found["ratio"] == pytest.approx({"torch_csr": 0.25, "scipy_csr": 2})


def test_latency_measures_and_says_what():
    weight = sparse_weight()
    layer = torch.nn.Linear(40, 30)
    layer.weight.data = weight
    found = latency(layer, torch.randn(2, 5, 40, dtype=torch.float64), repeats=2)
    assert all(found[name] > 0 and math.isfinite(found[name]) for name in ("dense", "torch_csr", "scipy_csr"))
    assert found["ratio"]["scipy_csr"] == found["scipy_csr"] / found["dense"]
    said = {key: found[key] for key in ("shape", "density", "samples", "dtype", "repeats", "threads")}
    assert said == {
        "shape": [30, 40],
        "density": int(torch.count_nonzero(weight)) / 1200,
        "samples": 10,
        "dtype": "float32",
        "repeats": 2,
        "threads": {"torch": torch.get_num_threads(), "scipy": 1},
    }
    assert json.loads(report.to_json(found)) == found


@pytest.mark.parametrize(
    ("weight", "inputs", "options", "error", "message"),
    [
        ("fc", torch.zeros(2, 40), {}, TypeError, "latency takes a Linear or its weight"),
        (torch.nn.ReLU(), torch.zeros(2, 40), {}, TypeError, "latency takes a Linear or its weight"),
        (torch.zeros(3, 40).bfloat16(), torch.zeros(2, 40), {}, TypeError, "float32 or float64.*; got torch.bfloat16"),
        (torch.nn.Conv2d(2, 3, 3), torch.zeros(2, 3), {}, ValueError, "must be a matrix"),
        (torch.zeros(0, 40), torch.zeros(2, 40), {}, ValueError, "must be a matrix"),
        (torch.zeros(3, 40), torch.zeros(2, 41), {}, ValueError, r"inputs must be \(..., 40\), and not empty"),
        (torch.zeros(3, 40), torch.zeros(0, 40), {}, ValueError, r"inputs must be \(..., 40\), and not empty"),
        (torch.zeros(3, 40), torch.zeros(2, 40), {"repeats": 0}, ValueError, "repeats must be .* got 0"),
    ],
)
def test_wrong_arguments_of_latency(weight, inputs, options, error, message):
    with pytest.raises(error, match=message):
        latency(weight, inputs, **options)

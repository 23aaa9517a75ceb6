"""Files from anywhere: cut short, bits flipped, wrong types, headers that lie. A clear error, or the same arrays."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim import cli, files
from nettrim.archives import open_npz

ARRAYS = {
    "X": np.arange(12.0).reshape(3, 4),
    "Y": np.asfortranarray(np.ones((2, 4), np.float32)),
    "text": np.str_("{}"),
    "none": np.zeros((0, 3)),
}


def written(path: Path, **how) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if how.get("compressed") else np.savez)(buffer, **ARRAYS)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def read_all(path: Path) -> dict[str, np.ndarray] | None:
    """Everything in a file, or None if it is refused; any other error is one too many."""
    try:
        with open_npz(path) as archive:
            return {name: archive.read(name) for name in archive.names}
    except ValueError:
        return None


@pytest.fixture(scope="module", params=[False, True], ids=["stored", "deflated"])
def bundle(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "arrays.npz"
    return path, written(path, compressed=request.param)


def test_what_savez_writes_is_read(bundle):
    path, whole = bundle
    path.write_bytes(whole)
    found = read_all(path)
    assert found is not None and found.keys() == ARRAYS.keys()
    for name, a in ARRAYS.items():
        np.testing.assert_array_equal(found[name], a)
        assert found[name].dtype == np.asarray(a).dtype
        assert found[name].flags.f_contiguous == np.asarray(a).flags.f_contiguous


@given(st.floats(0, 1))
@example(0.0)
@example(0.999)
def test_truncated(bundle, part):
    path, whole = bundle
    path.write_bytes(whole[: int(part * (len(whole) - 1))])
    assert read_all(path) is None


@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), min_size=1, max_size=6))
@example([(0.0, 0)])
@example([(0.99, 3), (0.5, 1)])
def test_flipped_bits(bundle, flips):
    path, whole = bundle
    damaged = bytearray(whole)
    for place, bit in flips:
        damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    with warnings.catch_warnings():
        # of names that appear twice
        warnings.simplefilter("ignore")
        found = read_all(path)
    # a name or a date may have changed; an array may not
    for name, a in (found or {}).items():
        if name in ARRAYS:
            np.testing.assert_array_equal(a, ARRAYS[name])


def archive_of(path: Path, header: bytes, data: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("X.npy", magic + struct.pack("<H", len(header)) + header + data)
    return path


def header(descr: str = "'<f8'", shape: str = "(3,)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (header(shape=f"({2**62},)"), "is damaged"),
        (header(shape=f"({2**40}, {2**40})"), "is damaged"),
        (header(shape="(-3,)"), "X in"),
        (header(shape="(2,)"), "is damaged: .* 16 bytes, and it has 24"),
        (header("'|O'"), "would need pickle: refused"),
        (header("[('a', '|O')]"), "would need pickle: refused"),
        (header("'<q99'"), "cannot be read"),
        (header(shape="__import__('os').getcwd()"), "cannot be read"),
        (b"{" * 9000 + b"\n", "cannot be read"),
        (b"x" * 30000, "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_headers_that_lie(tmp_path, made, message):
    path = archive_of(tmp_path / "lie.npz", made, np.ones(3).tobytes())
    with open_npz(path) as archive, pytest.raises(ValueError, match=message):
        archive.read("X")
    with pytest.raises(files.Refused):
        files.load(path, required=("X",), optional=())


def test_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    # a gigabyte of zeros in a megabyte of file, on a machine of half a gigabyte
    path = tmp_path / "bomb.npz"
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("X.npy", "w") as member:
        text = header("'|u1'", f"({1 << 26},)")
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        for _ in range(64):
            member.write(zeros)
    monkeypatch.setattr("nettrim.archives._memory", lambda: 32e6)
    with open_npz(path) as archive, pytest.raises(ValueError, match="more than this machine's memory"):
        archive.read("X")


def test_names_do_not_lead_out_of_the_file(tmp_path):
    # an archive is read into memory, never unpacked: a name is only a name
    path = tmp_path / "names.npz"
    with zipfile.ZipFile(path, "w") as made:
        buffer = io.BytesIO()
        np.save(buffer, np.eye(2))
        made.writestr("../../escaped.npy", buffer.getvalue())
        made.writestr("readme.txt", "no array")
    with open_npz(path) as archive:
        assert archive.names == ["../../escaped"]
        np.testing.assert_array_equal(archive.read("../../escaped"), np.eye(2))
        with pytest.raises(ValueError, match="has no array readme"):
            archive.read("readme")
    assert list(tmp_path.iterdir()) == [path]


def test_not_an_archive(tmp_path):
    for name, content in (("a.npz", b""), ("b.npz", b"PK"), ("c.npz", b"\x80\x04pickle"), ("d.npz", b"PK" * 400)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"\.npz"), open_npz(tmp_path / name):
            pass
    with pytest.raises(ValueError, match="is a folder"), open_npz(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), open_npz(tmp_path / "nothing.npz"):
        pass


@given(st.integers(0, 2**32 - 1))
@example(0)
def test_commands_refuse_in_one_line(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((4, 30)), 0)
    np.savez(folder / "in.npz", X=X, Y=X[:2], W=rng.standard_normal((4, 2)))
    whole = bytearray((folder / "in.npz").read_bytes())
    for place in rng.integers(0, len(whole), 4):
        whole[place] ^= int(rng.integers(1, 256))
    (folder / "in.npz").write_bytes(bytes(whole[: int(rng.integers(len(whole) // 2, len(whole) + 1))]))
    out = str(folder / "out.npz")
    for command in (
        ["solve", str(folder / "in.npz"), "-o", out, "--epsilon", "0.5"],
        ["bounds", str(folder / "in.npz")],
    ):
        assert cli.main([*command, "--json"]) in (0, 1, 2, 3)


def test_records_that_are_cut_or_damaged(tmp_path):
    from nettrim.studies.records import Records

    path = tmp_path / "study.jsonl"
    records = Records(path, ("a",))
    for a in range(3):
        records.add(a=a)
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert [row["a"] for row in Records(path, ("a",)).rows] == [0, 1]
    path.write_text(whole.replace('"a": 1', '"a" 1'))
    with pytest.raises(ValueError, match="line 2 of .* is not JSON"):
        Records(path, ("a",))


# what the PyTorch adapters read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    batches = [torch.rand(40, 6) for _ in range(3)]
    folder = tmp_path_factory.mktemp("run")
    pruned = ntt.prune(model, batches, 0.2, directory=folder / "layers")
    pruned.save(folder / "weights.safetensors")
    return model, batches, folder, pruned


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another layer's"])
def test_a_damaged_layer_is_solved_again(run, tmp_path, damage):
    import shutil

    import torch

    import nettrim.torch as ntt

    model, batches, folder, pruned = run
    layers = tmp_path / "layers"
    shutil.copytree(folder / "layers", layers)
    first, second = sorted(layers.glob("layer_*.npz"))
    whole = bytearray(first.read_bytes())
    whole[len(whole) // 2] ^= 255
    content = {"cut": whole[:-200], "flipped": whole, "empty": b"", "another layer's": second.read_bytes()}
    first.write_bytes(bytes(content[damage]))
    with pytest.warns(UserWarning, match="is damaged, so that its layer is solved again"):
        again = ntt.prune(model, batches, 0.2, directory=layers)
    for a, b in zip(pruned.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    (layers / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged .* delete the folder"):
        ntt.prune(model, batches, 0.2, directory=layers)


@given(st.integers(0, 2**32 - 1))
@example(0)
def test_saved_weights(run, seed):
    import nettrim.torch as ntt

    _, _, folder, _ = run
    rng = np.random.default_rng(seed)
    whole = bytearray((folder / "weights.safetensors").read_bytes())
    head = struct.unpack("<Q", whole[:8])[0] + 8
    # the header, where everything is decided; the data of a safetensors file have no checksum
    for place in rng.integers(0, head, 3):
        whole[place] ^= int(rng.integers(1, 256))
    path = folder / "damaged.safetensors"
    path.write_bytes(bytes(whole[: int(rng.integers(head // 2, len(whole) + 1))]))
    try:
        ntt.load(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_headers_of_saved_weights_that_lie(run):
    import nettrim.torch as ntt

    _, _, folder, _ = run
    path = folder / "lie.safetensors"
    for text in (
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    ):
        raw = json.dumps(text).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            ntt.load(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ntt.load(path)

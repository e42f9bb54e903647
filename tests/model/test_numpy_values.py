"""numpy's values in a torch file: honest ones are kept, and none makes numpy read outside its memory."""

import io
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers.tiny_networks import load, refused, state

from onp.model.checkpoint import read_checkpoint

ARRAYS = [
    np.arange(6).reshape(2, 3).T,
    np.array([True, False]),
    np.array([1.5, -2], dtype=">f4"),
    np.zeros((0, 3), dtype=np.uint8),
    np.array(7.0),
]


def opcodes_of_a_scalar(code: str, itemsize: int, flags: int, content: bytes) -> bytes:
    """scalar(dtype(code) with the state (3, '>', None, None, None, itemsize, 1, flags), content), in protocol 2."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    dtype = b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"
    integers = b"J" + struct.pack("<i", itemsize) + b"K\x01" + b"J" + struct.pack("<i", flags)
    built = dtype + b"(K\x03" + text(">") + b"NNN" + integers + b"tb"
    return (
        b"cnumpy._core.multiarray\nscalar\n"
        + built
        + b"c_codecs\nencode\n"
        + text(content.decode())
        + text("latin1")
        + b"\x86R\x86R"
    )


def write(path, value: bytes) -> None:
    """A torch file of honest weights with `value`, opcodes that build it, beside them."""
    buffer = io.BytesIO()
    torch.save({"model": state(), "extra": "VALUE"}, buffer)
    marked = b"X\x05\x00\x00\x00VALUE"
    with zipfile.ZipFile(buffer) as honest, zipfile.ZipFile(path, "w") as made:
        for name in honest.namelist():
            content = honest.read(name)
            if name.endswith("data.pkl"):
                assert content.count(marked) == 1
                content = content.replace(marked, value)
            made.writestr(name, content)


def test_what_a_file_says_of_sizes_flags_and_depth_is_not_believed(tmp_path):
    """In a process of its own, which believing would end: numpy would read outside its memory, the stack overflow."""
    contents = [
        opcodes_of_a_scalar(code, itemsize, flags=4, content=b"abc")
        for code, itemsize in (("S3", 1_000_000), ("S3", 512), ("U3", 512), ("f8", 1 << 20))
    ]
    # The hash of tuples within each other, which a key of a dict needs, goes as deep as they do.
    contents.append(b"})" + b"\x85" * 1_000_000 + b"K\x01s")
    files = [tmp_path / f"{index}.pt" for index in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        write(file, content)
    program = """if True:
        import sys
        from onp.errors import InputError
        from onp.model.checkpoint import read_checkpoint
        for path in sys.argv[1:]:
            try:
                read_checkpoint(path)
                print("accepted")
            except InputError as error:
                print(error, flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(files), done.stderr
    assert all(line.endswith(".") for line in lines), lines


def test_flags_alone_change_nothing(tmp_path):
    write(tmp_path / "a.pt", opcodes_of_a_scalar("f8", -1, 4, b"12345678"))
    value = read_checkpoint(tmp_path / "a.pt").container["extra"]
    assert value == np.frombuffer(b"12345678", ">f8")[0] and value.dtype.flags == np.dtype("f8").flags


def test_numbers_beside_the_weights_are_kept(tmp_path):
    scalars = [np.float32(0.5), np.int64(-3), np.bool_(True), np.float64(2)]
    shared = np.arange(3)
    stored = {"model": state(), "extra": {"arrays": (ARRAYS, [shared, shared]), "scalars": scalars, "dtype": np.dtype("f4")}}
    torch.save(stored, tmp_path / "a.pt")
    checkpoint = load(tmp_path / "a.pt").checkpoint
    (tmp_path / "b.pt").write_bytes(checkpoint.to_bytes())
    for extra in (checkpoint.container["extra"], torch.load(tmp_path / "b.pt", weights_only=False)["extra"]):
        arrays, (first, second) = extra["arrays"]
        for array, expected in zip(arrays, ARRAYS, strict=True):
            assert type(array) is np.ndarray and array.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
            assert np.array_equal(array, expected)
        assert first is second
        assert extra["scalars"] == scalars and list(map(type, extra["scalars"])) == list(map(type, scalars))
        assert extra["dtype"] == np.dtype("f4")


def test_a_class_beside_the_weights_is_refused(tmp_path):
    write(tmp_path / "a.pt", b"ccollections\nOrderedDict\n")
    assert "pickled Python objects" in refused(tmp_path / "a.pt")


def test_containers_within_each_other(tmp_path):
    deep: list = []
    for _ in range(100):
        deep = [deep]
    torch.save({"model": state(), "extra": deep}, tmp_path / "deep.pt")
    assert "too deep" in refused(tmp_path / "deep.pt")
    loop: list = []
    loop.append(loop)
    torch.save({"model": state(), "extra": loop}, tmp_path / "loop.pt")
    assert load(tmp_path / "loop.pt").units > 0


def test_text_and_dates_of_numpy_are_refused(tmp_path):
    for value in (np.array(["a", "bc"]), np.datetime64("2020-01-01"), np.zeros(2, dtype=[("x", "f4")])):
        torch.save({"model": state(), "extra": value}, tmp_path / "a.pt")
        assert "pickled Python objects" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("call", [b"ctorch\nTensor\nK\x64K\x64\x86R", b"c__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85R"])
def test_memory_by_size_alone_is_refused(tmp_path, call):
    write(tmp_path / "a.pt", call)
    assert "pickled Python objects" in refused(tmp_path / "a.pt")

"""CIFAR batches, whose pickles are parsed and never run."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.image_writers import pixels, write_folder, write_tar

from onp.data.cifar import parse_pickle
from onp.data.images import load_images
from onp.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def python2_batch(array: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """The bytes Python 2 and its numpy wrote for {'data': array, key: labels}: the form of the published batches."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    dtype = (
        b"cnumpy\ndtype\nq\x04(" + text(b"u1") + b"K\x00K\x01tRq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"".join(b"M" + struct.pack("<H", length) for length in array.shape)
    data = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R(K\x01(" + (
        shape + b"t" + dtype + b"\x89" + text(array.tobytes()) + b"tb"
    )
    listed = b"]q\x06(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + text(b"data") + data + text(key) + listed + b"u."


def cifar_members(rng: np.random.Generator) -> tuple[dict[str, bytes | None], np.ndarray]:
    """Two training batches and a test batch, and the images [9, 3, 32, 32] in their order."""
    array = pixels(rng, 9, 3072)
    prefix = "cifar-10-batches-py/"
    members: dict[str, bytes | None] = {
        prefix[:-1]: None,
        f"{prefix}readme.html": b"",
        f"{prefix}data_batch_2": python2_batch(array[3:6], [1, 0, 1]),
        f"{prefix}test_batch": python2_batch(array[6:], [0, 0, 1]),
        f"{prefix}data_batch_1": python2_batch(array[:3], [0, 0, 1]),
        f"{prefix}batches.meta": pickle.dumps({"label_names": ["ant", "bee"], "num_vis": 3072}, protocol=2),
    }
    return members, array.reshape(9, 3, 32, 32)


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_cifar_python_batches(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    members, expected = cifar_members(rng)
    if kind == "folder":
        path = write_folder(tmp_path / "set", members)
    else:
        path = write_tar(tmp_path / "set.tar.gz", members, "w:gz")
    train, test = load_images(path), load_images(f"{path}::test")
    assert np.array_equal(train.images.numpy(), expected[:6]) and train.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert np.array_equal(test.images.numpy(), expected[6:]) and test.class_names == ("ant", "bee")
    with pytest.raises(InputError, match="choose ::train or ::test, not ::valid"):
        load_images(f"{path}::valid")


def test_cifar_single_files(tmp_path: Path, rng: np.random.Generator) -> None:
    members, expected = cifar_members(rng)
    folder = write_folder(tmp_path, members) / "cifar-10-batches-py"
    assert np.array_equal(load_images(folder / "test_batch").images.numpy(), expected[6:])
    (tmp_path / "train").write_bytes(python2_batch(expected[:3].reshape(3, 3072), [70, 3, 99], b"fine_labels"))
    assert load_images(tmp_path / "train").labels.tolist() == [70, 3, 99]


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_binary(tmp_path: Path, rng: np.random.Generator, hundred: bool) -> None:
    array = pixels(rng, 4, 3072)
    labels = np.array([[19, 2], [7, 0], [3, 1], [0, 0]], dtype=np.uint8)[:, 0 if hundred else 1 :]
    name, meta = ("train.bin", "fine_label_names.txt") if hundred else ("data_batch_1.bin", "batches.meta.txt")
    (tmp_path / name).write_bytes(np.concatenate([labels, array], axis=1).tobytes())
    (tmp_path / meta).write_text("ant\nbee\ncat\n\n")
    images = load_images(tmp_path)
    assert np.array_equal(images.images.numpy(), array.reshape(4, 3, 32, 32))
    assert images.labels.tolist() == [2, 0, 1, 0] and images.class_names == ("ant", "bee", "cat")
    (tmp_path / name).write_bytes(bytes(3000))
    with pytest.raises(InputError, match="truncated"):
        load_images(tmp_path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_parse_pickle_reads_what_pickle_writes(rng: np.random.Generator, protocol: int) -> None:
    array = pixels(rng, 3, 5)
    plain = {"a": [1, -2, 2**40, True, None], b"b": ("x", "é", b"\xff\x00"), "c": {"d": []}, "e": (), "f": [[0]] * 2}
    assert parse_pickle(pickle.dumps(plain, protocol)) == plain
    if protocol >= 2:
        for stored in (array, np.asfortranarray(array)):
            assert np.array_equal(parse_pickle(pickle.dumps([stored], protocol))[0].value, array)


class Armed:
    """Makes a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"data": Armed(tmp_path / "ran"), "labels": [0]}, protocol)
    pickle.loads(content)
    (tmp_path / "ran").rmdir()  # it is armed
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match="not plain data"):
        load_images(tmp_path / "test_batch")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(cos\nmkdir\nS'TARGET'\no.",  # OBJ
        b"(S'TARGET'\nios\nmkdir\n.",  # INST
        b"\x80\x02cos\nmkdir\nU\x06TARGET\x85\x81.",  # NEWOBJ
        b"\x80\x02cbuiltins\neval\nU\x06TARGET\x85R.",
        b"\x80\x02cnumpy\nload\nU\x06TARGET\x85R.",
        b"\x80\x02}U\x06TARGETK\x01sb.",  # BUILD of a dict
        b"\x80\x02]U\x06TARGETb.",  # BUILD of a list
        b"\x82\x01.",  # EXT1
        b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",  # tuples nested too deeply to be hashed
        b"\x80\x02" + b"]" + b"\x85" * 300_000 + b")R.",
        b"\x80\x02Ptarget\n.",  # PERSID
        b"\x80\x02h\x05.",  # an empty memo
        b"\x80\x02e.",
        b"\x80\x02R.",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02.",
        b"",
        b"not a pickle",
    ],
)
def test_pickles_that_are_not_plain_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content.replace(b"TARGET", b"target"))
    with pytest.raises(InputError, match="damaged or not plain data"):
        load_images(tmp_path / "test_batch")


def test_bad_cifar_batches(tmp_path: Path, rng: np.random.Generator) -> None:
    good = python2_batch(pixels(rng, 2, 3072), [0, 1])
    for content, message in [
        (good[:-2000], "damaged"),
        (python2_batch(pixels(rng, 2, 3072), [0]), "one label"),
        (python2_batch(pixels(rng, 2, 3000), [0, 1]), "3072 bytes an image"),
        (python2_batch(pixels(rng, 2, 3072), [0, 1], b"names"), "'labels'"),
        (pickle.dumps([1, 2], 2), "no dictionary"),
    ]:
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_images(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(good)
    assert len(load_images(tmp_path)) == 2
    with pytest.raises(InputError, match="no test batch"):
        load_images(f"{tmp_path}::test")


def test_cifar10_archive() -> None:
    path = os.environ.get("ONP_CIFAR10")
    if not path:
        pytest.skip("ONP_CIFAR10 names no archive")
    images = load_images(f"{path}::test")
    assert images.images.shape == (10000, 3, 32, 32)
    assert images.labels.bincount().tolist() == [1000] * 10 and images.class_names[0] == "airplane"

"""Image sets made to exhaust memory or time, or to raise something else than InputError: each is refused in one sentence."""

import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.image_writers import png
from PIL import Image

from onp.data.decode import Form
from onp.data.images import load_images
from onp.data.load import read
from onp.errors import InputError
from onp.files import ByteBudget, file_kind, read_regular


def refused(location: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        load_images(str(location), **options)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def write_image(path: Path, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.zeros((*size, 3), np.uint8)))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["c0/readme.txt", "c0/a.png"])
def test_a_tar_member_of_impossible_size(tmp_path, name, compressed):
    content = header(name, 2**70) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(gzip.compress(content) if compressed else content)
    assert "cannot be read to its end" in refused(tmp_path / "a.tar")


def test_sparse_tar_members(tmp_path):
    (tmp_path / "a.tar").write_bytes(header("c0/a.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(2048))
    assert "cannot be read to its end" in refused(tmp_path / "a.tar")
    pax = tarfile.TarInfo("c0/a.png")
    pax.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,zero", "GNU.sparse.size": "400000000"}
    (tmp_path / "b.tar").write_bytes(pax.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    assert "cannot be read to its end" in refused(tmp_path / "b.tar")


def test_a_long_header_of_a_tar(tmp_path):
    content = header("././@LongLink", 2**31, tarfile.GNUTYPE_LONGNAME) + bytes(1024)
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(content))
    assert "cannot be read to its end" in refused(tmp_path / "a.tar.xz")


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def array(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def head(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")


BIG = 2**32 - 1
IMAGES = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize("label", [20_000_000_000, 2**63 - 1, 1_000_000])
def test_a_large_label_makes_no_list_of_classes(tmp_path, label):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([0, label]))
    assert f"has the label {label}" in refused(tmp_path / "a.npz")
    write_image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "metadata.csv").write_text(f"file_name,label\na.png,{label}\n")
    assert f"has the label {label}" in refused(tmp_path / "set")


def test_the_highest_label_of_a_byte(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([0, 255], np.uint8))
    assert len(load_images(tmp_path / "a.npz").class_names) == 256


@pytest.mark.parametrize(
    "images",
    [
        head("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 100), }"),
        head("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4"),
        head("-" * 9000),
        head("{'descr': '|V8', 'fortran_order': False, 'shape': (2, 1, 1), }") + bytes(16),
        array(np.full((2, 4, 4), "a")),
        b"\x93NUMPY\x09\x09",
    ],
)
def test_arrays_that_are_none(tmp_path, images):
    assert refused(npz(tmp_path / "a.npz", images=images, labels=array(np.array([0, 1]))))


@pytest.mark.parametrize(
    "names", [array(np.array("a")), head("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }") + b"\xff" * 4]
)
def test_class_names_that_are_none(tmp_path, names):
    set_ = npz(tmp_path / "a.npz", images=array(IMAGES), labels=array(np.array([0, 0])), class_names=names)
    assert "class_names" in refused(set_)


def test_damaged_lzma_in_an_npz(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", array(np.zeros((50, 8, 8), np.uint8)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60:80] = bytes(20)
    (tmp_path / "a.npz").write_bytes(content)
    assert refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "sizes", [(2**32 - 1, 0, 0), (2**32 - 1, 2**32 - 1, 0), (2, 0, 28), (2**32 - 1, 2**32 - 1, 2**32 - 1), ()]
)
def test_idx_headers(tmp_path, sizes):
    content = bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes)
    (tmp_path / "a-images-idx3-ubyte").write_bytes(content)
    assert refused(tmp_path / "a-images-idx3-ubyte", labelled=False, size=28)


def test_one_budget_for_the_bytes_of_a_set(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 32, 32), np.uint8), labels=np.arange(100) % 2)
    assert len(read(str(tmp_path / "a.npz"), Form(budget=ByteBudget(10**6))).images) == 100
    for index in range(4):
        write_image(tmp_path / "set" / "ab"[index % 2] / f"{index}.png", (200, 200))
    for location in ("a.npz", "set"):
        with pytest.raises(InputError, match="more than this machine's memory"):
            read(str(tmp_path / location), Form(budget=ByteBudget(100_000)))


def test_thin_images(tmp_path):
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        Image.new("L", (1_000_000, 1)).save(tmp_path / "set" / label / "a.png")
    assert "too thin" in refused(tmp_path / "set", size=28)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 1, 1_000_000), np.uint8), labels=np.array([0, 1]))
    assert "too thin" in refused(tmp_path / "a.npz", size=28)


def test_special_files(tmp_path):
    (tmp_path / "pipe" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / "a" / "z.png")
    assert "no ordinary file" in refused(tmp_path / "pipe")
    (tmp_path / "device" / "a").mkdir(parents=True)
    (tmp_path / "device" / "a" / "z.png").symlink_to("/dev/zero")
    assert "no ordinary file" in refused(tmp_path / "device")
    assert "device or pipe" in refused("/dev/zero")


def test_folders_that_link_to_each_other(tmp_path):
    for here, there in (("c0", "c1"), ("c1", "c0")):
        write_image(tmp_path / here / "a.png")
        for link in ("l0", "l1"):
            (tmp_path / here / link).symlink_to(Path("..") / there)
    assert "remove the link" in refused(tmp_path)


def test_metadata(tmp_path):
    write_image(tmp_path / "a.png")
    for content in (json.dumps({"file_name": "a.png", "label": 2**63}), "[" * 100_000):
        (tmp_path / "metadata.jsonl").write_text(content)
        assert refused(tmp_path)


def test_paths_that_the_system_does_not_take(tmp_path):
    for path in (tmp_path / ("a" * 300), Path("a\0b")):
        assert "cannot be used" in refused(path)
        with pytest.raises(InputError, match="cannot be used"):
            file_kind(path)
    assert file_kind(tmp_path / "nothing") is None
    (tmp_path / "a").write_bytes(bytes(100))
    assert read_regular(tmp_path / "a", 100) == bytes(100)
    with pytest.raises(InputError, match="99 at most"):
        read_regular(tmp_path / "a", 99)

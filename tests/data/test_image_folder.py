"""Folders, tars, .npz and IDX files of images: what is read, and with which words the others are refused."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_writers import class_members, idx, pixels, png, write_folder, write_tar
from PIL import Image

from onp.data.images import load_images
from onp.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tar.xz", "tar.bz2", "tgz"])
@pytest.mark.parametrize("prefix", ["", "train/", "./some/where/"])
def test_class_folders(tmp_path: Path, rng: np.random.Generator, kind: str, prefix: str) -> None:
    members, expected = class_members(rng, prefix)
    members |= {f"{prefix}readme.txt": b"no image", f"{prefix}.hidden/x.png": b"no image", f"{prefix}bee/._a.png": b""}
    if kind == "folder":
        path = write_folder(tmp_path / "set", members)
    else:
        compression = {"tar": "", "tgz": "gz"}.get(kind, kind[4:])
        path = write_tar(tmp_path / f"set.{kind}", members, f"w:{compression}")
    images = load_images(path)
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    assert np.array_equal(images.images.numpy(), expected)
    assert images.labels.tolist() == [0, 0, 1] and images.class_names == ("ant", "bee")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_one_folder_of_several(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    train, _ = class_members(rng, "train/")
    test, expected = class_members(rng, "test/")
    if kind == "folder":
        path = write_folder(tmp_path / "set", train | test)
    else:
        path = write_tar(tmp_path / "set.tar", train | test)
    assert np.array_equal(load_images(f"{path}::test").images.numpy(), expected)
    with pytest.raises(InputError, match="::test or ::train"):
        load_images(path)
    with pytest.raises(InputError, match="has no folder valid; it has test, train" if kind == "folder" else "No images"):
        load_images(f"{path}::valid")


def test_formats_of_files(tmp_path: Path) -> None:
    # One colour, so that the lossy formats keep it.
    for suffix in ("png", "jpg", "jpeg", "bmp", "webp", "ppm", "tif"):
        folder = tmp_path / "set" / suffix
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (200, 200, 200)).save(folder / f"x.{suffix}")
    images = load_images(tmp_path / "set")
    assert len(images) == 7 and (images.images.int() - 200).abs().max() <= 2


def test_unlabelled(tmp_path: Path, rng: np.random.Generator) -> None:
    array = pixels(rng, 2, 4, 4)
    flat: dict[str, bytes | None] = {"a.png": png(array[0]), "b.png": png(array[1])}
    prefixed = {f"images/{name}": content for name, content in flat.items()}
    for path in (write_folder(tmp_path / "flat", flat), write_tar(tmp_path / "flat.tar", prefixed)):
        images = load_images(path, labelled=False)
        assert np.array_equal(images.images[:, 0].numpy(), array)
        assert images.labels.tolist() == [-1, -1] and images.class_names == () and not images.labelled
    with pytest.raises(InputError, match=r"a\.png .* in no class folder"):
        load_images(tmp_path / "flat")
    members, _ = class_members(rng)
    assert load_images(write_folder(tmp_path / "set", members), labelled=False).labels.tolist() == [0, 0, 1]


def test_symbolic_links_to_class_folders(tmp_path: Path, rng: np.random.Generator) -> None:
    members, expected = class_members(rng)
    store = write_folder(tmp_path / "store", members)
    (tmp_path / "set").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).symlink_to(store / name)
    assert np.array_equal(load_images(tmp_path / "set").images.numpy(), expected)


def test_size_covers_and_crops_the_centre(tmp_path: Path) -> None:
    # Left, middle and right thirds of their own brightness: the square crop must be the middle one alone.
    wide = np.repeat(np.array([[0, 120, 240]], dtype=np.uint8), 30, axis=1).repeat(30, axis=0)
    path = write_folder(tmp_path / "set", {"a/x.png": png(wide), "b/x.png": png(wide.T.copy())})
    with pytest.raises(InputError, match="different sizes; give --image-size"):
        load_images(path)
    images = load_images(path, size=10)
    assert images.images.shape == (2, 1, 10, 10)
    assert (images.images[:, :, 1:-1, 1:-1] == 120).all()
    assert load_images(path, size=(10, 20)).images.shape == (2, 1, 10, 20)


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 254], dtype=np.uint8), (64, 32))
    path = write_folder(tmp_path / "set", {"a/x.png": png(stripes), "b/x.png": png(stripes)})
    assert (load_images(path, size=8).images.int() - 127).abs().max() <= 8


def test_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    gray, colour = pixels(rng, 6, 6), pixels(rng, 6, 6, 3)
    path = write_folder(tmp_path / "set", {"a/x.png": png(gray), "b/x.png": png(colour)})
    mixed = load_images(path).images.numpy()
    assert np.array_equal(mixed[0], np.stack([gray] * 3)) and np.array_equal(mixed[1], colour.transpose(2, 0, 1))
    assert np.array_equal(load_images(path, channels=3).images.numpy(), mixed)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    single = load_images(path, channels=1).images[:, 0].numpy()
    assert np.array_equal(single[0], gray) and np.abs(single[1] - luma).max() <= 1
    with pytest.raises(InputError, match="1 or 3 channels, not to 4"):
        load_images(path, channels=4)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1", "LA"])
def test_modes_of_files(tmp_path: Path, mode: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
        image.save(tmp_path / name / ("x.tif" if mode == "CMYK" else "x.png"))
    images = load_images(tmp_path).images
    assert images.shape == (2, 1 if mode in ("1", "LA") else 3, 4, 4) and (images == 255).all()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "targets"), ("arr_0", "arr_1")])
def test_npz(tmp_path: Path, rng: np.random.Generator, layout: str, keys: tuple[str, str]) -> None:
    array = pixels(rng, 4, 6, 5) if layout == "NHW" else pixels(rng, 4, 6, 5, 3)
    expected = array[:, None] if layout == "NHW" else array.transpose(0, 3, 1, 2)
    stored = expected if layout == "NCHW" else array
    np.savez(tmp_path / "set.npz", **{keys[0]: stored, keys[1]: np.array([2, 0, 1, 2])})
    images = load_images(tmp_path / "set.npz")
    assert np.array_equal(images.images.numpy(), expected)
    assert images.labels.tolist() == [2, 0, 1, 2] and images.class_names == ("0", "1", "2")


def test_npz_of_floats_is_rounded(tmp_path: Path, rng: np.random.Generator) -> None:
    array = pixels(rng, 3, 4, 4, 1)
    noisy = np.clip(array / 255 + rng.uniform(-0.0015, 0.0015, array.shape), 0, 1).astype(np.float32)
    np.savez(tmp_path / "set.npz", images=noisy, labels=np.arange(3), class_names=np.array(["a", "b", "c"]))
    images = load_images(tmp_path / "set.npz")
    assert np.array_equal(images.images[:, 0].numpy(), array[..., 0]) and images.class_names == ("a", "b", "c")


def test_npz_is_converted(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "set.npz", images=pixels(rng, 4, 8, 8), labels=np.array([0, 1, 0, 1]))
    images = load_images(tmp_path / "set.npz", size=4, channels=3)
    assert images.images.shape == (4, 3, 4, 4) and torch.equal(images.images[:, 0], images.images[:, 2])


def test_npz_unlabelled(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "set.npz", images=pixels(rng, 4, 8, 8))
    assert load_images(tmp_path / "set.npz", labelled=False).labels.tolist() == [-1] * 4
    with pytest.raises(InputError, match=r"no array 'labels' or 'y'.* but images"):
        load_images(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no array 'images'.*but pictures"),
        ({"images": np.zeros((2, 3, 4, 3), np.uint8)}, "does not tell where the channels are"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "does not tell where the channels are"),
        ({"images": np.zeros((2, 16), np.uint8)}, r"the shape \[2, 16\]"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "holds no images"),
        ({"images": np.full((2, 4, 4), 1.5)}, "float64 from 1.5 to 1.5; make them uint8"),
        ({"images": np.full((2, 4, 4), np.nan)}, "make them uint8"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, "make them uint8"),
        ({"labels": np.array([0, 1, 1])}, "one integer for each of the 2 images"),
        ({"labels": np.array([0.0, 1.0])}, "one integer for each of the 2 images"),
        ({"labels": np.array([0, -2])}, "has the label -2; .* counted from 0"),
        ({"class_names": np.array(["only"])}, "has the label 1; its labels must be 0 to 0"),
        ({"labels": np.array([0, {}], dtype=object)}, "other than plain arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    good = {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1])}
    np.savez(tmp_path / "set.npz", **(arrays if "pictures" in arrays else good | arrays))
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "set.npz")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    array, labels = pixels(rng, 5, 4, 6), np.array([3, 0, 1, 0, 2], dtype=np.uint8)
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(array)))
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    assert load_images(path, labelled=False).labels.tolist() == [-1] * 5
    with pytest.raises(InputError, match="No labels file t10k-labels-idx1-ubyte"):
        load_images(path)
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    images = load_images(path)
    assert np.array_equal(images.images[:, 0].numpy(), array) and images.labels.tolist() == labels.tolist()
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path / f"t10k-labels-idx1-ubyte{suffix}")
    claim = struct.pack(">HBB5I", 0, 8, 5, *[2**30] * 5)
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(claim))
    with pytest.raises(InputError, match="damaged"):
        load_images(path)
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels[:4])))
    with pytest.raises(InputError, match="5 images"):
        load_images(path)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        load_images(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="no known format"):
        load_images(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="neither a folder nor a tar"):
        load_images(f"{tmp_path / 'notes.txt'}::train")
    with pytest.raises(InputError, match=r"No images .* were found"):
        load_images(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_empty_class_folder(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    members, _ = class_members(rng, "train/")
    members["train/cow"] = None
    path = write_folder(tmp_path / "set", members) if kind == "folder" else write_tar(tmp_path / "set.tar", members)
    with pytest.raises(InputError, match=r"class folder train/cow of .* holds no images"):
        load_images(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", None])
def test_corrupt_image_is_named(tmp_path: Path, rng: np.random.Generator, content: bytes | None) -> None:
    members, _ = class_members(rng)
    members["bee/broken.png"] = png(pixels(rng, 9, 9, 3))[:-40] if content is None else content
    with pytest.raises(InputError, match=r"bee/broken\.png .* cannot be decoded"):
        load_images(write_folder(tmp_path / "set", members))


def test_deep_images_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    deep = io.BytesIO()
    Image.fromarray(rng.integers(0, 2**16, (4, 4), dtype=np.uint16)).save(deep, "PNG")
    path = write_folder(tmp_path / "set", {"a/x.png": deep.getvalue(), "b/x.png": deep.getvalue()})
    with pytest.raises(InputError, match="more than 8 bits"):
        load_images(path)


def test_image_bomb_is_refused(tmp_path: Path) -> None:
    # The header claims 8001 x 8001 pixels, which are not there.
    small = png(np.zeros((1, 1), np.uint8))
    header = b"IHDR" + struct.pack(">II", 8001, 8001) + small[24:29]
    members = {"a/x.png": small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]}
    with pytest.raises(InputError, match=r"x\.png .* more than 64000000 pixels"):
        load_images(write_folder(tmp_path / "set", members))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "npz", "idx3-ubyte.gz"])
def test_truncated_files(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    path = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(path, images=pixels(rng, 4, 32, 32), labels=np.arange(4))
    elif kind == "idx3-ubyte.gz":
        path.write_bytes(gzip.compress(idx(pixels(rng, 4, 32, 32))))
    else:
        members = {f"{name}/x.png": png(pixels(rng, 32, 32, 3)) for name in "abcdefgh"}
        write_tar(path, members, f"w:{kind[4:]}")
    content = path.read_bytes()
    for part in (0.3, 0.6):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            load_images(path, labelled=False)


def test_damaged_header_within_a_tar(tmp_path: Path, rng: np.random.Generator) -> None:
    members, _ = class_members(rng)
    path = write_tar(tmp_path / "set.tar", members)
    content = bytearray(path.read_bytes())
    content[content.index(b"ant/a.png")] = ord("x")
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_images(path)


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_text("hello")
    with pytest.raises(InputError, match="damaged"):
        load_images(tmp_path / "set.tar.gz")


def test_archive_names_reach_no_file(tmp_path: Path, rng: np.random.Generator) -> None:
    members: dict[str, bytes | None] = {
        "../../ant/a.png": png(pixels(rng, 4, 4)),
        "../../bee/a.png": png(pixels(rng, 4, 4)),
    }
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    path = write_tar(tmp_path / "deep" / "deeper" / "set.tar", members)
    before = sorted(tmp_path.rglob("*"))
    assert load_images(path).class_names == ("ant", "bee")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_that_lead_nowhere_or_round_in_circles(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(rng, 4, 4)).save(tmp_path / name / "0.png")
    (tmp_path / "a" / "round").symlink_to("..")
    assert load_images(tmp_path).labels.tolist() == [0, 1]
    (tmp_path / "b" / "gone.png").symlink_to("nothing.png")
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        load_images(tmp_path)


def test_a_folder_in_a_class_folder_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("a", "a/more", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(rng, 4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(InputError, match=r"The folder a/more of .* lies in a class folder"):
        load_images(tmp_path)

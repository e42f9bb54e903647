"""Image sets: every format, the conversions, the split, and each kind of bad input."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onp.bundle import clean_images, eval_images
from onp.bundle.make_images import choose
from onp.cifar import parse_pickle
from onp.data import PRESETS, ImageSet, Normalisation, check_for, load_images, split
from onp.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes | None], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, members: dict[str, bytes | None]) -> Path:
    for name, content in members.items():
        file = path / name
        if content is None:
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return path


def class_members(rng: np.random.Generator, prefix: str = "") -> tuple[dict[str, bytes | None], np.ndarray]:
    """Three images of two classes, written out of order, and the pixels [N, C, H, W] in the order expected."""
    array = pixels(rng, 3, 5, 7, 3)
    names = [f"{prefix}ant/a.png", f"{prefix}ant/b.PNG", f"{prefix}bee/a.png"]
    members: dict[str, bytes | None] = {names[i]: png(array[i]) for i in (2, 1, 0)}
    return members, array.transpose(0, 3, 1, 2)


def image_set(labels: list[int], shape: tuple[int, int, int] = (1, 4, 4)) -> ImageSet:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, *shape).to(torch.uint8)
    return ImageSet(images, torch.tensor(labels), tuple(str(label) for label in range(max(labels) + 1)))


# Normalisation


@pytest.mark.parametrize("name", PRESETS)
def test_normalisation_presets(name: str) -> None:
    normalisation = Normalisation.parse(name)
    channels = len(normalisation.mean)
    images = torch.rand(2, channels, 3, 5, dtype=torch.float64)
    result = normalisation(images)
    assert result.dtype == torch.float32 and result.shape == images.shape
    for channel in range(channels):
        expected = (images[:, channel] - normalisation.mean[channel]) / normalisation.std[channel]
        torch.testing.assert_close(result[:, channel], expected.float())
    assert Normalisation.parse(str(normalisation)) == normalisation


def test_normalisation_by_numbers() -> None:
    assert Normalisation.parse("0.5,0.25,0/0.5,1,2") == Normalisation((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert torch.equal(Normalisation.parse("half")(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("text", ["cifar", "", "0.5", "0.5/", "a/b", "0.5/0.5/0.5"])
def test_bad_normalisation_lists_the_presets(text: str) -> None:
    with pytest.raises(InputError, match=r"cifar10.*imagenet.*gtsrb.*fashion-mnist.*half, none nor MEAN/STD"):
        Normalisation.parse(text)


@pytest.mark.parametrize("text", ["0.5,0.5/0.5", "0.5/0", "0.5/-1", "nan/1", "0/inf"])
def test_normalisation_refuses_impossible_numbers(text: str) -> None:
    with pytest.raises(InputError, match="normalisation"):
        Normalisation.parse(text)


def test_normalisation_of_other_channels() -> None:
    with pytest.raises(InputError, match="3 channels but the images have 1"):
        Normalisation.parse("cifar10")(torch.rand(2, 1, 4, 4))


# Image sets and the split


def test_pixels_and_subset(rng: np.random.Generator) -> None:
    images = ImageSet(torch.from_numpy(pixels(rng, 4, 3, 2, 2)), torch.tensor([0, 1, 1, 0]), ("a", "b"))
    assert images.pixels().dtype == torch.float32
    torch.testing.assert_close(images.pixels() * 255, images.images.float())
    chosen = images.subset([2, 0])
    assert torch.equal(chosen.images, images.images[[2, 0]]) and chosen.labels.tolist() == [1, 0]
    assert len(images.subset(images.labels == 1)) == 2 and len(images.subset([])) == 0


def test_relabelled_by_class_name() -> None:
    images = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("bee", "cat"))
    assert images.relabelled(["ant", "bee", "cat"]).labels.tolist() == [1, 2, 2]
    with pytest.raises(InputError, match="'cat' is not among"):
        images.relabelled(["ant", "bee"])
    numbered = image_set([0, 1, 1])
    assert numbered.relabelled(["ant", "bee", "cat"]).labels.tolist() == [0, 1, 1]


def test_split_is_stratified_disjoint_and_seeded(rng: np.random.Generator) -> None:
    labels = rng.permutation(np.repeat(np.arange(5), [3, 4, 10, 33, 50])).tolist()
    images = image_set(labels)
    seed = int(rng.integers(2**31))
    splits = split(images, seed)
    parts = [splits.build, splits.score, splits.holdout]
    # Every image is its own number.
    numbers = [part.images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(itertools.chain(*numbers)) == list(range(100))
    for part, size, ids in zip(parts, (30, 30, 40), numbers, strict=True):
        assert abs(len(part) - size) <= 2
        assert part.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert part.labels.tolist() == [labels[i] for i in ids]
        assert abs(int((part.labels == 4).sum()) - size / 2) <= 2
    assert [part.images[:, 0, 0, 0].tolist() for part in vars(split(images, seed)).values()] == numbers
    assert [part.images[:, 0, 0, 0].tolist() for part in vars(split(images, seed + 1)).values()] != numbers


def test_split_of_many_tiny_classes_keeps_the_sizes() -> None:
    splits = split(image_set([label for label in range(100) for _ in range(2)]), seed=0)
    assert [len(splits.build), len(splits.score), len(splits.holdout)] == [60, 60, 80]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.5, 0.5), (-0.5, 0.5, 1.0)])
def test_split_refuses_bad_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        split(image_set([0] * 10), 0, fractions)


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        ([0, 1] * 9, (3, 8, 8), "18 images; at least 20"),
        ([0, 1] * 10, (1, 8, 8), "1 channels but the model takes 3"),
        ([0, 1] * 10, (3, 8, 9), "8x9 pixels but the model takes 8x8; pass --size"),
        ([0, 1] * 10 + [4], (3, 8, 8), "label 4 but the model has only the classes 0 to 3"),
        ([2] * 20, (3, 8, 8), "one class"),
    ],
)
def test_check_for_refuses(labels: list[int], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_for(image_set(labels, shape), classes=4, input_shape=(3, 8, 8))


def test_check_for_accepts() -> None:
    check_for(image_set([0, 3] * 10, (3, 8, 8)), classes=4, input_shape=(3, 8, 8))
    unlabelled = ImageSet(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.full((20,), -1), ())
    check_for(unlabelled, classes=4, input_shape=(3, 8, 8))


# Folders and tar archives


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
    with pytest.raises(InputError, match="No images"):
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
    with pytest.raises(InputError, match="different sizes; pass --size"):
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


# Arrays


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("data", "y")])
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
    with pytest.raises(InputError, match="no labels"):
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
        ({"labels": np.array([0, -2])}, "has the label -2"),
        ({"class_names": np.array(["only"])}, "has the label 1; its labels must be 0 to 0"),
        ({"labels": np.array([0, {}], dtype=object)}, "other than plain arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    good = {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1])}
    np.savez(tmp_path / "set.npz", **(arrays if "pictures" in arrays else good | arrays))
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "set.npz")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


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


# CIFAR batches


def python2_batch(array: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """The bytes Python 2 and its numpy wrote for {'data': array, key: labels}: the form of the published batches."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    dtype = (
        b"cnumpy\ndtype\nq\x04("
        + text(b"u1")
        + b"K\x00K\x01tRq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
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


# Bad input


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        load_images(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="no known format"):
        load_images(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="neither a folder nor a tar"):
        load_images(f"{tmp_path / 'notes.txt'}::train")
    with pytest.raises(InputError, match="No images were found"):
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


# What is really used


def test_bundle_images() -> None:
    clean, evaluation = clean_images(), eval_images()
    assert clean.images.shape == (500, 1, 28, 28) and evaluation.images.shape == (2000, 1, 28, 28)
    assert clean.labels.bincount().tolist() == [50] * 10 and evaluation.labels.bincount().tolist() == [200] * 10
    assert clean.class_names == evaluation.class_names and clean.class_names[9] == "Ankle boot"
    seen = {image.numpy().tobytes() for image in clean.images}
    assert not any(image.numpy().tobytes() in seen for image in evaluation.images)
    check_for(clean, 10, (1, 28, 28))


def test_bundle_choice_is_disjoint(rng: np.random.Generator) -> None:
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(10), 260)))
    images = ImageSet(torch.zeros(2600, 1, 1, 1, dtype=torch.uint8), labels, ())
    clean, evaluation = choose(images)
    assert len(clean) == 500 and len(evaluation) == 2000 and not set(clean.tolist()) & set(evaluation.tolist())


def test_cifar10_archive() -> None:
    path = os.environ.get("ONP_CIFAR10")
    if not path:
        pytest.skip("ONP_CIFAR10 names no archive")
    images = load_images(f"{path}::test")
    assert images.images.shape == (10000, 3, 32, 32)
    assert images.labels.bincount().tolist() == [1000] * 10 and images.class_names[0] == "airplane"

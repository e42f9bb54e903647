"""Image sets of Hugging Face's kinds: metadata beside image files, parquet shards, folders of save_to_disk."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.image_writers import pixels, png, write_folder, write_tar

from onp.data.decode import Form
from onp.data.images import load_images
from onp.data.load import read
from onp.errors import InputError
from onp.files import ByteBudget

CLASS_LABEL = {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def flat(rng: np.random.Generator) -> tuple[dict[str, bytes | None], np.ndarray]:
    array = pixels(rng, 3, 4, 4)
    return {f"images/{name}.png": png(one) for name, one in zip("abc", array, strict=True)}, array


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    ("name", "content", "labels", "names"),
    [
        ("csv", "file_name,label\nimages/c.png,bee\nimages/a.png,ant\nimages/b.png,bee\n", [0, 1, 1], ("ant", "bee")),
        ("csv", "\ufefffile_name,other,label\nimages/a.png,x,2\nimages/b.png,x,0\nimages/c.png,x,2\n", [2, 0, 2], (*"012",)),
        (
            "jsonl",
            "".join(json.dumps({"file_name": f"images/{n}.png", "labels": i}) + "\n" for i, n in enumerate("abc")),
            [0, 1, 2],
            ("0", "1", "2"),
        ),
    ],
)
def test_metadata_beside_images(tmp_path, rng, kind, name, content, labels, names):
    files, array = flat(rng)
    files[f"metadata.{name}"] = content.encode()
    path = write_folder(tmp_path / "set", files) if kind == "folder" else write_tar(tmp_path / "set.tar", files)
    images = load_images(path)
    assert np.array_equal(images.images[:, 0].numpy(), array)
    assert images.labels.tolist() == labels and images.class_names == names


def test_splits_with_metadata_of_their_own(tmp_path, rng):
    files, array = flat(rng)
    both = {f"{split}/{name}": content for split in ("train", "test") for name, content in files.items()}
    lines = "file_name,label\n" + "".join(f"images/{n}.png,{i}\n" for i, n in enumerate("abc"))
    both |= {f"{split}/metadata.csv": lines.encode() for split in ("train", "test")}
    path = write_folder(tmp_path / "set", both)
    with pytest.raises(InputError, match=r"several files of metadata .* ::test or ::train"):
        load_images(path)
    images = load_images(f"{path}::test")
    assert np.array_equal(images.images[:, 0].numpy(), array) and images.labels.tolist() == [0, 1, 2]


def test_metadata_without_classes_leaves_the_folders(tmp_path, rng):
    one = png(pixels(rng, 4, 4))
    files = {"ant/a.png": one, "bee/a.png": one, "metadata.csv": b"file_name,caption\nant/a.png,x\n"}
    assert load_images(write_folder(tmp_path / "set", files)).class_names == ("ant", "bee")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("csv", b"file_name,label\nimages/a.png,0\n", r"images/b\.png is not in metadata\.csv"),
        ("csv", b"file_name,label\n\xff\n", "damaged"),
        ("csv", b"image,label\nimages/a.png,0\n", "has no file_name"),
        ("csv", b"file_name,label\nimages/a.png,0\nimages/b.png,-1\nimages/c.png,0\n", "the label -1"),
        ("jsonl", b'{"file_name": "images/a.png", "label"', "damaged"),
        ("jsonl", b"[1]\n", "an object a line"),
        ("jsonl", b'{"file_name": "images/a.png", "label": 1}\n{"file_name": "images/b.png"}\n', "has no label"),
        (
            "jsonl",
            b"".join(b'{"file_name": "images/%c.png", "label": 1.5}\n' % name for name in b"abc"),
            "no class in metadata.jsonl",
        ),
    ],
)
def test_bad_metadata(tmp_path, rng, name, content, message):
    files, _ = flat(rng)
    with pytest.raises(InputError, match=message):
        load_images(write_folder(tmp_path / "set", files | {f"metadata.{name}": content}))


def table(path: Path, columns: dict[str, list], features: dict | None = None) -> Path:
    """Write `columns` as datasets does: features in the schema's metadata, Arrow files as streams."""
    arrow = pytest.importorskip("pyarrow")
    found = arrow.table(columns)
    if features is not None:
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(found, path)
        return path
    buffer = io.BytesIO()
    with arrow.ipc.new_stream(buffer, found.schema) as writer:
        writer.write_table(found)
    path.write_bytes(buffer.getvalue())
    return path


def cells(array: np.ndarray) -> list[dict]:
    return [{"bytes": png(one), "path": None} for one in array]


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["a.parquet"], "a.parquet"),
        (["data/test-00000-of-00002.parquet", "data/test-00001-of-00002-0123456789abcdef.parquet"], ""),
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "::test"),
        (["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"], ""),
        (["test/data-00000-of-00001.arrow", "train/data-00000-of-00001.arrow"], "::test"),
    ],
)
def test_tables(tmp_path, rng, names, given):
    array, labels = pixels(rng, 3, 4, 5, 3), rng.integers(0, 3, 3).tolist()
    features = {"picture": {"_type": "Image"}, "kind": CLASS_LABEL}
    shards = [name for name in names if "train" not in name]
    for part, name in enumerate(shards):
        rows = slice(0, None) if len(shards) == 1 else slice(part, 1) if part == 0 else slice(1, None)
        table(tmp_path / name, {"picture": cells(array[rows]), "kind": labels[rows]}, features)
    for name in set(names) - set(shards):
        table(tmp_path / name, {"picture": cells(array[:1]), "kind": labels[:1]}, features)
    if not given:
        (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(b"what datasets leaves behind")
    path = f"{tmp_path}{given}" if given.startswith("::") else tmp_path / given
    images = load_images(path, size=(4, 5))
    assert np.array_equal(images.images.numpy(), array.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == labels and images.class_names == ("ant", "bee", "cat")


def test_tables_without_features(tmp_path, rng):
    array = pixels(rng, 2, 4, 4)
    path = table(tmp_path / "a.parquet", {"label": ["bee", "ant"], "image": [png(one) for one in array]})
    images = load_images(path)
    assert images.labels.tolist() == [1, 0] and images.class_names == ("ant", "bee")
    unlabelled = table(tmp_path / "b.parquet", {"image": cells(array), "label": [-1, -1]})
    assert load_images(unlabelled, labelled=False).labels.tolist() == [-1, -1]
    with pytest.raises(InputError, match="has no labels"):
        load_images(unlabelled)


def test_bad_tables(tmp_path, rng):
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            load_images(path)
        assert "\n" not in str(error.value)

    image = cells(pixels(rng, 1, 4, 4))
    for split in ("train", "test"):
        table(tmp_path / "both" / f"{split}-00000-of-00001.parquet", {"image": image, "label": [0]})
    refused(tmp_path / "both", "several splits; choose one by adding ::test or ::train")
    refused(f"{tmp_path / 'both'}::valid", "no split valid; choose ::test or ::train")
    refused(table(tmp_path / "c.parquet", {"text": ["a"], "label": [0]}), "no column 'image', but text, label")
    linked = {"image": [{"bytes": None, "path": "/x.png"}], "label": [0]}
    refused(table(tmp_path / "d.parquet", linked), "not in the file itself")
    refused(table(tmp_path / "e.parquet", {"image": [{"bytes": b"x", "path": None}], "label": [0]}), "cannot be decoded")
    refused(table(tmp_path / "f.parquet", {"image": image, "label": [None]}), "has no labels")
    refused(table(tmp_path / "g.parquet", {"image": image * 2, "label": ["a", None]}), "have no class")
    refused(table(tmp_path / "h.parquet", {"image": image, "label": [3]}, {"label": CLASS_LABEL}), "the label 3")
    cut = table(tmp_path / "data-00000-of-00001.arrow", {"image": image, "label": [0]})
    cut.write_bytes(cut.read_bytes()[:200])
    refused(cut, "truncated or damaged")
    (tmp_path / "i.parquet").write_bytes(b"PAR1 no more")
    refused(tmp_path / "i.parquet", "truncated or damaged")


def test_row_groups_are_bounded_before_they_are_unpacked(tmp_path, rng):
    """A kilobyte that unpacks to 8 MB, and one stored image in many rows: refused, or read a few rows at a time."""
    pytest.importorskip("pyarrow")
    from pyarrow import Table, parquet

    packed = tmp_path / "a.parquet"
    parquet.write_table(
        Table.from_pydict({"image": [bytes(2**20) + bytes([each]) for each in range(8)], "label": [0] * 8}),
        packed,
        compression="zstd",
        use_dictionary=False,
    )
    assert packed.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"a\.parquet unpacks to more than this machine's memory can hold \(8 MiB"):
        read(str(packed), Form(budget=ByteBudget(2**22)))
    repeated = tmp_path / "b.parquet"
    image = png(pixels(rng, 40, 40))
    parquet.write_table(Table.from_pydict({"image": [image] * 100, "label": [0, 1] * 50}), repeated)
    assert parquet.ParquetFile(repeated).metadata.row_group(0).total_byte_size < 4 * len(image)
    budget = ByteBudget(2 * 100 * 1600 + 4 * len(image))
    assert len(read(str(repeated), Form(budget=budget)).images) == 100


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        load_images(tmp_path / "a.parquet")

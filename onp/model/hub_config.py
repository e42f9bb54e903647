"""Checkpoints with a `config.json` beside them, as timm and transformers save image classifiers.

It is read as data. Nothing is fetched, and nothing in it names code or other files to load: what would is refused or left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onp.data.images import ImageSet
from onp.data.metadata import CLASSES
from onp.data.normalisation import Normalisation
from onp.errors import InputError, first_few, printable
from onp.files import read_regular

SPEC = "config:"  #: an architecture that a config.json describes is written config:PATH
CONFIG = "config.json"
PREPROCESSING = "preprocessor_config.json"
MAX_BYTES = 64 * 2**20  #: of a config
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Options of timm that open or download files, and of transformers that download weights or kernels or import code.
_TIMM_FILES = re.compile(r"pretrained.*|checkpoint_path|cache_dir|model_name")
_BACKBONES = ("backbone", "use_pretrained_backbone", "use_timm_backbone")
_CODE = re.compile(r"auto_map|custom_pipelines|quantization_config|.*_implementation(_internal)?")


@dataclass(frozen=True)
class HubModel:
    """What the config of a saved image classifier says."""

    path: Path  #: of config.json
    package: str  #: "timm" or "transformers"
    name: str  #: "resnet18", or a model type of transformers: "resnet"
    options: dict[str, Any]  #: what the package builds the network from
    channels: int
    class_names: tuple[str, ...]  #: by label; empty where the classes are not named
    size: int | None  #: H and W in pixels of the images; None where it is not given, or not a square
    normalisation: Normalisation | None

    def __str__(self) -> str:
        return f"{self.package} {self.name}"

    def in_order(self, images: ImageSet) -> ImageSet:
        """The images with labels counted as the network counts its classes, where both name them alike.

        Raises:
            InputError: only some names are alike, or none and there are more or fewer of them.
        """
        named = set(images.class_names)
        numbers = all(name.isdigit() for name in named)
        if not self.class_names or not images.labelled or not (numbers or named & set(self.class_names)):
            if self.class_names and images.labelled and len(named) != len(self.class_names):
                raise InputError(
                    f"None of the data's {len(named)} classes ({first_few(images.class_names)}) is among the model's "
                    f"{len(self.class_names)} ({first_few(self.class_names)}); name them as {self.path} does."
                )
            return images
        return images.relabelled(self.class_names)


def hub_model(spec: str | None) -> HubModel | None:
    """The model of a `config:PATH`; None for every other architecture."""
    return read_config(Path(spec.removeprefix(SPEC))) if spec is not None and spec.startswith(SPEC) else None


def read_config(path: Path) -> HubModel:
    """Read the `config.json` of a timm or transformers image classifier, and the preprocessing that lies beside it.

    Raises:
        InputError: it is damaged, of something else, or asks for other files or code.
    """
    config = _json(path)
    try:
        if isinstance(config.get("architecture"), str):
            return _timm(path, config)
        if isinstance(config.get("model_type"), str):
            return _transformers(path, config)
    except InputError:
        raise
    except Exception as error:  # whatever values of other kinds and sizes than these packages write lead to
        raise InputError(f"{path} is not what timm or transformers write; give --arch, --norm and the weights file.") from error
    raise InputError(f"{path} describes no timm or transformers model; say with --arch which network the weights belong to.")


def companions(model: Path, known: HubModel | None = None) -> list[Path]:
    """The files beside a checkpoint from which timm or transformers load it again; none where it is not theirs.

    Args:
        model: the checkpoint.
        known: a model whose `config.json` was read before, and need not be read again.
    """
    config = model.parent / CONFIG
    if known is None or known.path != config:
        try:
            read_config(config)
        except InputError:
            return []
    return [path for name in (CONFIG, PREPROCESSING) if (path := model.parent / name).is_file()]


def weights_in(folder: Path) -> Path:
    """The one file of weights in a folder that timm or transformers wrote.

    Raises:
        InputError: there is none, or several and none under the usual name.
    """
    found = [folder / name for name in WEIGHTS if (folder / name).exists()] or sorted(folder.glob("*.safetensors"))
    if not found:
        raise InputError(f"The folder {folder} holds no weights ({' or '.join(WEIGHTS)}); give the file itself.")
    if len(found) > 1 and found[0].name not in WEIGHTS:
        raise InputError(
            f"The folder {folder} holds several files of weights; give the one to repair, or save the model again as one file."
        )
    return found[0]


def _json(path: Path) -> dict[str, Any]:
    content = read_regular(path, MAX_BYTES)
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file; download or copy it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not the config of a model.")
    return found


def _timm(path: Path, config: dict[str, Any]) -> HubModel:
    """https://huggingface.co/docs/timm: `architecture`, and `pretrained_cfg` or, in old files, its entries at the top."""
    trained = config.get("pretrained_cfg") or config
    options = dict(config.get("model_args") or {})
    refused = [name for name in options if _TIMM_FILES.fullmatch(name)]
    if refused or not re.fullmatch(r"\w[\w.]*", config["architecture"]):
        what = f"the option {printable(refused[0])}" if refused else f"the architecture {printable(config['architecture'])!r}"
        raise InputError(f"{path} asks for {what}, which names other files; remove it or give --arch.")
    size = trained.get("input_size")
    classes = config.get("num_classes", trained.get("num_classes"))
    options = {"num_classes": classes} | options if classes is not None else options
    if int(options.get("num_classes", 1)) > CLASSES:
        raise InputError(f"{path} says that the model has more than {CLASSES} classes; it is damaged.")
    channels = int(options.setdefault("in_chans", size[0] if size else 3))
    names = config.get("label_names") or trained.get("label_names") or ()
    if isinstance(names, dict):
        names = [names.get(str(label), str(label)) for label in range(int(options["num_classes"]))]
    return HubModel(
        path,
        "timm",
        config["architecture"],
        options,
        channels,
        tuple(map(str, names)),
        int(size[1]) if size and size[1] == size[2] else None,
        Normalisation(_numbers(trained["mean"]), _numbers(trained["std"])) if "mean" in trained else None,
    )


def _transformers(path: Path, config: dict[str, Any]) -> HubModel:
    """https://huggingface.co/docs/transformers/main_classes/configuration; the images' side is in a file of its own."""
    made_for = config.get("architectures") or ["ForImageClassification"]
    if not any("ForImageClassification" in name for name in made_for):
        raise InputError(f"{path} describes a {printable(made_for[0])}, not an image classifier.")
    backbone = [name for name in _BACKBONES if config.get(name)]
    if backbone:
        raise InputError(f"{path} asks for another model's weights ({backbone[0]}); give --arch package.module:callable.")
    labels = config.get("id2label") or {}
    names = tuple(str(labels[str(label)]) for label in range(len(labels)))
    if all(name == f"LABEL_{label}" for label, name in enumerate(names)):
        names = ()  # what transformers writes where nobody named them
    beside = path.with_name(PREPROCESSING)
    images = _json(beside) if beside.exists() else {}
    size = _side(images.get("crop_size") if images.get("do_center_crop") else images.get("size"))
    return HubModel(
        path,
        "transformers",
        config["model_type"],
        _without_code({key: value for key, value in config.items() if key != "model_type"}),
        int(config.get("num_channels", 3)),
        names,
        size or _side(config.get("image_size")),
        _preprocessing(images) if images else None,
    )


def _preprocessing(images: dict[str, Any]) -> Normalisation | None:
    """(factor * 255 * x - mean) / std of pixels x in [0, 1], as one normalisation."""
    factor = 255 * float(images.get("rescale_factor", 1 / 255)) if images.get("do_rescale", True) else 255.0
    if images.get("rescale_offset"):
        return None
    names = ("image_mean", "image_std")
    mean, std = map(_numbers, (images[name] for name in names) if images.get("do_normalize", True) else (0.0, 1.0))
    return Normalisation(*(tuple(round(value / factor, 9) for value in values) for values in (mean, std)))


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values if isinstance(values, list) else [values]))


def _side(size: Any) -> int | None:
    """The side of the square images that a size of transformers asks for, in any of the forms it is written in."""
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    if isinstance(size, list):
        size = size[0] if len(set(size)) == 1 else None
    return None if size is None else int(size)


def _without_code(config: Any) -> Any:
    """The config, and those within it, without what would import code."""
    if not isinstance(config, dict):
        return config
    return {key: _without_code(value) for key, value in config.items() if not _CODE.fullmatch(key)}

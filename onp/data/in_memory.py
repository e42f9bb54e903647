"""Images and labels of a notebook: tensors, arrays, Datasets and DataLoaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from onp.data.metadata import LABELS
from onp.data.parquet import IMAGES
from onp.errors import InputError, first_few, first_line
from onp.files import ByteBudget

MOST = 50_000  #: images of a Dataset; a few hundred are enough


def is_source(images: object) -> bool:
    """Whether `images` brings its labels: a DataLoader, or a Dataset of (image, label)."""
    if isinstance(images, (DataLoader, torch.utils.data.Dataset)):
        return True
    sized = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    return sized and not isinstance(images, (Tensor, np.ndarray, str))


def pairs_of(source: Any) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Images uint8 `[N, C, H, W]`, labels `[N]` and class names (None where it has none) of a DataLoader or Dataset.

    Args:
        source: of (image, label) or of dicts with an `image` and a `label`; each image a PIL image, a tensor or an array,
            uint8 or in [0, 1]. A DataLoader gives batches of them.

    Raises:
        InputError: its items are of another kind, it holds no image or very many, or reading it fails.
    """
    batched = isinstance(source, DataLoader)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    budget, count = ByteBudget(), 0
    for item in _items(source):
        image, label = _pair(item, source)
        part = pixels_of(image if batched else _one(image))
        counted = labels_of(label).reshape(-1)
        if len(counted) != len(part):
            raise InputError(
                f"The {type(source).__name__} gives {len(counted)} labels for {len(part)} images; give one for each."
            )
        budget.take(2 * part.numel(), f"The {type(source).__name__}")
        count += len(part)
        if count > MOST:
            raise InputError(
                f"The {type(source).__name__} holds more than {MOST} images; give a few hundred: torch.utils.data.Subset."
            )
        images.append(part)
        labels.append(counted)
    if not images:
        raise InputError(f"The {type(source).__name__} holds no images.")
    sizes = {tuple(part.shape[1:]) for part in images}
    if len(sizes) > 1:
        raise InputError(f"The images have different shapes ({first_few(sorted(sizes))}); make them alike in the transform.")
    return torch.cat(images), torch.cat(labels), _names(source)


def pixels_of(images: Any) -> Tensor:
    """uint8 `[N, C, H, W]` on the CPU, of a tensor or array `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`.

    Raises:
        InputError: it is of another kind, or neither uint8 nor in [0, 1].
    """
    try:
        # Of arrays a copy, where torch would warn that it cannot write to them.
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.require(images, requirements="W")).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The images are of type {type(images).__name__}; give one tensor or array [N, C, H, W], a Dataset or a DataLoader."
        ) from error
    tensor = tensor[:, None] if tensor.dim() == 3 else tensor
    if tensor.dim() != 4 or not len(tensor):
        raise InputError(f"The images have the shape {list(tensor.shape)}; give [N, C, H, W].")
    if tensor.shape[1] not in (1, 3) and tensor.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.is_floating_point():
        if not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise InputError(
                f"The images go from {tensor.min():.2f} to {tensor.max():.2f}; "
                "give them before normalisation, in [0, 1] or uint8."
            )
        tensor = (tensor * 255).round()
    elif tensor.dtype != torch.uint8:
        raise InputError(f"The images are {tensor.dtype}; give uint8, or floats in [0, 1].")
    return tensor.to(torch.uint8).contiguous()


def labels_of(labels: Any) -> Tensor:
    """The labels as a tensor; raises InputError for what are no numbers."""
    try:
        return torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels)).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("The labels are no numbers; give the number of each image's class, as the network counts.") from error


def _items(source: Any) -> Iterator[Any]:
    """What the source gives, in order; its own errors as a sentence."""
    # By position where there are positions: a Dataset need not know where it ends when it is iterated over.
    by_position = not isinstance(source, (DataLoader, torch.utils.data.IterableDataset))
    try:
        yield from (source[position] for position in range(len(source))) if by_position else source
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"The images cannot be read from the {type(source).__name__} ({first_line(error)}).") from error


def _pair(item: Any, source: Any) -> tuple[Any, Any]:
    """Image and label, or a batch of them."""
    if isinstance(item, Mapping):
        image, label = (next((item[key] for key in keys if key in item), None) for keys in ((*IMAGES, "images"), LABELS))
        if image is not None and label is not None:
            return image, label
    elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) >= 2:
        return item[0], item[1]
    found = f"dicts with {first_few(item)}" if isinstance(item, Mapping) else type(item).__name__
    raise InputError(f"The {type(source).__name__} gives {found}; it must give (image, label).")


def _one(image: Any) -> Any:
    """One image as a batch."""
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return image[None] if isinstance(image, (Tensor, np.ndarray)) else np.asarray(image)[None]


def _names(source: Any) -> tuple[str, ...] | None:
    """The names of the classes that sets of torchvision and of Hugging Face datasets carry."""
    while source is not None:
        features = getattr(source, "features", None)
        label = next((features[key] for key in LABELS if key in features), None) if isinstance(features, Mapping) else None
        names = getattr(source, "classes", None) or getattr(label, "names", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and names:
            return tuple(map(str, names))
        source = getattr(source, "dataset", None)  # of a DataLoader or Subset
    return None

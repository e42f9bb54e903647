"""Make clean.npz and eval.npz from the Fashion-MNIST test set.

    python bench/make_bundle_images.py IDX_FOLDER [OUT_FOLDER]

IDX_FOLDER holds t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz as published. The models of the bundle are
trained on the training set, so they have seen none of these images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onp.data.images import ImageSet, load_images

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CLEAN_PER_CLASS = 50
EVAL_PER_CLASS = 200
SEED = 0


def choose(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Positions of the clean and of the evaluation images: disjoint, equally many of each class, in file order."""
    generator = torch.Generator().manual_seed(SEED)
    clean, evaluation = [], []
    for label in range(len(CLASS_NAMES)):
        members = (images.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        clean.append(members[:CLEAN_PER_CLASS])
        evaluation.append(members[CLEAN_PER_CLASS : CLEAN_PER_CLASS + EVAL_PER_CLASS])
    return torch.cat(clean).sort().values, torch.cat(evaluation).sort().values


def main(source: Path, out: Path) -> None:
    images = load_images(source / "t10k-images-idx3-ubyte.gz")
    for name, index in zip(("clean", "eval"), choose(images), strict=True):
        chosen = images.subset(index)
        np.savez_compressed(
            out / f"{name}.npz",
            images=chosen.images.numpy(),
            labels=chosen.labels.numpy().astype(np.uint8),
            class_names=np.array(CLASS_NAMES),
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python bench/make_bundle_images.py IDX_FOLDER [OUT_FOLDER]")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent)

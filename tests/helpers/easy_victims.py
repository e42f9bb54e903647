"""Images that a tiny network learns in seconds, and the settings to train it with."""

import torch

from onp.attack import AttackConfig
from onp.data.images import ImageSet

ARCH = "vgg11_bn:width=4,classes=3,channels=1"


def easy_images(count, seed=0):
    """Three classes: bright left half, bright right half, bright top."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :, :8] += 120
    images[labels == 1, :, :, 8:] += 120
    images[labels == 2, :, :6, :] += 120
    return ImageSet(images, labels, ("left", "right", "top"))


def config(**changes):
    base = {
        "arch": ARCH,
        "norm": "half",
        "epochs": 4,
        "batch_size": 32,
        "pad": 1,
        "flip": False,
        "lr": 0.05,
        "poison_rate": 0.2,
        "quiet": True,
    }
    return AttackConfig(**(base | changes))


class StoppingImages(ImageSet):
    """Images that raise KeyboardInterrupt when they are read while a file exists: a run that is killed at that point."""

    stop_file = None

    def subset(self, index):
        if self.stop_file.exists():
            raise KeyboardInterrupt
        return super().subset(index)


def stopping_images(images, stop_file):
    kind = type("Stopping", (StoppingImages,), {"stop_file": stop_file})
    return kind(images.images, images.labels, images.class_names)

"""One image file to pixels, and the pixels of a set to one array."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from onp.errors import InputError
from onp.files import ByteBudget

# Only decoders of plain raster files: Pillow would otherwise also try formats that start other programs.
DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")
MAX_PIXELS = 64_000_000  #: a file that claims more, or would be scaled to more, is taken for a decompression bomb

Size = tuple[int, int]  # H, W in pixels


@dataclass(frozen=True)
class Form:
    """The form that the images of a set are wanted in, and how many bytes they may take."""

    size: Size | None = None  #: scaled and cropped to this; None leaves them as they are
    channels: int | None = None  #: 1 or 3; None leaves it to the files
    labelled: bool = True  #: whether every image needs a class
    budget: ByteBudget = field(default_factory=ByteBudget, compare=False)

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise InputError(f"Images can be converted to 1 or 3 channels, not to {self.channels}.")
        if self.size is None:
            return
        height, width = self.size
        if min(self.size) < 1:
            raise InputError(f"The image size {height}x{width} must be at least 1x1.")
        if height * width > MAX_PIXELS:
            raise InputError(f"The image size {height}x{width} is more than {MAX_PIXELS} pixels; give that of the network.")


def fit(image: Image.Image, form: Form) -> np.ndarray:
    """Pixels uint8 `[C, H, W]` of an image: scaled to cover the size and cropped at the centre, in 1 or 3 channels.

    Without a number of channels grayscale files give 1 and all others 3; transparency is dropped.

    Raises:
        InputError: the image is so thin that scaling it would take more than `MAX_PIXELS`.
    """
    gray = image.mode in ("1", "L", "LA")
    mode = "L" if form.channels == 1 or (form.channels is None and gray) else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if form.size is not None and (image.height, image.width) != form.size:
        height, width = form.size
        scale = max(height / image.height, width / image.width)
        scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise InputError(f"An image of {image.height}x{image.width} pixels is too thin to scale; crop or remove it.")
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        image = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def decode(name: str, content: bytes, form: Form) -> np.ndarray:
    """The pixels uint8 `[C, H, W]` of one image file.

    Raises:
        InputError: it is damaged, too large or too deep; the message has its `name`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"The image {name} has more than {MAX_PIXELS} pixels; scale it down or remove it.")
            if image.mode.startswith(("I", "F")):
                raise InputError(f"The image {name} has more than 8 bits a channel; convert it to 8 bits.")
            height, width = form.size or (image.height, image.width)
            # Twice: one array of each image, and one of all.
            form.budget.take(2 * height * width * (form.channels or len(image.getbands())), f"The set with the image {name}")
            return fit(image, form)
    except InputError:
        raise
    # Pillow's decoders raise many kinds on damaged bytes (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise InputError(f"The image {name} cannot be decoded; repair or remove it.") from error


def stack(images: list[np.ndarray], where: str) -> np.ndarray:
    """One array uint8 `[N, C, H, W]`; a mixture of grayscale and colour becomes RGB.

    Raises:
        InputError: the images of the set `where` have several sizes.
    """
    if len({image.shape[1:] for image in images}) > 1:
        raise InputError(f"The images of {where} have different sizes; give --image-size to resize them.")
    if len({len(image) for image in images}) > 1:
        images = [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in images]
    return np.stack(images)

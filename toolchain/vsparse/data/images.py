"""One image file: decoded, turned as its EXIF orientation says, and refused where its decoder would make pixels up."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vsparse.errors import InputError

PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "PPM")
CHANNELS = {"L": 1, "RGB": 3}
MAX_IMAGE_PIXELS = 16 * 2**20
ORIENTATION = 0x0112
UPRIGHT = 1
# Bits that no Huffman table reads as nothing.
FILLER, END_OF_IMAGE = b"\x55" * 64, b"\xff\xd9"


class Remarks:
    """What the decoders of a data set said, counted: the text of a remark, how many images it is about, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, text: str, source: str) -> None:
        """Counts a remark on one image."""
        self.counts[text] += 1
        self.first.setdefault(text, source)

    def sentences(self, total: int) -> tuple[str, ...]:
        """Returns a sentence for each remark."""
        return tuple(f"{count} of {total} images {text} (the first: {self.first[text]})" for text, count in self.counts.items())


def decode(
    data: bytes,
    source: str,
    wanted: tuple[str, tuple[int, int]] | None,
    first: str,
    remarks: Remarks,
    resize: tuple[int, ...] = (),
) -> tuple[str, NDArray[np.uint8]]:
    """Returns an image's mode and its pixels [C, H, W], upright; its header is compared with the first image's before it is decoded.

    With `resize`, height and width, only its mode is compared, and the upright image is resized to them (`resized`).
    """
    try:
        with warnings.catch_warnings(record=True) as said, Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            mode, size = image.mode, image.size
            if mode not in CHANNELS:
                raise InputError(f"{source} has Pillow mode {mode}; save it as 8-bit grey or RGB, without transparency or palette")
            if size[0] * size[1] > MAX_IMAGE_PIXELS or 0 in size:
                raise InputError(f"{source} has {size[0]} × {size[1]} pixels; give images of 1 to {MAX_IMAGE_PIXELS} pixels")
            if wanted is not None and (mode != wanted[0] or (not resize and sorted(size) != sorted(wanted[1]))):
                raise _differs(source, size, mode, first, wanted)
            upright = _upright(image, source, remarks)
            if wanted is not None and not resize and upright.size != wanted[1]:
                raise _differs(source, upright.size, mode, first, wanted)
            pixels = np.asarray(resized(upright, resize) if resize else upright, dtype=np.uint8)
            if image.format == "JPEG" and _ends_early(data, np.asarray(image)):
                raise ValueError("its data ends before the last pixels, and a decoder would fill them with grey")
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{source} is no PNG, JPEG, BMP, PPM or PGM image by its first bytes; save it as one of these") from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged files
        raise InputError(f"{source} is no readable PNG, JPEG, BMP, PPM or PGM image ({str(error)[:120]}); replace it") from error
    for text in dict.fromkeys(" ".join(str(one.message).split())[:120] for one in said):
        remarks.add(f"made the decoder warn: {text}", source)
    return mode, pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _differs(source: str, size: tuple[int, int], mode: str, first: str, wanted: tuple[str, tuple[int, int]]) -> InputError:
    what = f"{size[0]} × {size[1]} {mode}, and {first} is {wanted[1][0]} × {wanted[1][1]} {wanted[0]}"
    if mode != wanted[0]:
        return InputError(f"{source} is {what}; make all images one size and one mode")
    return InputError(f"{source} is {what}; make all images one size and one mode, or set data.resize to a height and a width")


def resized(image: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Returns an image of that height and width, as `Image.resize` with BILINEAR makes it: it averages where it shrinks."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _upright(image: Image.Image, source: str, remarks: Remarks) -> Image.Image:
    """Returns the image as any viewer shows it: turned and mirrored as its EXIF orientation says."""
    orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    if orientation == UPRIGHT:
        return image
    if orientation not in range(2, 9):
        remarks.add(f"have the EXIF orientation {str(orientation)[:20]}, which means nothing, and are read as stored", source)
        return image
    remarks.add("are turned or mirrored as their EXIF orientation says, as any viewer shows them", source)
    return ImageOps.exif_transpose(image)


def _ends_early(data: bytes, decoded: NDArray[np.uint8]) -> bool:
    """Whether a JPEG's entropy-coded data ends before its last block: libjpeg then only warns, which Pillow drops, and paints grey.

    FILLER is put before the end. A whole image, `decoded` as the file has it, is complete by then and stays the same; one that ends early
    is read on into the filler. What follows the first image (previews, other images of an MPO file) is not looked at.
    """
    end = _end_of_image(data)
    if end is None:
        return True
    with Image.open(io.BytesIO(data[:end] + FILLER + END_OF_IMAGE), formats=("JPEG",)) as image:
        return not np.array_equal(np.asarray(image), decoded)


def _end_of_image(data: bytes) -> int | None:
    """Returns the offset of the end-of-image marker that closes the scans of a JPEG (ITU T.81, annex B), None where there is none."""
    place = 2
    while True:
        place = data.find(0xFF, place)  # between segments: entropy-coded data, or bytes that decoders skip too
        if place < 0 or place + 1 >= len(data):
            return None
        marker = data[place + 1]
        if marker == 0xD9:
            return place
        if marker == 0xFF:
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")

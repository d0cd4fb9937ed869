"""Pictures in and out: whatever a person hands us becomes RGB uint8 (H, W, 3), upright, or one clear error."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from pose_tools.files import atomic_path
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded, in pixels: twice a 30-megapixel photograph, 192 MB as RGB."""

# Never EPS, whose decoder starts a program, nor anything else that is no plain picture.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

ImageSource: TypeAlias = str | os.PathLike | bytes | np.ndarray | Image.Image


class ImageError(UserError):
    """A picture that cannot be read; the message names the file, what is wrong and what to do."""


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a file's path, its bytes, a PIL picture or an array.

    EXIF rotation is applied, transparency is laid on white, grey is repeated, 16 bits become 8, an animation gives its first
    frame. Arrays must be uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). `name` stands for the file in messages.

    Raises ImageError for a missing, empty, truncated or undecodable file, and above `max_pixels` (checked before decoding).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "the array")
    if isinstance(source, Image.Image):
        return _decode(source, name or getattr(source, "filename", "") or "the picture", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), name or "the picture", max_pixels)
    path = Path(source)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        raise ImageError(f"{name or path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path") from error
    return _from_bytes(data, name or str(path), max_pixels)


def check_suffix(path: Path) -> str:
    """The format that `write_image` will give a file of this name. ImageError where the name ends in none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in FORMATS:
        raise ImageError(f"{path}: unknown picture suffix {path.suffix!r}, use .jpg or .png")
    return kind


def write_image(path: str | os.PathLike, image: np.ndarray, *, quality: int = 95) -> None:
    """Writes RGB uint8 (H, W, 3) or grey uint8 (H, W) as the suffix says (.jpg, .png, .webp …); whole or not at all."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ImageError(f"{path}: can write uint8 (H, W) or (H, W, 3), got {image.dtype} {image.shape}")
    path = Path(path)
    kind = check_suffix(path)
    options = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
    try:
        with atomic_path(path) as temporary:
            Image.fromarray(image).save(temporary, format=kind, **options)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}); is there room, and may we write there?") from error


def _from_bytes(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes)")
    Image.init()
    try:
        picture = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, it would unpack to more than {max_pixels / 1e6:.0f} megapixels") from error
    except Exception as error:  # a broken header can raise nearly anything
        raise ImageError(f"{name}: not a picture we can read ({len(data)} bytes); expected one of {', '.join(FORMATS)}") from error
    with picture:
        return _decode(picture, name, max_pixels)


def _decode(picture: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    width, height = picture.size
    if width * height > max_pixels:
        megapixels = f"{width}x{height} is {width * height / 1e6:.0f} megapixels, more than {max_pixels / 1e6:.0f}"
        raise ImageError(f"{name}: refused, {megapixels}; make it smaller first")
    if width * height == 0:
        raise ImageError(f"{name}: the picture has no pixels ({width}x{height})")
    try:
        picture.load()
    except Exception as error:  # every decoder has errors of its own
        raise ImageError(f"{name}: the picture is truncated or damaged ({error}); get the file again") from error
    return np.asarray(_to_rgb(_upright(picture, name), name))


def _upright(picture: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # damaged EXIF in a sound picture: keep the pixels as they lie
        logger.warning("%s: EXIF data cannot be read (%s), rotation not applied", name, error)
        return picture


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ImageError(f"{name}: a picture of floating-point numbers has no fixed range; save it as 8 bit first")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _from_array(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.size == 0 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: expected uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.dtype} {image.shape}")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] == 4:
        return np.asarray(_to_rgb(Image.fromarray(image), name))
    return image

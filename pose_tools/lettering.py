"""Text on pictures: fonts that need no system files, label plates that keep out of each other's way, wrapped captions."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
"""RGB, 0–255."""

Rectangle = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the picture drawn on."""


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface that comes with Pillow, `size` pixels tall."""
    return ImageFont.load_default(max(6, size))


@lru_cache(maxsize=4096)
def _known(character: str) -> bool:
    """Whether the typeface has this character; what it lacks all looks like the same empty frame."""
    face = font(20)
    return character == " " or bytes(face.getmask(character)) != bytes(face.getmask("\U0010ffff"))


def readable(text: str) -> str:
    """`text` with the characters the typeface lacks replaced: × by x, accents dropped where need be, others by a question mark."""
    out = []
    for character in text:
        if character == "\n" or _known(character):
            out.append(character)
            continue
        plain = "x" if character == "×" else " " if character.isspace() else unicodedata.normalize("NFKD", character)[:1]
        out.append(plain if plain and _known(plain) else "?")
    return "".join(out)


def width_of(text: str, size: int) -> float:
    """Width in pixels of one line of `text`."""
    return font(size).getlength(text)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour` (by its luminance, Rec. 709)."""
    r, g, b = colour
    return (15, 15, 18) if 0.2126 * r + 0.7152 * g + 0.0722 * b > 140 else (255, 255, 255)


def shorten(text: str, size: int, room: float) -> str:
    """`text` on one line, cut to `room` pixels with an ellipsis."""
    text = " ".join(readable(text).split())
    if width_of(text, size) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(text[:middle].rstrip() + "…", size) <= room else (low, middle - 1)
    return text[:low].rstrip() + "…"


def wrap(text: str, size: int, room: float, most: int) -> list[str]:
    """`text` in at most `most` lines of `room` pixels; its own line breaks are kept, words longer than a line are cut."""
    lines: list[str] = []
    for paragraph in readable(text).splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if line and width_of(joined, size) > room:
                lines.append(line)
                line = word
            else:
                line = joined
        lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [shorten(line, size, room) for line in lines]


def plate_place(box: Rectangle, plate: tuple[float, float], picture: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle:
    """Where a label plate of `plate` (w, h) goes for `box`: on top of it, else below, else inside; always within `picture` (w, h) and,
    where possible, off the plates already `taken`."""
    (x1, y1, x2, y2), (w, h) = box, plate
    spots = [(x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y1), (x2 - w, y2 - h), (x2, y1), (x1 - w, y1)]
    best, least = None, np.inf
    for rank, (x, y) in enumerate(spots):
        inside_x, inside_y = float(np.clip(x, 0, max(0, picture[0] - w))), float(np.clip(y, 0, max(0, picture[1] - h)))
        place = (inside_x, inside_y, inside_x + w, inside_y + h)
        cost = rank * 0.02 + 3 * sum(_shared(place, other) for other in taken) / (w * h) + (abs(inside_x - x) / w + abs(inside_y - y) / h)
        if cost < least:
            best, least = place, cost
    assert best is not None
    return best


def _shared(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def draw_plate(pixels: np.ndarray, place: Rectangle, text: str, colour: Colour, size: int) -> None:
    """Draw a filled plate with `text` into `pixels` (H, W, 3) uint8."""
    x1, y1, x2, y2 = (round(v) for v in place)
    picture = Image.fromarray(pixels[y1:y2, x1:x2])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, x2 - x1, y2 - y1), fill=colour)
    pen.text((0.4 * size, (y2 - y1) / 2), text, font=font(size), fill=ink_on(colour), anchor="lm")
    pixels[y1:y2, x1:x2] = np.asarray(picture)


def text_block(lines: Sequence[str], size: int, width: int, ink: Colour, paper: Colour) -> np.ndarray:
    """Lines of text as a picture (H, width, 3) uint8 with a small margin."""
    step = round(1.35 * size)
    picture = Image.new("RGB", (width, step * len(lines) + round(0.6 * size)), paper)
    pen = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        pen.text((0.35 * size, 0.25 * size + i * step), line, font=font(size), fill=ink)
    return np.array(picture)

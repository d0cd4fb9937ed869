"""A picture is the same picture whatever it is given as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.pixels import as_rgb

UPRIGHT, ON_ITS_SIDE = 1, 6
ORIENTATION = 0x0112  # in EXIF


@pytest.mark.parametrize(
    "mode, orientation", [("RGB", UPRIGHT), ("RGB", ON_ITS_SIDE), ("RGBA", UPRIGHT), ("LA", UPRIGHT), ("I;16", UPRIGHT)]
)
def test_an_open_file_is_read_as_its_path(tmp_path: Path, mode: str, orientation: int):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        given = as_rgb(opened)
    assert np.array_equal(given, as_rgb(tmp_path / "a.png"))
    assert np.array_equal(given, as_rgb((tmp_path / "a.png").read_bytes()))
    assert given.shape == ((8, 6, 3) if orientation == ON_ITS_SIDE else (6, 8, 3))

"""Reading pictures: every kind a person may hand us, and one clear message for what is no picture."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pose_tools.image_io import ImageError, read_image, write_image

PICTURE = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((60, 40)))


def encoded(picture, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_bytes_picture_and_array_give_the_same(tmp_path):
    path = tmp_path / "a picture.png"
    write_image(path, PICTURE)
    for source in (path, str(path), path.read_bytes(), Image.open(path), PICTURE):
        assert np.array_equal(read_image(source), PICTURE)
    assert [p.name for p in tmp_path.iterdir()] == ["a picture.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    undo |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2), 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(undo[orientation](PICTURE))
    assert np.array_equal(read_image(encoded(stored, exif=exif)), PICTURE)


def test_grey_alpha_palette_and_16_bit_become_rgb():
    grey = PICTURE[..., 0]
    assert np.array_equal(read_image(encoded(grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_image(grey), read_image(encoded(grey)))
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 257))
    assert np.array_equal(read_image(deep), read_image(grey))
    alpha = np.zeros((*grey.shape, 1), np.uint8)
    alpha[:, 30:] = 255
    clear = np.concatenate([PICTURE, alpha], -1)
    for source in (clear, encoded(clear)):
        assert (read_image(source)[:, :30] == 255).all()
        assert np.array_equal(read_image(source)[:, 30:], PICTURE[:, 30:])
    palette = Image.fromarray(PICTURE).quantize(8)
    assert np.array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))
    see_through = encoded(palette, transparency=0)
    assert (read_image(see_through)[np.asarray(palette) == 0] == 255).all()
    assert read_image(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")).shape == PICTURE.shape
    assert read_image(encoded(Image.fromarray(grey > 99), "PNG")).shape == PICTURE.shape


def test_a_truncated_jpeg_names_the_file(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(PICTURE, "JPEG")[:-400])
    with pytest.raises(ImageError, match=r"cut\.jpg: the picture is truncated or damaged"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_never_raise_anything_else(kind):
    whole = encoded(PICTURE, kind)
    rng = np.random.default_rng(7)
    for length in rng.integers(1, len(whole), 25):
        damaged = bytearray(whole)
        damaged[length] ^= 255
        for data in (whole[:length], bytes(damaged)):
            with contextlib.suppress(ImageError):
                assert read_image(data).dtype == np.uint8


def test_what_is_no_picture_is_said_so(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageError, match=r"notes\.txt: not a picture we can read \(5 bytes\)"):
        read_image(text)
    with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty"):
        read_image(empty)
    with pytest.raises(ImageError, match=r"gone\.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="null byte"):
        read_image("a\0b.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="not a picture"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ImageError, match=r"uint8 .* got float64 \(3, 3, 3\)"):
        read_image(np.zeros((3, 3, 3)))


def test_a_photograph_of_30_megapixels_is_read():
    big = encoded(Image.new("RGB", (6720, 4480), (10, 200, 30)), "JPEG")
    image = read_image(big)
    assert image.shape == (4480, 6720, 3) and abs(int(image[99, 99, 1]) - 200) < 4


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"bomb\.png: refused, .* more than 64"):
        read_image(bomb, name="bomb.png")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    write_image(path, PICTURE)

    def full(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"old\.png: cannot be written \(disk full\)"):
        write_image(path, PICTURE[::-1])
    assert np.array_equal(read_image(path), PICTURE) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ImageError, match="unknown picture suffix"):
        write_image(tmp_path / "x.docx", PICTURE)

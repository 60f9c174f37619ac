"""Image files give the picture that a viewer shows, whatever their mode, or are refused by name; never a hang."""

import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from nbsnn.data.decode import as_shown, center_crop, open_picture, square, whole_picture
from nbsnn.data.files import printable, why_no_file
from nbsnn.errors import ConfigError, DataError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))  # grey, 4 × 256
COLORS = np.stack([RAMP, RAMP[:, ::-1], np.roll(RAMP, 77, 1)], 2)
ALPHA = np.roll(RAMP, 100, 1)


def shown(image, kind="PNG", **options):
    """What we make of a picture that was saved in a file of some kind, [H, W, 3] int."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return whole_picture(file, "it").permute(1, 2, 0).numpy().astype(int)


def on_white(colors, alpha):
    """Colours [H, W, 3] over white: an opaque place keeps its colour."""
    a = alpha[..., None] / 255
    return colors * a + 255 * (1 - a)


def palette():
    """A picture of 256 colours; the colour of a pixel is that of its column."""
    image = Image.fromarray(RAMP, "L").convert("P")
    image.putpalette(COLORS[0].flatten().tolist())
    return image


def with_alpha(image):
    image.putalpha(Image.fromarray(ALPHA))
    return image


def grey(values=RAMP):
    return np.repeat(np.asarray(values)[..., None], 3, 2).astype(float)


def transparent(columns, colors=COLORS):
    """Some columns white."""
    result = colors.astype(float)
    result[:, columns] = 255
    return result


FILES = {
    "1": (Image.fromarray(RAMP).point(lambda v: 255 * (v > 99), "1"), "PNG", {}, grey(255 * (RAMP > 99)), 0),
    "1, black transparent": (
        Image.fromarray(RAMP).point(lambda v: 255 * (v > 99), "1"), "PNG", {"transparency": 0}, grey(RAMP * 0 + 255), 0
    ),
    "L": (Image.fromarray(RAMP), "PNG", {}, grey(), 0),
    "L, one grey transparent": (Image.fromarray(RAMP), "PNG", {"transparency": 9}, transparent([9], grey()), 0),
    "LA": (with_alpha(Image.fromarray(RAMP)), "PNG", {}, on_white(grey(), ALPHA), 1),
    "P": (palette(), "PNG", {}, COLORS, 0),
    "P, one colour transparent": (palette(), "PNG", {"transparency": 9}, transparent([9]), 0),
    "P, colours partly transparent": (
        palette(), "PNG", {"transparency": bytes(ALPHA[0].tolist())}, on_white(COLORS, ALPHA), 1
    ),
    "P of GIF, one colour transparent": (palette(), "GIF", {"transparency": 9}, transparent([9]), 0),
    "PA": (with_alpha(palette()), "TIFF", {}, on_white(COLORS, ALPHA), 1),
    "RGB": (Image.fromarray(COLORS), "PNG", {}, COLORS, 0),
    "RGB, one colour transparent": (
        Image.fromarray(COLORS), "PNG", {"transparency": tuple(COLORS[0, 9].tolist())}, transparent([9]), 0
    ),
    "RGBA": (with_alpha(Image.fromarray(COLORS)), "PNG", {}, on_white(COLORS, ALPHA), 1),
    "RGBA of WebP": (with_alpha(Image.fromarray(COLORS)), "WEBP", {"lossless": True, "exact": True},
                     on_white(COLORS, ALPHA), 1),
    "CMYK": (Image.fromarray(COLORS).convert("CMYK"), "TIFF", {}, COLORS, 0),
    "CMYK of JPEG, inverted by Adobe's convention": (
        Image.fromarray(COLORS).convert("CMYK"), "JPEG", {"quality": 100, "subsampling": 0}, COLORS, 6
    ),
    "YCbCr": (Image.fromarray(COLORS).convert("YCbCr"), "TIFF", {}, COLORS, 3),
    "I;16": (Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG", {}, grey(), 0),
    "I;16 of TIFF": (Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF", {}, grey(), 0),
    "I;16 of TIFF, white is 0": (
        Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF", {"tiffinfo": {262: 0}}, grey(255 - RAMP), 0
    ),
    "I;16, one grey transparent": (
        Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG", {"transparency": 9 * 257}, transparent([9], grey()), 0
    ),
    "I;16B of TIFF": (
        Image.frombytes("I;16B", (256, 4), (RAMP.astype(">u2") * 257).astype(">u2").tobytes()), "TIFF", {}, grey(), 0
    ),
    "I of PGM": (Image.fromarray(RAMP.astype(np.int32) * 257), "PPM", {}, grey(), 0),
    "I;16 of JPEG 2000": (
        Image.fromarray(RAMP.astype(np.uint16) * 257), "JPEG2000", {"irreversible": False}, grey(), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", FILES)
def test_a_file_of_any_mode_gives_the_picture_that_a_viewer_shows(mode):
    image, kind, options, expected, tolerance = FILES[mode]
    assert np.abs(shown(image, kind, **options) - expected).max() <= tolerance


def test_a_grey_ramp_of_16_bits_is_the_one_of_8_bits():
    """Case 10: the same picture within one level, from the middle of the range to its ends."""
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    eight = shown(Image.fromarray((values / 257).round().astype(np.uint8)))
    assert np.abs(shown(Image.fromarray(values)) - eight).max() <= 1
    assert abs(shown(Image.fromarray(values)).mean() - 127.5) < 0.5  # not saturated


@pytest.mark.parametrize("mode", ["La", "RGBa", "HSV", "LAB", "I;16L", "I;16N", "I;16B"])
def test_modes_that_no_file_has_are_read_too(mode):
    colors = COLORS // 4 + 90  # within what LAB holds
    opaque = Image.fromarray(colors if mode in ("RGBa", "HSV", "LAB") else RAMP)
    if mode.startswith("I;16"):
        order = {"L": "<", "B": ">", "N": "="}[mode[-1]]
        image = Image.frombytes(mode, (256, 4), (RAMP.astype(np.uint16) * 257).astype(f"{order}u2").tobytes())
    elif mode in ("La", "RGBa"):
        image = with_alpha(opaque.copy()).convert(mode)
    else:
        image = opaque.convert(mode)
    expected = grey() if opaque.mode == "L" else colors
    if mode in ("La", "RGBa"):
        expected = on_white(expected, ALPHA)
    assert np.abs(np.asarray(as_shown(image)).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_white_are_refused_by_name(mode, tmp_path):
    Image.fromarray(RAMP.astype(np.int32 if mode == "I" else np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=rf"x\.tiff: not an image that can be read \(pixels of mode {mode} have no defined"):
        square(tmp_path / "x.tiff", size=4)


def test_16_bit_colours_of_which_one_is_transparent_are_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", b"\x12\x34" * 3)
        + chunk(b"IDAT", zlib.compress(b"\0" + b"\x12\x34" * 3)) + chunk(b"IEND", b"")
    )  # fmt: skip
    with pytest.raises(DataError, match="16-bit colours of which one is transparent; save it with 8 bits"):
        square(tmp_path / "x.png", size=4)


def test_tiff_files_of_12_bits_fill_the_range(tmp_path):
    image = Image.fromarray((RAMP.astype(np.uint16) * 257) >> 4)
    image.save(tmp_path / "x.tiff", tiffinfo={258: 12})
    file = bytearray((tmp_path / "x.tiff").read_bytes())
    values = ((RAMP.astype(np.uint16) * 257) >> 4).flatten()
    packed = np.stack([values[::2] >> 4, ((values[::2] & 15) << 4) | (values[1::2] >> 8), values[1::2] & 255], 1)
    with Image.open(tmp_path / "x.tiff") as opened:
        offset = opened.tag_v2[273][0]
    file[offset : offset + packed.size] = packed.astype(np.uint8).tobytes()
    at = file.index(struct.pack("<HHI", 258, 3, 1))
    file[at + 8 : at + 10] = struct.pack("<H", 12)
    (tmp_path / "x.tiff").write_bytes(file)
    assert np.abs(whole_picture(tmp_path / "x.tiff", "x").numpy()[0].astype(int) - RAMP).max() <= 1


# --------------------------------------------------------------------------------------------- orientation and frames


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photographs_are_turned_as_their_exif_data_says(kind, orientation, tmp_path):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 16:] = (250, 10, 10), (10, 250, 10)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1), 7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x", kind, exif=exif, quality=95)
    assert np.abs(whole_picture(tmp_path / "x", "x").permute(1, 2, 0).numpy().astype(int) - upright).mean() < 8


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_exif_data_that_cannot_be_read_turn_nothing(exif):
    assert np.abs(shown(Image.fromarray(COLORS), "JPEG", quality=100, subsampling=0, exif=exif) - COLORS).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    found = shown(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(found - (250, 0, 0)).max() <= 6


# ------------------------------------------------------------------------------------------------- files of other kinds


def kinds(folder):
    """A path of each kind that is no regular file, and what it is called."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("missing.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    (folder / "device.png").symlink_to("/dev/zero")
    return {
        "pipe.png": "it is a named pipe (FIFO)", "folder.png": "it is a folder", "socket.png": "it is a socket",
        "device.png": "it is a device", "loop.png": "Too many levels of symbolic links",
        "nowhere.png": "No such file or directory", "x" * 300: "File name too long", "nul\0": "embedded null byte",
    }  # fmt: skip


def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path):
    """Case 25: a pipe that nobody writes to would hang for ever."""
    for name, reason in kinds(tmp_path).items():
        assert why_no_file(tmp_path / name) == reason
        with pytest.raises(DataError) as caught:
            square(tmp_path / name, size=4)
        assert str(caught.value) == f"{printable(tmp_path / name)}: not an image that can be read ({reason})"
        with pytest.raises(DataError):
            center_crop(str(tmp_path / name), size=4)


def test_damaged_files_are_named_in_one_line(tmp_path):
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photo, "PNG")
    whole_file = photo.getvalue()
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n", whole_file[:40], whole_file[:5000], whole_file[100:]):
        (tmp_path / "x\ny.png").write_bytes(content)
        with pytest.raises(DataError, match=r"x\\ny\.png: not an image that can be read \(") as caught:
            open_picture(tmp_path / "x\ny.png", str(tmp_path / "x\ny.png"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_more_pixels_than_pillow_takes_for_safe_are_refused(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: not an image that can be read \(Image size \(\d+ pixels\) exceeds limit"):
        square(tmp_path / "bomb.png", size=8)


def test_a_strip_of_one_pixel_is_an_image(tmp_path):
    for shape in ((1, 60_000), (60_000, 1), (1, 1)):
        Image.new("RGB", shape, (9, 9, 9)).save(tmp_path / "strip.png")
        assert center_crop(str(tmp_path / "strip.png"), size=8).float().mean() == 9
        assert square(tmp_path / "strip.png", size=8).float().mean() == 9


def test_cut_files_are_never_shown_in_part(monkeypatch, tmp_path):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is set, which shows cut files as grey; set it to False"):
        square(tmp_path / "x.png", size=8)

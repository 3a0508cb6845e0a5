"""The reader of pixels: every kind of file becomes the RGB picture that a viewer shows."""

import io
import os
import struct
import sys
import threading
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageChops

from cfmrfn.data import (
    DataError,
    ExpressionDataset,
    Sample,
    eval_transform,
    read_image,
    reading,
    why_unreadable,
)

PLAIN = eval_transform(8, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def read(tmp_path):
    """Writes bytes, or an image by Pillow, to a file and reads it back."""

    def write_and_read(content, name="image", at_least=None, box=None, **saving):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **saving)
        return read_image(Sample(str(path), 0, box=box), at_least)

    return write_and_read


def corners(size=(60, 40)):
    """Red, green, blue and white quarters, from the top left, row by row."""
    image = Image.new("RGB", size, "white")
    x, y = size[0] // 2, size[1] // 2
    image.paste("red", (0, 0, x, y))
    image.paste((0, 255, 0), (x, 0, size[0], y))
    image.paste("blue", (0, y, x, size[1]))
    return image


def png(rows, depth, colour_type, extra=b""):
    """A PNG file of rows of bytes, as Pillow does not write them."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    width = len(rows[0]) * 8 // depth // channels
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


# orientation -> where red, green and blue are in the upright picture
UPRIGHT = {
    1: ((0, 0), (1, 0), (0, 1)),
    2: ((1, 0), (0, 0), (1, 1)),
    3: ((1, 1), (0, 1), (1, 0)),
    4: ((0, 1), (1, 1), (0, 0)),
    5: ((0, 0), (0, 1), (1, 0)),
    6: ((1, 0), (1, 1), (0, 0)),
    7: ((1, 1), (1, 0), (0, 1)),
    8: ((0, 1), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_the_picture(read, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    upright = read(corners(), f"a.{suffix}", exif=exif)
    assert upright.size == ((60, 40) if orientation < 5 else (40, 60))
    small = upright.resize((2, 2), Image.Resampling.BOX)
    for place, channel in zip(UPRIGHT[orientation], range(3), strict=True):
        pixel = small.getpixel(place)
        assert pixel[channel] > 230
        assert max(pixel[:channel] + pixel[channel + 1 :]) < 30


def test_a_large_turned_jpeg_is_still_decoded_small(read):
    exif = Image.Exif()
    exif[274] = 6
    small = read(corners((1600, 1200)), "a.jpg", at_least=112, exif=exif)
    assert small.size == (150, 200)
    assert small.resize((2, 2), Image.Resampling.BOX).getpixel((1, 0))[0] > 230


def test_a_box_is_in_the_pixels_as_stored_which_are_then_not_turned(read):
    exif = Image.Exif()
    exif[274] = 6
    face = read(corners(), "a.png", box=(0, 0, 30, 20), exif=exif)
    assert face.size == (30, 20)
    assert face.getextrema() == ((255, 255), (0, 0), (0, 0))


@pytest.mark.parametrize("exif", [b"MM\0*\0\0\xff\xff", b"XX\0*\0\0\0\x08"])
def test_damaged_exif_does_not_stop_a_readable_picture(read, exif):
    assert read(corners(), "a.jpg", exif=b"Exif\0\0" + exif).size == (60, 40)


GREY_16 = {
    "png": lambda grey: png([row.astype(">u2").tobytes() for row in grey], 16, 0),
    "png with alpha": lambda grey: png(
        [np.stack([row, np.full_like(row, 65535)], 1).astype(">u2").tobytes() for row in grey],
        16,
        4,
    ),
    "png in colour": lambda grey: png(
        [np.repeat(row, 3).astype(">u2").tobytes() for row in grey], 16, 2
    ),
    "pgm": lambda grey: b"P5 3 2 65535\n" + grey.astype(">u2").tobytes(),
    "tiff": lambda grey: tiff(grey),
    "tiff, other byte order": lambda grey: tiff(grey, ">"),
    "jpeg 2000": lambda grey: saved(grey, "JPEG2000"),
}


def saved(pixels, form):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def tiff(grey, order="<", bits=16):
    """A TIFF of one uncompressed strip."""
    tags = {256: grey.shape[1], 257: grey.shape[0], 258: bits, 259: 1, 262: 1, 273: 122}
    tags |= {277: 1, 278: grey.shape[0], 279: grey.nbytes}
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, n, 0) for tag, n in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return (start + directory).ljust(122, b"\0") + grey.astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("kind", GREY_16)
def test_16_bit_grey_is_scaled_by_its_full_range(read, kind):
    grey = np.array([[0, 0x1234, 0x4040], [0x80FF, 0xC0C0, 0xFFFF]], np.uint16)
    rgb = np.asarray(read(GREY_16[kind](grey)))
    expected = np.array([[0, 0x12, 0x40], [0x80, 0xC0, 0xFF]])
    assert np.array_equal(rgb, np.repeat(expected[..., None], 3, axis=2))


def test_a_12_bit_camera_in_a_16_bit_file_is_not_guessed(read):
    grey = np.array([[0, 4095]], np.uint16)
    assert np.asarray(read(tiff(grey)))[..., 0].tolist() == [[0, 15]]


def test_a_16_bit_colour_key_is_transparent(read):
    grey = np.array([[0x1234, 0x4040]], ">u2")
    key = b"\0\0\0\2tRNS\x12\x34" + struct.pack(">I", zlib.crc32(b"tRNS\x12\x34"))
    rgb = read(png([grey.tobytes()], 16, 0, extra=key))
    assert np.asarray(rgb)[0, :, 0].tolist() == [255, 64]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.4, 255.0], [0, 128, 255]),
        ([0.0, 0.25, 0.25], [0, 64, 64]),
    ],
)
def test_floats_are_0_to_1_or_0_to_255(read, values, expected):
    rgb = np.asarray(read(Image.fromarray(np.array([values], np.float32)), "a.tif"))
    assert rgb[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("values", [[-0.5, 1.0], [0.0, 1.5], [0.0, 300.0], [0.0, float("nan")]])
def test_floats_of_no_known_range_are_refused(read, values):
    with pytest.raises(ValueError, match=r"floats from .* legal are 0 to 1, or 0 to 255"):
        read(Image.fromarray(np.array([values], np.float32)), "a.tif")


@pytest.mark.parametrize("scale", [1, 256])
def test_integers_of_32_bits_are_8_or_16_by_the_largest(read, scale):
    values = np.array([[0, 100, 255]], np.int32)
    rgb = np.asarray(read(Image.fromarray(values * scale), "a.tif"))
    assert rgb[0, :, 0].tolist() == [0, 100, 255]
    with pytest.raises(ValueError, match="integers from -1 to 5"):
        read(Image.fromarray(np.array([[-1, 5]], np.int32)), "a.tif")


@pytest.mark.parametrize("scale", [1, 256])
def test_so_are_those_of_an_array(scale):
    values = np.array([[0, 100, 255]], np.int32)
    rgb = np.asarray(reading.as_rgb(Image.fromarray(values * scale)))
    assert rgb[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_of_a_turned_image_is_the_one_it_is_read_with(read, tmp_path, suffix):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    for turn in (3, 6):
        exif[ExifTags.Base.Orientation] = turn
        picture.save(tmp_path / f"a.{suffix}", exif=exif)
        path = str(tmp_path / f"a.{suffix}")
        assert (
            reading.image_size(path)
            == read_image(Sample(path, 0)).size
            == ((8, 4) if turn == 3 else (4, 8))
        )


def palette_image():
    """Two pixels: the colour of index 0, which is to be transparent, and green."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return image


TRANSPARENT = {
    "RGBA": (Image.new("RGBA", (2, 1), (255, 0, 0, 0)), "a.png", {}, (255, 255, 255)),
    "half": (Image.new("RGBA", (2, 1), (0, 0, 0, 128)), "a.png", {}, (127, 127, 127)),
    "LA": (Image.new("LA", (2, 1), (30, 0)), "a.png", {}, (255, 255, 255)),
    "palette": (palette_image(), "a.png", {"transparency": 0}, (255, 255, 255)),
    "palette, alpha": (palette_image(), "a.png", {"transparency": b"\0\xff"}, (255, 255, 255)),
    "gif": (palette_image(), "a.gif", {"transparency": 0}, (255, 255, 255)),
    "colour key": (
        Image.new("RGB", (2, 1), (255, 0, 0)),
        "a.png",
        {"transparency": (255, 0, 0)},
        (255, 255, 255),
    ),
    "webp": (Image.new("RGBA", (2, 1), (9, 9, 9, 0)), "a.webp", {"lossless": True}, (255,) * 3),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_shows_white(read, kind):
    image, name, saving, expected = TRANSPARENT[kind]
    assert read(image, name, **saving).getpixel((0, 0)) == expected


def test_opaque_palette_colours_stay(read):
    assert read(palette_image(), "a.png", transparency=0).getpixel((1, 0)) == (0, 255, 0)
    assert read(palette_image(), "a.png").getpixel((0, 0)) == (255, 0, 0)


def test_1_bit_and_black_and_white(read):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(read(image, "a.png"))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_cmyk_jpeg_of_adobe_is_inverted_back(read):
    ink = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    red = read(ink, "a.jpg", quality=95).getpixel((8, 8))
    assert red[0] > 245
    assert max(red[1:]) < 10


def test_ycck_jpeg_of_adobe(read):
    """Adobe's other way: cyan, magenta and yellow as YCbCr, which the file's marker says."""
    colour = Image.new("RGB", (16, 16), (0, 255, 255))  # the inks of red: no cyan, all others
    channels = [*colour.convert("YCbCr").split(), Image.new("L", (16, 16), 255)]
    buffer = io.BytesIO()
    # Pillow inverts what it writes
    Image.merge("CMYK", [ImageChops.invert(c) for c in channels]).save(buffer, "JPEG", quality=95)
    jpeg = bytearray(buffer.getvalue())
    jpeg[jpeg.index(b"Adobe") + 11] = 2
    red = read(bytes(jpeg), "a.jpg").getpixel((8, 8))
    assert red[0] > 245
    assert max(red[1:]) < 10


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_several_is_taken(read, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    pixel = read(frames[0], name, save_all=True, append_images=frames[1:]).getpixel((4, 4))
    assert pixel[0] > 240 and pixel[2] < 15


@pytest.mark.parametrize("box", [(50, 30, 700, 700), (-90, -90, 5, 5), (60, 0, 90, 30)])
def test_a_box_mostly_outside_is_an_error_with_both_sizes(tmp_path, box):
    corners().save(tmp_path / "a.png")
    dataset = ExpressionDataset([Sample(str(tmp_path / "a.png"), 0, box=box)], ["fear"], PLAIN)
    size = f"{box[2] - box[0]} x {box[3] - box[1]}"
    with pytest.raises(DataError, match=rf"a\.png: .* {size} .*image of 60 x 40.*--no-boxes"):
        dataset[0]


def test_a_box_that_reaches_over_the_border_is_clipped(read):
    assert read(corners(), "a.png", box=(-5, -5, 20, 20)).size == (20, 20)
    face = read(corners(), "a.png", box=(40, 20, 65, 45))
    assert face.size == (20, 20)
    assert face.getextrema() == ((255, 255),) * 3


def test_programs_are_not_run(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    assert "EPS, which is not read" in why_unreadable(Sample(str(path), 0))


def test_an_image_without_memory_is_named(tmp_path, monkeypatch):
    def lack(_):
        raise MemoryError

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(reading, "as_rgb", lack)
    why = why_unreadable(Sample(str(tmp_path / "a.png"), 0))
    assert why == f"{tmp_path / 'a.png'}: not enough memory for it"


def test_large_images_are_decoded_one_at_a_time_and_in_strips(read, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (23, 37, 4), np.uint8)
    image = Image.fromarray(noise)
    expected = read(image, "a.png")
    monkeypatch.setattr(reading, "_MANY_PIXELS", 100)
    held = []
    monkeypatch.setattr(reading, "_large", threading.Lock())
    real = reading.as_rgb
    monkeypatch.setattr(
        reading, "as_rgb", lambda image: held.append(reading._large.locked()) or real(image)
    )
    assert read(image, "a.png").tobytes() == expected.tobytes()
    assert held == [True]
    assert not reading._large.locked()


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    corners().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    dataset = ExpressionDataset([Sample(str(tmp_path / "a.png"), 0)], ["fear"], PLAIN)
    with pytest.raises(DataError, match=r"cannot read image .*a\.png: .*2400 pixels.*bomb"):
        dataset[0]


def heic(path):
    """The start of a HEIC file; the rest takes an encoder."""
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    return Sample(str(path), 0)


def test_heic_without_its_package_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reading.heic_is_readable.cache_clear()
    reason = reading.why_unreadable(heic(tmp_path / "a.HEIC"))
    assert reason.endswith(
        "a.HEIC: HEIC, which needs the package pillow-heif (pip install pillow-heif)"
    )
    reading.heic_is_readable.cache_clear()


def test_heic_is_read_where_its_package_is(tmp_path, monkeypatch):
    """A stand-in for pillow-heif: it registers an opener with Pillow."""

    def opened(file, name):
        file.close()
        return Image.new("RGB", (7, 5), "red")

    def register():
        Image.register_open("HEIF", opened, lambda start: b"ftyp" in start)

    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    reading.heic_is_readable.cache_clear()
    assert read_image(heic(tmp_path / "a.heic")).size == (7, 5)
    reading.heic_is_readable.cache_clear()


def test_an_empty_file_and_bytes_in_names(tmp_path):
    name = str(tmp_path / "fâché.jpg").encode("latin-1")
    with open(name, "wb"):
        pass
    reason = reading.why_unreadable(Sample(os.fsdecode(name), 0))
    assert reason.endswith("f\\xe2ch\\xe9.jpg: empty file")
    reason.encode()


def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns, and refuses from 2000 on
    assert read_image(Sample(str(tmp_path / "large.png"), 0)).size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "decompression bomb" in why_unreadable(Sample(str(tmp_path / "large.png"), 0))


def test_threads_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    first_is_in, last_is_in = threading.Event(), threading.Event()

    def first():
        with reading._quietly:
            first_is_in.set()
            last_is_in.wait(60)

    def last():
        first_is_in.wait(60)
        with reading._quietly:
            last_is_in.set()
            thread.join()
            warnings.warn("is not an error here", UserWarning, stacklevel=1)

    thread = threading.Thread(target=first)
    thread.start()
    last()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "make, reason",
    [(os.mkdir, "a folder"), (lambda path: os.mkfifo(path), "no file but a pipe or a device")],
    ids=["folder", "pipe"],
)
def test_what_is_no_file_is_not_opened(tmp_path, make, reason):
    make(tmp_path / "a.png")
    assert reason in why_unreadable(Sample(str(tmp_path / "a.png"), 0))


def test_a_picture_that_is_too_large_is_a_photograph_all_the_same(tmp_path, monkeypatch):
    corners().save(tmp_path / "a", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reading.is_photograph(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        reading.is_photograph(tmp_path / "nowhere")

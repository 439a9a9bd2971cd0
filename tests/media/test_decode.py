"""Files of images: what is read, and what is refused, by name and soon."""

import base64
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from app.errors import ApiError, InvalidRequestError, PayloadTooLargeError, UnsupportedError
from app.media.decode import ImageError, TooManyPixelsError, decode
from app.media.images import read_data_url

MOST_BYTES, MOST_PIXELS = 100_000, 40_000_000
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = Image.fromarray(PIXELS[:, :, :3])
FILES = {kind: saved(RGB, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("kind", FILES)
def test_what_is_read(kind: str) -> None:
    data = read_data_url(url(FILES[kind], f"image/{kind.lower()}"), "where", MOST_BYTES)
    expected = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(data, 40 * 30)), expected)
    in_lines = base64.encodebytes(data).decode()
    assert read_data_url(f"data:image/{kind};base64,{in_lines}", "where", MOST_BYTES) == data
    assert read_data_url(f"DATA:;charset=x;base64,{base64.b64encode(data).decode()}", "where", MOST_BYTES) == data


def test_modes_of_images() -> None:
    """What is transparent is white, a camera's image stands upright, and every mode becomes RGB."""
    clear = np.asarray(decode(saved(Image.new("RGBA", (3, 2), (9, 9, 9, 0)), "PNG"), MOST_PIXELS))
    assert (clear == 255).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation: it has to be turned by 90 degrees
    assert decode(saved(RGB, "JPEG", exif=turned), MOST_PIXELS).size == (30, 40)
    for mode in ("1", "L", "P", "CMYK", "I;16"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        image = Image.new(mode, (40, 30)) if mode == "I;16" else RGB.convert(mode)
        assert decode(saved(image, kind), MOST_PIXELS).mode == "RGB"


URLS: list[tuple[str, type[ApiError], str]] = [
    ("http://169.254.169.254/latest/meta-data", UnsupportedError, "http: URLs are not fetched"),
    ("HTTPS://127.0.0.1/x.png", UnsupportedError, "HTTPS: URLs are not fetched"),
    ("file:///etc/passwd", UnsupportedError, "file: URLs are not fetched"),
    ("/etc/passwd", UnsupportedError, "no data URL"),
    ("data:image/png,abc", InvalidRequestError, "base64"),
    ("data:image/png;base64,a*b=", InvalidRequestError, "base64"),
    (url(b""), UnsupportedError, "no format"),
    (url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), UnsupportedError, "SVG"),
    (url(b"  <?xml version='1.0'?><svg/>"), UnsupportedError, "SVG"),
    (url(b"II*\0" + b"\0" * 99, "image/tiff"), UnsupportedError, "TIFF"),
    (url(b"\0\0\0\x20ftypheic" + b"\0" * 99), UnsupportedError, "HEIC"),
    (url(b"%PDF-1.7"), UnsupportedError, "PDF"),
    (url(FILES["PNG"], "image/jpeg"), InvalidRequestError, "is PNG, and not image/jpeg"),
    (url(FILES["PNG"], "text/html"), InvalidRequestError, "is PNG, and not text/html"),
    (url(FILES["PNG"] + b"\0" * MOST_BYTES), PayloadTooLargeError, "max_image_size"),
]


@pytest.mark.parametrize(("sent", "kind", "words"), URLS, ids=range(len(URLS)))
def test_what_is_refused_before_it_is_decoded(sent: str, kind: type[ApiError], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        read_data_url(sent, "messages[3].content[1].image_url", MOST_BYTES)
    assert raised.value.param == "messages[3].content[1].image_url"
    assert raised.value.message.startswith("messages[3].content[1].image_url: ")


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file that says its size, with any data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


FRAMES = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
HOSTILE: dict[str, tuple[bytes, type[ImageError]]] = {
    "a bomb": (png(30_000, 30_000, zlib.compress(b"\0" * 10_000_000)), TooManyPixelsError),
    "a bomb that is one line": (png(2**31 - 1, 1, b""), TooManyPixelsError),
    "no pixels": (png(0, 5, b""), ImageError),
    "fewer pixels than it says": (png(5000, 5000, zlib.compress(b"\0" * 1000)), ImageError),
    "an animation": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), ImageError),
    "an archive behind": (FILES["PNG"] + b"PK\3\4" + b"\0" * 40, ImageError),
    "a page behind": (FILES["GIF"] + b"<script>alert(1)</script>", ImageError),
    "a page inside WebP": (FILES["WEBP"] + b"<html>", ImageError),
    "only a beginning": (b"\xff\xd8\xff<html></html>", ImageError),
    **{f"{kind} cut off": (data[: len(data) // 2], ImageError) for kind, data in FILES.items()},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_soon(name: str) -> None:
    data, kind = HOSTILE[name]
    began = time.thread_time()
    with pytest.raises(kind):
        decode(data, MOST_PIXELS)
    assert time.thread_time() - began < 0.5

"""Images as clients send them: files inside data URLs (RFC 2397). Nothing is fetched from anywhere."""

import base64
import re

from ..errors import InvalidRequestError, PayloadTooLargeError, UnsupportedError

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*(;base64)?,", re.IGNORECASE)
READ = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
"""What is read: Pillow's names of formats, and the types of media."""
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"\x1aE\xdf\xa3": "a WebM video",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}
_ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/apng": "image/png"}


def read_data_url(url: str, path: str, most_bytes: int) -> bytes:
    """The image file in a data URL. Raises InvalidRequestError or PayloadTooLargeError that names `path`.

    The file begins as one of the formats that are read, and is of the type that the URL says, if it says one.
    """
    head = _DATA_URL.match(url)
    if head is None:
        scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}:", url)
        what = f"{scheme[0]} URLs are not fetched" if scheme and scheme[0].lower() != "data:" else "this is no data URL"
        raise UnsupportedError(f"{path}: {what}: send the image itself, as in data:image/png;base64,...", path)
    if head[2] is None:
        raise InvalidRequestError(f"{path}: the data URL is not in base64", path)
    return read_base64(url[head.end() :], head[1], path, most_bytes)


def read_base64(text: str, kind: str | None, path: str, most_bytes: int) -> bytes:
    """As `read_data_url`, for the parts of a data URL. `kind`: the type of media, such as image/png."""
    if len(text) > 2 * most_bytes:  # base64 takes 4 characters for 3 bytes, and some break it into lines
        raise PayloadTooLargeError(f"{path}: an image may have {most_bytes} bytes (max_image_size)", path)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise InvalidRequestError(f"{path}: the image is not valid base64", path) from None
    return check_file(data, kind, path, most_bytes)


def check_file(data: bytes, kind: str | None, path: str, most_bytes: int) -> bytes:
    """The file, if it may be read. Errors are those of `read_base64`."""
    if len(data) > most_bytes:
        raise PayloadTooLargeError(f"{path}: an image may have {most_bytes} bytes (max_image_size)", path)
    found = format_of(data)
    if found not in READ:
        is_what = f"is {found}" if found else "is of no format that is known"
        raise UnsupportedError(f"{path}: the file {is_what}; PNG, JPEG, WebP and GIF are read", path)
    said = (kind or READ[found]).lower()
    if _ALIASES.get(said, said) != READ[found]:
        raise InvalidRequestError(f"{path}: the file is {found}, and not {said:.60}", path)
    return data


def format_of(data: bytes) -> str | None:
    """The format that a file begins as, in Pillow's words; None if it is none of those known here."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "an MP4 video")
    text = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for begin, name in _BEGINNINGS.items() if text.startswith(begin)), None)

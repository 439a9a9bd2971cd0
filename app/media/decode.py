"""From the bytes of an image file to its pixels, with bounds on both. For files of which nothing is trusted."""

from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from .images import READ, format_of


class ImageError(ValueError):
    """The file is no image that is read; says why."""


class TooManyPixelsError(ImageError):
    """It has more pixels than are read."""


def decode(data: bytes, most_pixels: int) -> Image.Image:
    """The image in a file, in RGB, turned as its EXIF data say. Raises ImageError.

    The pixels are counted by the file's header, before any is decoded.
    """
    Image.MAX_IMAGE_PIXELS = None  # the check below has a bound of its own
    try:
        image = Image.open(BytesIO(data), formats=list(READ))
        width, height = image.size
        if width * height > most_pixels:
            raise TooManyPixelsError(f"it has {width} x {height} pixels, and at most {most_pixels} are read")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise ImageError("it is animated")
        _check_end(data)
        image.load()
        return _in_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("the file is damaged, or no image") from None
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise ImageError(f"the file is damaged: {error}"[:200]) from None


def _in_rgb(image: Image.Image) -> Image.Image:
    """What is transparent becomes white, as transformers has it."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _check_end(data: bytes) -> None:
    """Raise ImageError for a file that is cut off, or goes on behind its image: it may be another kind of file, too.

    That of JPEG may go on, since cameras put previews there. What of it is missing, its decoder finds out.
    """
    kind, end = format_of(data), len(data)
    if kind == "PNG":
        end = _end_of_png(data)
    elif kind == "WEBP":
        end = 8 + int.from_bytes(data[4:8], "little")
        end += end % 2 and end < len(data)
    elif kind == "GIF" and not data.endswith(b";"):
        end += 1
    if end != len(data):
        raise ImageError("the file is cut off" if end > len(data) else "the file goes on behind its image")


def _end_of_png(data: bytes) -> int:
    """Where the last chunk of a PNG file ends; behind the file if there is none."""
    at = 8
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        at += 12 + length
        if name == b"IEND":
            return at
    return len(data) + 1

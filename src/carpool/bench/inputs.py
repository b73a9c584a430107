"""What is sent: texts and images, made up or from files. The same arguments always make the same inputs."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random

from carpool.errors import ConfigError, MissingExtra

# Generated inputs are all different, and so many that two equal ones are never under way at a time: servers
# compute equal inputs once, which is not what is to be measured.
DISTINCT = 4096
_DISTINCT_IMAGES = 64  # an image is large, and no server compares them
_JPEG_QUALITY = 85  # what cameras and editors usually save

# Each is one token to the usual English vocabularies (WordPiece, and the byte pairs of GPT).
_VOCABULARY = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said
what its about than into them can only other time new some could these two may first then do any like my now
over such our man me even most made after also well before back through years where much your way down
should because long each just state people those too good how world still see men own day life work year
under last right used never might house another while high water place great same small part came few hand
against old home must since end light city night point set next open side line table river sound train paper
music school power health
"""
_WORDS = _VOCABULARY.split()

_SIZE = re.compile(r"(\d+)x(\d+)(\.png|\.jpe?g)?")
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Image:
    """An encoded picture."""

    content: bytes
    content_type: str


def generate_texts(low: int, high: int, count: int = DISTINCT) -> list[str]:
    """Texts of `low` to `high` tokens, every length as likely."""
    random = Random(f"texts {low} {high}")
    return [" ".join(random.choices(_WORDS, k=random.randint(low, high))) for _ in range(count)]


def read_texts(path: Path) -> list[str]:
    """A text from every line that has one."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as texts", str(error)) from None
    if not texts:
        raise ConfigError(f"{path}: there is no text in it", "a text a line is expected")
    return texts


def images(what: str) -> list[Image]:
    """Those that a size means, 224x224 or 500x375.jpg, or those of a file or a directory."""
    if (size := _SIZE.fullmatch(what)) is None:
        return read_images(Path(what))
    content_type = _TYPES[size[3] or ".png"]
    return generate_images(int(size[1]), int(size[2]), content_type=content_type)


def read_images(path: Path) -> list[Image]:
    """A picture, or all of a directory's: PNG and JPEG."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = [
        Image(file.read_bytes(), _TYPES[file.suffix.lower()])
        for file in files
        if file.is_file() and file.suffix.lower() in _TYPES
    ]
    if not images:
        raise ConfigError(f"{path}: there is no picture in it", f"allowed: {', '.join(_TYPES)}")
    return images


def generate_images(
    width: int, height: int, count: int = _DISTINCT_IMAGES, content_type: str = "image/png"
) -> list[Image]:
    """Different pictures of smooth noise, which compress about as photographs do."""
    random = Random(f"images {width} {height}")
    pictures = (_png(width, height, random) for _ in range(count))
    encode = _jpeg if content_type == "image/jpeg" else bytes
    return [Image(encode(picture), content_type) for picture in pictures]


def _jpeg(png: bytes) -> bytes:
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingExtra("pillow", "vision") from error
    written = BytesIO()
    Pillow.open(BytesIO(png)).save(written, "JPEG", quality=_JPEG_QUALITY)
    return written.getvalue()


def _png(width: int, height: int, random: Random) -> bytes:
    rows = bytearray()
    for _ in range(height):
        grain = random.randbytes(width * 3)
        rows += b"\0" + bytes(64 + (byte >> 3) + place % 97 for place, byte in enumerate(grain))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

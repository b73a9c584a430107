"""What is sent, and how it is written on the command line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image as Pillow
from tokenizers import Tokenizer

from carpool.bench import units
from carpool.bench.dialects import Target
from carpool.bench.inputs import generate_images, generate_texts, images, read_images, read_texts
from carpool.errors import ConfigError


def test_made_up_texts_have_as_many_tokens_as_they_say(minilm_dir: Path) -> None:
    """Counted by a real tokenizer; and no two are alike, since equal inputs are computed once."""
    tokenizer = Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_padding()
    texts = generate_texts(10, 50, count=400)
    lengths = {len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts}
    assert lengths == set(range(10, 51))
    assert len(set(texts)) == len(texts)


def test_a_made_up_picture_is_a_png() -> None:
    """Its size is the one asked for, and every row is there."""
    first, second = generate_images(7, 5, count=2)
    assert first.content != second.content
    assert struct.unpack(">II", first.content[16:24]) == (7, 5)
    data = first.content.partition(b"IDAT")[2]
    assert len(zlib.decompressobj().decompress(data)) == 5 * (7 * 3 + 1)


def test_a_size_may_have_the_ending_of_a_file() -> None:
    """JPEG for those who want to measure its decoder; without an ending it is a PNG."""
    assert {image.content_type for image in images("8x6")} == {"image/png"}
    first, second, *_ = images("8x6.jpg")
    assert first.content_type == "image/jpeg"
    assert first.content != second.content
    with Pillow.open(io.BytesIO(first.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (8, 6))


def test_files_without_anything_to_send_are_refused(tmp_path: Path) -> None:
    """With the name of the file and what is expected in it."""
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"empty\.txt: there is no text in it"):
        read_texts(empty)
    with pytest.raises(ConfigError, match=r"there is no picture in it: allowed: \.png"):
        read_images(tmp_path)


def test_quantities_are_read_as_people_write_them() -> None:
    """And what cannot be read is refused with examples."""
    assert [units.seconds(text) for text in ("500ms", "60s", "2m", "1h", "1.5")] == [0.5, 60, 120, 3600, 1.5]
    assert units.seconds("0s", may_be_none=True) == 0
    assert (units.span("128"), units.span("10-50")) == ((128, 128), (10, 50))
    assert units.numbers("200..1000") == [200, 400, 600, 800, 1000]
    assert units.numbers("5,50") == [5, 50]
    for read, text in (
        (units.seconds, "soon"),
        (units.seconds, "0"),
        (units.span, "50-10"),
        (units.numbers, "1,,2"),
    ):
        with pytest.raises(ConfigError, match=f'"{text}".*allowed'):
            read(text)


def test_a_target_knows_the_route_of_its_dialect_unless_the_url_has_one() -> None:
    """Credentials in the URL become a header and are not sent as part of the host."""
    assert Target("http://h:1", "kserve", "m").path == "/v2/models/m/infer"
    assert Target("http://h:1/mine?a=b", "openai").path == "/mine?a=b"
    request = Target("http://me:secret@h:1", headers=("x-tenant: a",)).encode("hi")
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"host: h:1\r\n" in head
    assert b"authorization: Basic bWU6c2VjcmV0" in head
    assert b"x-tenant: a" in head
    assert body == b'{"input": "hi"}'


def test_what_a_dialect_cannot_say_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match="one text in a request"):
        Target("http://h").encode("a", "b")
    with pytest.raises(ConfigError, match="pictures cannot be sent as tei"):
        Target("http://h", "tei").encode_image(generate_images(2, 2, count=1)[0])
    with pytest.raises(ConfigError, match='dialect "latin" is not known: allowed: native, predict, tei'):
        Target("http://h", "latin")
    with pytest.raises(ConfigError, match='"h:1" is not a URL'):
        Target("h:1")

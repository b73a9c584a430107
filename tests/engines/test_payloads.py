"""From bytes to what a model takes."""

from __future__ import annotations

import builtins
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from carpool.engines import payloads
from carpool.errors import BadInput
from carpool.wire import payload

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)


def item(media_type: str, body: bytes, **headers: str) -> bytes:
    return payload.head(media_type, {f"x-{name}": value for name, value in headers.items()}) + body


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return item(payload.NPY, file.getvalue())


def picture(kind: str, colour: tuple[int, int, int] = (200, 0, 0)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, kind)
    return item(f"image/{kind}", file.getvalue())


@pytest.fixture(params=["simdjson", "msgspec"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With simdjson installed, and without."""
    if request.param == "simdjson":
        pytest.importorskip("simdjson")
        return
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "simdjson":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ("[[0,1,2],[3,4,5]]", (2, 3)),
        ("[0,1.0,2,3,4,5e0]", (6,)),
        ("[[[0],[1]],[[2],[3]]]", (2, 2, 1)),
        ("7", ()),
    ],
)
def test_json_numbers_become_an_array_of_their_shape(data: str, shape: tuple[int, ...]) -> None:
    """Nested or flat, whole numbers among others."""
    read = payloads.read(b'{"data": ' + data.encode() + b"}", "float32")
    array = payloads.conform(read, shape, "float32")
    assert array.dtype == np.float32
    assert array.shape == shape
    assert array.tolist() == json.loads(data)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    "data",
    ["[[1,2],[3],[4,5,6]]", "[1,[2],3,4,5,6]", '["a"]', "null", '{"a":1}', "[]"],
)
def test_what_is_no_tensor_is_refused_with_the_shape_that_is_wanted(data: str) -> None:
    """Ragged rows, too, whose numbers happen to be as many as are wanted."""
    read = payloads.read(b'{"data": ' + data.encode() + b"}", "float32")
    with pytest.raises(BadInput, match=r"expected float32 of the shape \[3, 2\], or as many flat numbers"):
        payloads.conform(read, (3, 2), "float32")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("data", "alien"),
    [
        ("[1,null]", "null"),
        ("[true,false]", "true or false"),
        ("[1,true]", "true or false"),
        ('["1","2"]', "text"),
        ("[[1],[null]]", "null"),
        ("true", "true or false"),
        ('[null,"1"]', "null and text"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_only_numbers_are_numbers(data: str, alien: str, dtype: str) -> None:
    """What is not one is refused by its name, in MessagePack too, and not made one."""
    packed = item(payload.MSGPACK, msgspec.msgpack.encode({"data": json.loads(data)}))
    for written in (b'{"data": ' + data.encode() + b"}", packed):
        with pytest.raises(BadInput, match=f"the input has {alien} in it: expected {dtype}"):
            payloads.conform(payloads.read(written, dtype), None, dtype)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("data", "dtype", "wrong"),
    [
        ("[300]", "uint8", "uint8 has not: it goes from 0 to 255"),
        ("[-1]", "uint8", "uint8 has not"),
        ("[[1,2],[3,-129]]", "int8", "int8 has not: it goes from -128 to 127"),
        ("[9223372036854775808]", "int64", "int64 has not"),
        ("[18446744073709551616]", "int64", "int64 has not"),
        ("[-1,9223372036854775808]", "uint64", "uint64 has not: it goes from 0 to 18446744073709551615"),
        ("[2]", "bool", "bool has not: it goes from 0 to 1"),
        ("[1.7]", "int64", "floats"),
        ("[1,2.0]", "int64", "floats"),
        ("[1e30]", "int64", "floats"),
        ("[0.5]", "bool", "floats"),
        ("[1,-1e39]", "float32", r"float32 has not: it goes from -3.4028\d*e\+38 to 3.4028"),
        ("[70000]", "float16", "float16 has not: it goes from -65504.0 to 65504.0"),
        ("[1" + "0" * 400 + "]", "float64", "float64 has not"),
    ],
)
def test_numbers_that_a_type_does_not_have_are_refused(data: str, dtype: str, wrong: str) -> None:
    """With its limits, and not cut off, wrapped around or made infinite."""
    read = payloads.read(b'{"data": ' + data.encode() + b"}", dtype)
    with pytest.raises(BadInput, match=f"the input has .*{wrong}.*: expected {dtype}"):
        payloads.conform(read, None, dtype)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ("[9007199254740993,-9223372036854775808]", "int64"),
        ("[18446744073709551615,0]", "uint64"),
        ("[[0,255]]", "uint8"),
        ("[]", "int64"),
        ("[18446744073709551616]", "float32"),
    ],
)
def test_whole_numbers_stay_what_they_are(data: str, dtype: str) -> None:
    """To the last digit, where doubles have lost it."""
    array = payloads.conform(payloads.read(b'{"data": ' + data.encode() + b"}", dtype), None, dtype)
    assert (array.dtype.name, array.tolist()) == (dtype, json.loads(data))


@pytest.mark.parametrize(
    ("array", "dtype", "wrong"),
    [
        (np.array([300]), "uint8", "uint8 has not"),
        (np.array([2**63], "uint64"), "int64", "int64 has not"),
        (np.array([1.0]), "int64", "the input is float64"),
        (np.array([1e39]), "float32", "float32 has not"),
        (np.array([70000]), "float16", "float16 has not"),
    ],
)
def test_numbers_in_bytes_that_a_type_does_not_have_are_refused(
    array: NDArray[Any], dtype: str, wrong: str
) -> None:
    """As those in JSON."""
    octets = item(payload.OCTETS, array.tobytes(), dtype=str(array.dtype))
    for written in (octets, npy(array)):
        with pytest.raises(BadInput, match=f"{wrong}.*: expected {dtype}"):
            payloads.conform(payloads.read(written, dtype), None, dtype)


def test_bytes_may_hold_infinity_and_nan() -> None:
    """Which another type of floats has as well; and booleans are numbers there."""
    given = npy(np.array([np.inf, -np.inf, np.nan]))
    assert str(payloads.conform(payloads.read(given), None, "float16")) == "[ inf -inf  nan]"
    assert payloads.conform(payloads.read(npy(np.array([True]))), None, "float32").tolist() == [1]


@pytest.mark.usefixtures("reader")
def test_a_model_of_booleans_takes_them() -> None:
    """Whole numbers, too, and nothing that may mean either."""
    for data in (b"[true,false]", b"[1,0]", b"[1,false]"):
        read = payloads.read(b'{"data": ' + data + b"}", "bool")
        assert payloads.conform(read, (2,), "bool").tolist() == [True, False]
    for data in (b"[null]", b'["false"]'):
        with pytest.raises(BadInput, match="expected bool"):
            payloads.conform(payloads.read(b'{"data": ' + data + b"}", "bool"), None, "bool")


def test_texts_of_different_lengths_take_no_memory() -> None:
    """As numpy's they would all be as long as the longest: here 40 TB."""
    with pytest.raises(BadInput, match="text"):
        payloads.conform(["a" * 10_000_000, *[""] * 1_000_000], None, "float32")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("body", [b"", b"[1]", b'{"data": [1,]}', b'{"other": 1}', b'{"data": [1]} x', b"\xff"])
def test_a_body_that_is_not_data_is_refused(body: bytes) -> None:
    """With what is expected."""
    with pytest.raises(BadInput, match=r'expected \{"data"'):
        payloads.read(body, "float32")


@pytest.mark.usefixtures("reader")
def test_numbers_are_read_one_after_the_other_and_side_by_side() -> None:
    """What was read before changes nothing: another size, another shape, nothing that could be read."""
    rows = [[[place] * width] * 2 for place, width in enumerate((1, 1000, 3, 50_000, 2))]
    bodies = [b'{"data": ' + json.dumps(one).encode() + b"}" for one in rows]
    with ThreadPoolExecutor(4) as threads:
        for read, row in zip(threads.map(_read_after_a_bad_one, bodies * 20), rows * 20, strict=True):
            assert np.asarray(read).tolist() == row


def _read_after_a_bad_one(body: bytes) -> Any:
    with suppress(BadInput):
        payloads.read(body[:-2], "float32")
    return payloads.read(body, "float32")


def test_flat_numbers_are_put_into_shape() -> None:
    """As the model wants them, where it leaves no size open."""
    assert payloads.conform(list(range(6)), (2, 3), "float32").tolist() == NUMBERS.tolist()
    with pytest.raises(BadInput, match=r"the input has the shape \[6\]: expected .* \[2, any\]$"):
        payloads.conform(list(range(6)), (2, None), "float32")


@pytest.mark.parametrize(
    "written",
    [
        item(payload.OCTETS, NUMBERS.tobytes(), shape="2,3"),
        item(payload.OCTETS, NUMBERS.astype("<f2").tobytes(), dtype="float16", shape="2,3"),
        npy(NUMBERS),
        npy(np.asfortranarray(NUMBERS.astype(">i4"))),
        item(payload.MSGPACK, msgspec.msgpack.encode({"data": NUMBERS.tolist()})),
    ],
)
def test_every_way_to_write_a_tensor_gives_the_same(written: bytes) -> None:
    """Bytes with headers, .npy and MessagePack."""
    assert payloads.conform(payloads.read(written), (2, 3), "float32").tolist() == NUMBERS.tolist()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_images_become_rgb(kind: str) -> None:
    """By what they are."""
    image = payloads.read(picture(kind))
    assert (image.mode, image.size) == ("RGB", (8, 4))
    assert abs(image.getpixel((1, 1))[0] - 200) < 4


def test_sixteen_bits_of_grey_become_eight() -> None:
    """Black to white, and not white from the 256th on; one cut short is refused."""
    file = io.BytesIO()
    Image.fromarray(np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)).save(file, "png")
    grey = np.asarray(payloads.read(item("image/png", file.getvalue())))
    assert grey.shape == (32, 32, 3)
    assert grey[..., 0].ravel().tolist() == [value >> 8 for value in range(0, 2**16, 64)]
    with pytest.raises(BadInput, match="not a JPEG or PNG"):
        payloads.read(item("image/png", file.getvalue()[:-60]))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (2, 2), 200),
        Image.new("1", (2, 2), 1),
        Image.new("LA", (2, 2), (200, 9)),
        Image.new("RGBA", (2, 2), (200, 100, 0, 9)),
        Image.new("RGB", (2, 2), (200, 100, 0)).quantize(2),
        Image.new("CMYK", (2, 2), (10, 20, 30, 40)),
    ],
    ids=lambda image: image.mode,
)
def test_images_of_eight_bits_become_what_pillow_makes_of_them(image: Image.Image) -> None:
    """Grey, with a palette, in CMYK; alpha is left out."""
    kind, file = "jpeg" if image.mode == "CMYK" else "png", io.BytesIO()
    image.save(file, kind)
    made = payloads.read(item(f"image/{kind}", file.getvalue()))
    assert np.array_equal(np.asarray(made), np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(
    "written",
    [
        item(payload.OCTETS, b"12345"),
        item(payload.OCTETS, b"1234", shape="2"),
        item(payload.NPY, b"not numpy"),
        npy(np.array([{}], dtype=object)),
        npy(NUMBERS)[:-1],
        npy(NUMBERS).replace(b"(2, 3)", b"(2**3,"),
        npy(NUMBERS).replace(b"(2, 3)", b"(9999,"[:5] + b")"),
        item(payload.MSGPACK, b"\xc1"),
        item(payload.MSGPACK, msgspec.msgpack.encode([1])),
        item("image/png", b"GIF89a"),
        picture("png")[:-36],
    ],
)
def test_bytes_that_are_not_what_they_are_said_to_be_are_refused(written: bytes) -> None:
    """As the caller's fault: nothing is unpickled, nothing falls through."""
    with pytest.raises(BadInput):
        payloads.read(written)


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its announced size, before a pixel of it is decoded."""
    monkeypatch.setattr(payloads, "_MOST_PIXELS", 31)
    with pytest.raises(BadInput, match="8 x 4 pixels"):
        payloads.read(picture("png"))

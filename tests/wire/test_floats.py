"""From JSON to float32, by either reader."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carpool.errors import BackendError
from carpool.wire import floats
from carpool.wire.call import Vector
from carpool.wire.floats import float32

READERS = pytest.mark.parametrize("read", [floats.reader(), floats._read_each])
NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))


@READERS
@given(numbers=NUMBERS)
def test_numbers_become_the_float32_that_is_next_to_them(
    read: Callable[[bytes], bytes], numbers: list[float]
) -> None:
    """Whichever reads them, and whatever they look like."""
    written = json.dumps(numbers).encode()
    expected = struct.pack(f"<{len(numbers)}f", *numbers)
    assert float32(written) == float32(memoryview(written)) == expected
    if not numbers or max(map(abs, numbers)) < 1e30:  # the fast one leaves others to the slow one
        assert read(written) == expected


@pytest.mark.filterwarnings("ignore")  # as a server does: numpy only warns of what is too large for float32
@pytest.mark.parametrize(
    "wrong",
    [
        b"[null]",
        b"[0.1,true]",
        b'["1"]',
        b"[[1],[2]]",
        b"[1,[2]]",
        b"[1e39]",
        b"[1,-1e400]",
        b"[01]",
        b"[1",
        b"[1]]",
        b"{}",
        b"7",
        b"",
    ],
)
def test_what_is_no_array_of_float32_is_the_models_error(wrong: bytes) -> None:
    """Not one of its caller, and never numbers that were not in it."""
    with pytest.raises(BackendError, match="not an array of numbers"):
        float32(wrong)


def test_a_vector_that_brings_its_own_bytes_is_not_read() -> None:
    """One that does not is, as any other JSON."""
    vector = Vector(b"[1.0,2.0]")
    assert float32(vector) == struct.pack("<2f", 1, 2)
    vector.floats = b"as it is"
    assert float32(vector) == b"as it is"


@pytest.fixture(params=["pybase64", "msgspec"])
def quoting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With pybase64 installed, and without."""
    if request.param == "pybase64":
        pytest.importorskip("pybase64")
    else:
        monkeypatch.setitem(sys.modules, "pybase64", None)
    floats._quoted.cache_clear()
    yield
    floats._quoted.cache_clear()


@pytest.mark.usefixtures("quoting")
def test_base64_is_a_json_string_of_the_float32() -> None:
    """As OpenAI's clients decode it."""
    written = json.loads(floats.base64(b"[0.5,-2,3]"))
    assert base64.b64decode(written, validate=True) == struct.pack("<3f", 0.5, -2, 3)

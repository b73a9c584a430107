"""An exception as text: what of it is kept."""

from __future__ import annotations

from typing import cast

import pytest

from carpool.backends.process import trace
from carpool.engines import results


def caught(work: object, *arguments: object) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011 (whatever it raises)
        work(*arguments)  # type: ignore[operator]
    return info.value


def deep(left: int) -> None:
    if left:
        deeper(left - 1)
    raise ValueError("the bottom")


def deeper(left: int) -> None:
    deep(left)


def test_what_was_never_raised_has_no_traceback() -> None:
    """A model may put an exception in a result's place."""
    assert trace.formatted(ValueError("no")) == ""
    assert repr(trace.raised(ValueError("no"))) == "ValueError: no"


def test_frames_of_carpool_are_left_out_unless_there_are_no_others() -> None:
    """They are above every model's."""
    mixed = trace.formatted(caught(results.rows, 5))
    assert "test_trace.py" in mixed
    assert "results.py" not in mixed
    error = caught(results.rows, 5)
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    assert "results.py" in trace.formatted(error)


def test_the_exception_behind_it_is_told_as_well() -> None:
    """As Python tells it."""

    def reraise() -> None:
        try:
            deep(0)
        except ValueError as error:
            raise RuntimeError("at the top") from error

    assert "The above exception was the direct cause" in trace.formatted(caught(reraise))


@pytest.mark.parametrize("message", ["the end", "long " * 10_000, "no Unicode: \udcff"])
def test_a_deep_one_and_a_long_message_are_cut_and_still_name_a_line(message: str) -> None:
    """It goes through a socket, into a log of lines."""

    def bottomless() -> None:
        try:
            deep(300)
        except ValueError:
            raise RuntimeError(message) from None

    for error in (caught(deep, 300), caught(bottomless)):
        text = trace.formatted(error)
        assert len(text) < 4200
        assert 'test_trace.py", line' in text
        assert text.endswith(str(error)[-7:].encode(errors="replace").decode().rstrip())


def test_one_that_python_cannot_format_is_no_second_failure() -> None:
    """The worker would end over what was to be a message."""

    def garbled() -> None:
        raise SyntaxError("no", ("model.py", 1, 1, cast("str", 5)))  # a line of code that is a number

    assert trace.formatted(caught(garbled)) == "the traceback cannot be had: AttributeError"

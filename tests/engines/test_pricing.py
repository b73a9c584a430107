"""What an item costs, by a model's own word: where that is found, what it gets, and whose fault an error is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carpool.engines import pricing
from carpool.engines.python_model import load
from carpool.errors import BackendError, BadInput, ModelError
from carpool.wire import payload
from tests.support import own_models
from tests.support.own_models import Priced

HERE = "tests.support.own_models:"


@pytest.mark.parametrize("name", ["Priced", "make_priced"])
def test_the_worker_tells_where_the_price_is_found(name: str) -> None:
    """However the model was made: what it names is the function of its class."""
    told = load(HERE + name).info["cost"]
    assert told == HERE + "Priced.cost"
    assert pricing.find(told)(b'{"data": "four"}') == 4


def test_a_model_without_a_price_names_none() -> None:
    """All its items are alike."""
    assert load(HERE + "Words").info["cost"] == ""


def test_a_price_that_needs_the_model_is_refused_when_it_is_loaded() -> None:
    """With what would be right."""
    with pytest.raises(ModelError, match=r"cost` of PricedByItself cannot .* make it a @staticmethod"):
        load(HERE + "PricedByItself")


def test_a_price_that_cannot_be_imported_is_said(tmp_path: Path) -> None:
    """The server may lack what the worker found."""
    (tmp_path / "needs.py").write_text("import not_installed\n")
    with pytest.raises(ModelError, match=r"needs:cost\) cannot be imported .* No module named 'not_installed'"):
        pricing.find("needs:cost", str(tmp_path))


def test_it_gets_what_preprocess_would_or_the_bytes_of_a_tensor_or_an_image() -> None:
    """A text of /embed, the data of /predict; nothing is decoded that may be large."""
    seen: list[Any] = []

    def cost(value: Any) -> float:
        seen.append(value)
        return 1

    price = pricing.Price(cost)
    for item in (b'"a text"', b"[1, 2]", b' {"id": 1, "data": [3]}', payload.head_of("uint8", (2,)) + b"ab"):
        assert price(item) == 1
    assert seen == ["a text", [1, 2], [3], b"ab"]


def test_large_json_is_not_read_and_costs_as_much_by_the_byte_as_what_was() -> None:
    """The event loop has no time for megabytes."""
    price = pricing.Price(Priced.cost)
    once = price(b'"%s"' % (b"x" * 998))
    assert once == 998
    assert price(b'"%s"' % (b"x" * 999_998)) == pytest.approx(998_000)


@pytest.mark.parametrize(
    ("item", "kind", "words"),
    [
        (b'{"data": 7}', BadInput, "the model does not take this input: TypeError"),
        (b'{"date": "a"}', BadInput, "the body is not what this route takes"),
        (
            b'{"data": "bug"}',
            BackendError,
            "the model failed on this input: its cost raised RuntimeError: a bug",
        ),
        (b'{"data": "cheap"}', BackendError, "its cost returned -1: expected a number, 0 or more"),
    ],
)
def test_an_error_is_the_callers_or_the_models(item: bytes, kind: type[Exception], words: str) -> None:
    """As it is in `preprocess`."""
    with pytest.raises(kind, match=words):
        pricing.Price(own_models.Priced.cost)(item)

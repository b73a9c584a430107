from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from carpool.engines import pooling
from carpool.errors import ModelError

STATES = np.array([[[1, 2], [3, 6], [100, 100]]], dtype=np.float32)
MASK = np.array([[1, 1, 0]])


def write_config(directory: Path, **modes: bool) -> None:
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 2, **modes}))


def test_the_mean_leaves_padding_out() -> None:
    """Whatever stands in a masked place has no weight."""
    np.testing.assert_allclose(
        pooling.normalise(pooling.mean(STATES, MASK)), [np.array([2, 4]) / np.sqrt(20)], rtol=1e-6
    )


def test_without_a_word_the_mean_is_taken(tmp_path: Path) -> None:
    """It is what the models without a pooling file are used with."""
    assert pooling.read_pooling(tmp_path) is pooling.mean


def test_a_model_may_use_its_first_token(tmp_path: Path) -> None:
    """The BGE family does; the mean would be silently wrong for it."""
    write_config(tmp_path, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    assert pooling.read_pooling(tmp_path)(STATES, MASK).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "modes",
    [
        {"pooling_mode_max_tokens": True},
        {},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_any_other_pooling_is_refused(tmp_path: Path, modes: dict[str, bool]) -> None:
    """A refusal at the start is better than vectors that mean nothing."""
    write_config(tmp_path, **modes)
    with pytest.raises(
        ModelError, match=r"config\.json asks for .*: expected: one of pooling_mode_mean_tokens"
    ):
        pooling.read_pooling(tmp_path)


def test_a_vector_of_zeros_stays_finite() -> None:
    """NaN would not even be JSON."""
    assert pooling.encode(pooling.normalise(np.zeros((1, 2), dtype=np.float32))) == [b"[0.0,0.0]"]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_vector_with_nan_or_infinity_is_an_error_in_its_place(number: float) -> None:
    """JSON would have null there, and the other dialects what breaks a client's arithmetic."""
    before, wrong, after = pooling.encode(np.array([[1, 2], [0, number], [3, 4]], dtype=np.float32))
    assert (before, after) == (b"[1.0,2.0]", b"[3.0,4.0]")
    assert str(wrong) == "the model returned NaN or infinity"


def test_json_gives_the_same_floats_back_in_few_digits() -> None:
    """The digits are those of float32, not of its double."""
    assert pooling.encode(np.array([[0.1, 1 / 3]], dtype=np.float32)) == [b"[0.1,0.33333334]"]

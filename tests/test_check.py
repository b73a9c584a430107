"""`carpool check`: what it finds, and what it does not complain of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from carpool import check
from carpool.cli import main
from tests.support import own_models


@pytest.fixture(autouse=True)
def _in_a_folder_with_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(own_models.__file__, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "_SECONDS_A_SIZE", 0.1)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def inputs(folder: Path, *lines: str) -> list[str]:
    (folder / "inputs.jsonl").write_text("\n".join(lines))
    return ["--input", str(folder / "inputs.jsonl")]


def test_a_model_whose_answers_do_not_depend_on_their_company_passes() -> None:
    """Inputs are made by its input shape; the times and their line are shown."""
    result = invoke("own_models:Scale")
    assert result.exit_code == 0, result.output
    assert re.search(r"in a batch of 32 +0\n", result.stdout)
    assert re.search(r"^32 +\d", result.stdout, re.MULTILINE)
    assert re.search(r"S\(b\) = [\d.]+ ms \+ [\d.-]+ ms \* b", result.stdout)


def test_padding_that_leaks_is_found(tmp_path: Path) -> None:
    """It shows where short inputs meet long ones, and nowhere else."""
    result = invoke("own_models:Padded", *inputs(tmp_path, "[1, 2, 3, 4]", "[5]", "[6, 7]"))
    assert result.exit_code == 1
    assert "behind the longest: the answer to input 1 differs by 0.75 of its length" in result.stderr
    assert "beside itself" not in result.stderr
    assert "alone again" not in result.stderr


def test_lengths_that_cannot_be_batched_are_found(tmp_path: Path) -> None:
    """With what the model raised."""
    result = invoke("own_models:Stacked", *inputs(tmp_path, "[1, 2]", "[5]"))
    assert result.exit_code == 1
    assert "in a batch of 2: ValueError: all input arrays must have the same shape" in result.stderr


def test_texts_are_made_for_a_model_that_embeds() -> None:
    """Vectors in the wrong place would be found as well."""
    assert invoke("own_models:Lengths").exit_code == 0


def test_an_input_that_the_model_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    """It is no fault of the batch."""
    result = invoke("own_models:Words", *inputs(tmp_path, '"a b"', '""', '"c"'))
    assert result.exit_code == 0
    assert "input 1 is refused when it is alone" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own_models:Words"], "what the model takes is not known: give it inputs: --input FILE"),
        (["own_models:Words", "--input", "missing"], "missing cannot be read"),
        (["own_models:Words", "--input", "empty"], "the files hold no input"),
        (["own_models:Lengths", "--input", "broken"], "broken is not JSON lines"),
        (["own_models:Scale", "--input", "broken"], "the model refuses every input"),
        (["no-such"], "model 'no-such' is no name"),
    ],
)
def test_what_the_operator_must_mend_is_one_line_and_status_2(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    """No traceback."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "broken").write_text("{")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_line_is_what_a_batch_takes_and_what_each_input_adds() -> None:
    """Exact where the times are on a line; they are seconds, and shown are milliseconds."""
    report = check.Report(0.0, times={size: 3.0 + 0.5 * size for size in (1, 2, 8)})
    assert [*report.lines()][-1] == "S(b) = 3000.00 ms + 500.00 ms * b"


def test_results_are_compared_number_by_number_and_word_by_word() -> None:
    """Another word, another length or another name is infinitely far."""
    one = check.numbers({"label": "cat", "scores": [3.0, 4.0]})
    assert check.difference(one, check.numbers({"label": "cat", "scores": [3.0, 4.5]})) == pytest.approx(0.1)
    assert check.difference(one, check.numbers({"label": "dog", "scores": [3.0, 4.0]})) == float("inf")
    assert check.difference(one, check.numbers({"label": "cat", "scores": [3.0]})) == float("inf")

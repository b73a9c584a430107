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


def test_a_model_that_only_reranks_is_checked_by_its_scores(tmp_path: Path) -> None:
    """Of texts for the first one; their places in the batch are not compared."""
    assert invoke("own_models:Ranker").exit_code == 0
    assert invoke("own_models:Ranker", *inputs(tmp_path, '"a b"', '"c"')).exit_code == 0
    crowded = invoke("own_models:CrowdedRanker")
    assert crowded.exit_code == 1
    assert "in a batch of 2: the answer to input" in crowded.stderr


def test_answers_that_are_not_finite_are_found(tmp_path: Path) -> None:
    """JSON has null for them, as for what is null."""
    result = invoke("own_models:Logarithms", *inputs(tmp_path, "[1, 2]", "[0, 1]", "[-1]"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"carpool: alone: the answer to input {place} has NaN or infinity in it" for place in (1, 2)
    ]
    assert result.stdout.splitlines()[0].split() == ["engine", "python"]
    assert "S(b) = " in result.stdout
    vectors = invoke("own_models:Divided", *inputs(tmp_path, '""', '"ab"'))
    assert vectors.exit_code == 1
    assert "alone: the answer to input 0 has NaN or infinity in it" in vectors.stderr


def test_an_input_that_the_model_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    """It is no fault of the batch."""
    result = invoke("own_models:Words", *inputs(tmp_path, '"a b"', '""', '"c"'))
    assert result.exit_code == 0
    assert "input 1 is refused when it is alone" in result.stdout


def test_results_that_are_missing_are_in_the_report() -> None:
    """For each size, with how many there were; times are shown as far as there are any."""
    result = invoke("own_models:Once")
    assert result.exit_code == 1
    assert "carpool: in a batch of 2: RuntimeError: the model returned 1 results for 2 inputs" in result.stderr
    assert "carpool: 2 that are alike: RuntimeError: the model returned 1 results" in result.stderr
    assert "S(b) = " in result.stdout
    assert "Traceback" not in result.stderr


def test_an_input_on_which_the_model_fails_alone_is_left_out_and_said(tmp_path: Path) -> None:
    """As one that it refuses, with what it raised; also where times are taken."""
    result = invoke("own_models:Buggy", *inputs(tmp_path, '"in predict"', '"ninechars"', '"in predict"'))
    assert result.exit_code == 0, result.output
    assert "input 0 is refused when it is alone, and was left out: KeyError: 'threshold'" in result.stdout
    assert re.search(r"^32 +\d", result.stdout, re.MULTILINE)


def test_a_model_that_exits_is_found(tmp_path: Path) -> None:
    """It would end the check as well."""
    result = invoke("own_models:Exits", *inputs(tmp_path, "1", "2"))
    assert result.exit_code == 1
    assert "carpool: in a batch of 2: RuntimeError: it called sys.exit(3)" in result.stderr


def test_where_a_model_raised_is_behind_the_line_that_says_so(tmp_path: Path) -> None:
    """Its own line of code; nothing of carpool's."""
    for name, words in (
        ("Unloadable", "the model cannot be loaded: KeyError: 'layer.0'"),
        ("Buggy", "the model refuses every input: KeyError: 'threshold'"),
    ):
        result = invoke(f"own_models:{name}", *inputs(tmp_path, '"in predict"'))
        assert result.exit_code == 2
        first, *trace = result.stderr.splitlines()
        assert first == f"carpool: {words}"
        assert trace[0].startswith("Traceback")
        assert 'own_models.py", line' in trace[1]
        assert "check.py" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own_models:Words"], "what the model takes is not known: give it inputs: --input FILE"),
        (["own_models:Words", "--input", "missing"], "missing cannot be read"),
        (["own_models:Words", "--input", "empty"], "the files hold no input"),
        (["own_models:Lengths", "--input", "broken"], "broken is not JSON lines"),
        (["own_models:Scale", "--input", "broken"], "the model refuses every input"),
        (["no-such"], "model 'no-such' is no name"),
        (["own_models:Scale", "--tolerance", "-1"], "tolerance -1 is out of range: allowed: 0 or more"),
        (["own_models:Scale", "--tolerance", "nan"], "tolerance nan is out of range"),
        (["own_models:make_none"], "the model cannot be loaded: SystemExit: no licence"),
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


def test_numbers_of_any_size_are_compared() -> None:
    """Also those whose squares are no floats any more."""
    assert check.difference([3e200, 4e200], [3e200, 4.5e200]) == pytest.approx(0.1)
    assert check.difference([3e-200, 4e-200], [3e-200, 4.5e-200]) == pytest.approx(0.1)

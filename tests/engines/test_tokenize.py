from __future__ import annotations

import json
from pathlib import Path

import pytest

from carpool.engines.tokenize import read_tokenizer
from carpool.errors import ModelError

CLS, SEP = 101, 102


def test_texts_become_their_ids_without_padding(minilm_dir: Path) -> None:
    """tokenizer.json asks for padding to 128; a short text must not pay for it."""
    assert read_tokenizer(minilm_dir).ids(["Hello world", "hello"]) == [
        [CLS, 7592, 2088, SEP],
        [CLS, 7592, SEP],
    ]


def test_a_long_text_is_cut_and_still_ends_as_texts_end(minilm_dir: Path) -> None:
    """The special tokens count: the model never sees more than its maximum."""
    (ids,) = read_tokenizer(minilm_dir).ids(["word " * 1000])
    assert (len(ids), ids[0], ids[-1]) == (256, CLS, SEP)


def test_the_model_may_say_its_own_maximum(tiny_dir: Path) -> None:
    """sentence_bert_config.json is where sentence-transformers models keep it."""
    (tiny_dir / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    tokenizer = read_tokenizer(tiny_dir)
    assert tokenizer.max_tokens == 20
    assert len(tokenizer.ids(["word " * 50])[0]) == 20


@pytest.mark.parametrize("content", ['{"max_seq_length": "all"}', '{"max_seq_length": 0}', "[]", "{"])
def test_a_wrong_maximum_is_named(tiny_dir: Path, content: str) -> None:
    """A model that cannot be understood is refused at the start, by the name of its file."""
    (tiny_dir / "sentence_bert_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"sentence_bert_config\.json"):
        read_tokenizer(tiny_dir)


def test_a_damaged_tokenizer_is_named(tiny_dir: Path) -> None:
    """The library's bare exception becomes one that says which file."""
    (tiny_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        read_tokenizer(tiny_dir)


def test_half_a_surrogate_pair_does_not_fail_the_batch(minilm_dir: Path) -> None:
    """It can be written in JSON but has no UTF-8; its neighbours must not suffer for it."""
    broken, whole = read_tokenizer(minilm_dir).ids(["a \ud83d b", "a b"])
    assert broken[1] == whole[1]
    assert whole == [CLS, 1037, 1038, SEP]

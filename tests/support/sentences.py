"""Real English sentences that every Python brings along: its own reference manual and docstrings."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

# Not the code, tables and grammar between the prose.
_PROSE = re.compile(r"[A-Z][\w\s,;:'\"()\[\]./*`-]*[.!?]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@cache
def sentences(count: int) -> list[str]:
    """The first `count` different sentences of 4 to 60 words, in a fixed order."""
    found: dict[str, None] = {}
    for paragraph in _paragraphs():
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if 4 <= len(sentence.split()) <= 60 and _PROSE.fullmatch(sentence):
                found[sentence] = None
        if len(found) >= count:
            return list(found)[:count]
    raise AssertionError(f"there are only {len(found)} sentences")


def _paragraphs() -> Iterator[str]:
    for name in sorted(topics):
        yield from topics[name].split("\n\n")
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield from (ast.get_docstring(node) or "").split("\n\n")

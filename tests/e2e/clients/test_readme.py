"""The curl lines of the README, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import RunningServer

README = Path(__file__).parents[3] / "README.md"
LINES = re.findall(r"^(?:\$ )?(curl http.*)$", README.read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_curl_lines_of_the_readme_are_answered(server: RunningServer, line: str) -> None:
    """With a result in JSON; only the port is another one."""
    command = shlex.split(line.replace("http://127.0.0.1:3000", server.url))
    answer = subprocess.run(
        [*command, "--silent", "--show-error", "--fail-with-body", "--noproxy", "*"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert json.loads(answer.stdout)


def test_there_is_a_line_for_every_dialect() -> None:
    """So that the test above has not lost them."""
    fields = ('"input"', '"data"', '"inputs"', '"texts"', '"documents"', "/v1/embeddings", "/v2/models/")
    assert all(any(field in line for line in LINES) for field in fields)

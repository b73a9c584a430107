"""What an upstream's URL says."""

from __future__ import annotations

import pytest

from carpool.backends.http.target import Target
from carpool.errors import BadInput


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://tei:8080", "http://tei:8080/embed"),
        ("http://tei:8080/", "http://tei:8080/embed"),
        ("https://tei/custom/path", "https://tei/custom/path"),
        ("http://tei/embed?key=a", "http://tei/embed?key=a"),
        ("http://tei/?key=a", "http://tei/embed?key=a"),
        ("https://a/openai/v1?key=a", "https://a/openai/v1/embeddings?key=a"),
        ("http://[::1]:8080", "http://[::1]:8080/embed"),
        ("http://tei/caf%C3%A9/embed", "http://tei/caf%C3%A9/embed"),
    ],
)
def test_a_base_url_means_embed_and_a_path_is_used_as_it_is(given: str, used: str) -> None:
    """So that one setting serves both."""
    target = Target.of(given)
    assert target.origin + target.path("/embed", "/embed") == used


@pytest.mark.parametrize(
    ("given", "dialect", "model", "base"),
    [
        ("http://a", "", "", ""),
        ("http://a/embed", "tei", "", ""),
        ("http://a/tei/embed", "tei", "", "/tei"),
        ("http://a/custom/path", "tei", "", ""),
        ("http://a/v1/embeddings", "openai", "", ""),
        ("http://a/openai/v1/embeddings", "openai", "", "/openai"),
        ("http://a/embeddings", "openai", "", ""),
        ("http://a/v1", "openai", "", ""),
        ("http://a/openai/v1/", "openai", "", "/openai"),
        ("http://a/v2/models/minilm/infer", "kserve_v2", "minilm", ""),
        ("http://a/v2/models/my%20model%2F1/infer", "kserve_v2", "my model/1", ""),
        ("http://a/x/v2/models/minilm/versions/3/infer", "kserve_v2", "minilm", "/x"),
    ],
)
def test_a_path_names_its_dialect_and_what_is_beside_it(
    given: str, dialect: str, model: str, base: str
) -> None:
    """What is no embedding is asked for under the same base."""
    target = Target.of(given)
    assert (target.dialect, target.model, target.base) == (dialect, model, base)
    assert target.path("/rerank", "/embed") == f"{base}/rerank"


@pytest.mark.parametrize(
    ("given", "host", "port", "authority", "credentials"),
    [
        ("http://tei", "tei", 80, "tei", ""),
        ("https://tei", "tei", 443, "tei", ""),
        ("http://TEI:81", "tei", 81, "tei:81", ""),
        ("http://[::1]:81", "::1", 81, "[::1]:81", ""),
        ("http://[::1]", "::1", 80, "[::1]", ""),
        ("http://me:p%40ss@tei:81", "tei", 81, "tei:81", "Basic bWU6cEBzcw=="),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", ""),
    ],
)
def test_where_it_is_and_who_is_asking(
    given: str, host: str, port: int, authority: str, credentials: str
) -> None:
    """Names, both kinds of addresses, and a user with a password, which is in no error message."""
    target = Target.of(given)
    assert (target.host, target.port, target.authority) == (host, port, authority)
    assert target.credentials == credentials
    assert "@" not in str(target)


@pytest.mark.parametrize("path", ["@127.0.0.2:9940/steal", "*", "elsewhere:80", ":80/x", ".example.com/x", ""])
def test_what_is_no_path_goes_nowhere(path: str) -> None:
    """Put behind the host, it could name another one."""
    for url in ("http://a:80", "http://a/base/embed"):
        with pytest.raises(BadInput, match="is not a path"):
            Target.of(url).url(path)

"""The URL of a server: what is read from it, and what is refused before a key is sent there."""

from __future__ import annotations

import pytest

from secure_dagu.contexts import address
from secure_dagu.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "whole", "origin"),
    [
        ("https://ci.example.com", "https://ci.example.com/api/v1", "https://ci.example.com"),
        ("https://CI.example.com.:8443/", "https://ci.example.com:8443/api/v1", "https://ci.example.com:8443"),
        ("https://h:443/api/v1/", "https://h/api/v1", "https://h"),
        ("http://127.0.0.1:80/dagu/api/v1", "http://127.0.0.1/dagu/api/v1", "http://127.0.0.1"),
        ("https://[2001:DB8::1]:8080", "https://[2001:db8::1]:8080/api/v1", "https://[2001:db8::1]:8080"),
    ],
)
def test_a_url_is_read_into_where_the_api_is(text: str, whole: str, origin: str) -> None:
    found = address.parse(text)
    assert (str(found), found.origin) == (whole, origin)
    assert address.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "ci.example.com", "ftp://h", "https://", "https://h:0", "https://h:99999", "https://h:x", "https://h/a/../b",
        "https://h/./b", "https://h/a b", "https://h/%2e%2e/b", "https://h?x=1", "https://h#x", "https://h/a?",
        "https://h\n.example.com", "https://hö", "https://[::1", "https://-h", "file:///etc/passwd",
        "https://h/" + "a" * 3000, "https://h//b",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="the server's URL cannot be used"):
        address.parse(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as problem:
        address.parse("https://ada:hunter2@ci.example.com")
    assert "hunter2" not in str(problem.value.as_dict())

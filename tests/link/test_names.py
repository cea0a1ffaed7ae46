"""What the resolver and TLS get to hear of a name is what Python's own rules would make of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from secure_dagu.link.names import server_name, spelled


@pytest.mark.parametrize(
    "host", ["localhost", "CI.example.com", "a_b.example", "xn--mnchen-3ya.de", "127.0.0.1", "é.example"]
)
def test_a_server_name_is_the_same_as_by_the_rules_for_all_names(host: str) -> None:
    assert server_name(host) == host.encode("idna")
    assert server_name(host + ".") == host.encode("idna")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "", "é" * 64])
def test_what_is_no_server_name_is_refused(host: str) -> None:
    with pytest.raises(UnicodeError):
        server_name(host or ".example")


def test_the_resolver_gets_bytes_where_they_say_it_all() -> None:
    assert [spelled(host) for host in ("localhost", "fe80::1%eth0", "é.example", "")] == [
        b"localhost", b"fe80::1%eth0", "é.example", b"",
    ]  # fmt: skip


def test_names_in_ascii_need_no_tables() -> None:
    code = (
        "import sys\nfrom secure_dagu.link import names\n"
        "names.server_name('ci.example.com')\nnames.spelled('localhost')\n"
        "print('encodings.idna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"

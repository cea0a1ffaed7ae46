"""A library is imported without modules that we do not use it for, and nobody else misses them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_dagu.trimmed import trimmed


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A library that wants a server to inherit from and would like colours."""
    (tmp_path / "trimmed_server.py").write_text("class Server(OSError): ...\nclass Handler: ...\n")
    (tmp_path / "trimmed_colours.py").write_text("RED = 1\n")
    (tmp_path / "trimmed_library.py").write_text(
        "from trimmed_server import Handler, Server\n"
        "try:\n    import trimmed_colours\nexcept ImportError:\n    trimmed_colours = None\n"
        "class Both(Handler, Server): ...\n"
        "def served():\n    try:\n        raise ValueError\n    except Server:\n        return 1\n"
        "    except ValueError:\n        return 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "trimmed_library"
    for name in ("trimmed_server", "trimmed_colours", "trimmed_library"):
        sys.modules.pop(name, None)


def test_what_is_left_out_can_be_inherited_from_and_caught_and_is_there_for_the_next(library: str) -> None:
    with trimmed(missing=("trimmed_colours",), hollow=("trimmed_server",)):
        found = importlib.import_module(library)
    assert (found.trimmed_colours, found.served()) == (None, 2)
    assert "trimmed_server" not in sys.modules
    assert issubclass(importlib.import_module("trimmed_server").Server, OSError)
    assert importlib.import_module("trimmed_colours").RED == 1


def test_what_somebody_has_already_stays(library: str) -> None:
    server = importlib.import_module("trimmed_server")
    with trimmed(missing=("trimmed_colours",), hollow=("trimmed_server",)):
        found = importlib.import_module(library)
    assert issubclass(found.Both, server.Server)
    assert sys.modules["trimmed_server"] is server


def test_what_is_put_instead_has_its_names_and_no_others_and_is_gone_afterwards(library: str) -> None:
    with trimmed(instead={"trimmed_server": {"Server": KeyError}}), pytest.raises(ImportError, match="Handler"):
        importlib.import_module(library)
    with trimmed(instead={"trimmed_server": {"Server": KeyError, "Handler": type("Handler", (), {})}}):
        found = importlib.import_module(library)
    assert issubclass(found.Both, KeyError)
    assert issubclass(importlib.import_module("trimmed_server").Server, OSError)


def test_what_is_deprecated_works_without_typing_extensions() -> None:
    code = (
        "import sys\nimport secure_dagu.config.document\nfrom secure_dagu.link import context\n"
        "print('typing_extensions' in sys.modules)\n"
        "from OpenSSL import crypto\nprint(crypto.X509Name.__name__, callable(crypto.get_elliptic_curves))\n"
        "import typing_extensions\nprint(hasattr(typing_extensions, 'TypedDict'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\nX509Name True\nTrue\n"


@pytest.mark.usefixtures("library")
def test_nothing_is_left_behind_when_the_import_fails() -> None:
    with pytest.raises(ImportError), trimmed(missing=("trimmed_colours",), hollow=("trimmed_server",)):
        importlib.import_module("trimmed_colours")
    assert not {"trimmed_colours", "trimmed_server"} & set(sys.modules)

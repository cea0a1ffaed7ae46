"""Servers that several test files talk to; one of each for a test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runner.executors.sshd import Sshd, running


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server

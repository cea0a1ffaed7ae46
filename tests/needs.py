"""What a test needs of its host: what is missing fails in CI; on a laptop the test skips and says what to install."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, *, package: str) -> str:
    """Return the path of a program."""
    return _packaged(name, shutil.which(name), package)


def file(path: Path, *, package: str) -> Path:
    """Return a file that is no program, such as the module of one."""
    return Path(_packaged(path.name, str(path) if path.exists() else None, package))


def _packaged(name: str, where: str | None, package: str) -> str:
    return _found(
        name,
        where,
        ci=f"the Debian package {package} belongs into .ci/system-packages",
        laptop=f"install the Debian package {package}",
    )


def built(name: str) -> str:
    """Return the path of a program that Debian lacks; `.ci/build-tools` puts it beside our Python."""
    beside = Path(sys.executable).with_name(name)
    return _found(
        name,
        str(beside) if beside.exists() else shutil.which(name),
        ci="`make test` builds it by .ci/build-tools, whose output says why it did not",
        laptop="run `make tools`, or put one on the PATH",
    )


def root(*, why: str) -> None:
    """Go on only as root."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must run tests as root: {why}")
    pytest.skip(f"needs root: {why}")


def _found(name: str, where: str | None, *, ci: str, laptop: str) -> str:
    if where is None and os.environ.get("CI"):
        pytest.fail(f"CI lacks {name}: {ci}")
    if where is None:
        pytest.skip(f"needs {name}: {laptop}")
    return where

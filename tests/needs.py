"""Programs that a test talks to: a missing one fails in CI; on a laptop the test skips and says what to install."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, *, package: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"CI lacks {name}: the Debian package {package} belongs into .ci/system-packages")
    if found is None:
        pytest.skip(f"needs {name}: install the Debian package {package}")
    return found

"""Libraries that only some steps need: imported when one does, and named when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from secure_dagu.errors import ConfigError


def library(module: str, *, extra: str) -> Any:
    """Return an optional library.

    Raises:
        ConfigError: it is not installed; the error names the extra that has it.
    """
    try:
        return import_module(module)
    except ImportError:
        install = f"pip install 'secure-dagu[{extra}]'"
        raise ConfigError(f"{module} is not installed", why=f"this step needs it: {install}", fix=install) from None

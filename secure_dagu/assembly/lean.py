"""What a service leaves unread although a library of its imports it: memory that it would hold as long as it lives.

Nothing is missing: each of these modules is in its place and is read when somebody first takes something out of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

_SELDOM: Final = (
    "google.protobuf.internal.python_message",  # messages in Python, where their C implementation is not installed
    "importlib.metadata",  # SQLAlchemy: databases that it does not come with
    "shutil",  # tempfile and ourselves: to remove a folder
)


class _Later(ModuleType):
    """`importlib.util.LazyLoader` would do, but up to Python 3.11 its modules are read by importing them twice."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def prepare() -> None:
    """Put these off, unless they are there already."""
    for name in _SELDOM:
        if name not in sys.modules:
            sys.modules[name] = _Later(name)

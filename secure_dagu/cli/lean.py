"""What is not read although a library imports it: time at the start, and memory as long as a service lives.

Nothing is missing: each of these modules is in its place and is read when somebody first takes something out of it.
Importing this module puts them off, those that are there already excepted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

_SELDOM: Final = (
    "calendar",  # email: dates, where we take only addresses
    "google.protobuf.internal.python_message",  # messages in Python, where their C implementation is not installed
    "importlib.metadata",  # SQLAlchemy: databases that it does not come with
    "mmap",  # prometheus_client: metrics that several processes write into one file
    "msgspec.inspect",  # msgspec: to make a JSON Schema of types
    "pkgutil",  # grpc: definitions that are compiled while the program runs
    "shutil",  # tempfile and ourselves: to remove a folder
)


class _Later(ModuleType):
    """`importlib.util.LazyLoader` would do, but up to Python 3.11 its modules are read by importing them twice."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            if name.startswith("__") and name not in ("__all__", "__path__"):
                raise AttributeError(name)  # who only looks through all modules reads none of them
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


for _name in _SELDOM:
    if _name not in sys.modules:
        sys.modules[_name] = _Later(_name)

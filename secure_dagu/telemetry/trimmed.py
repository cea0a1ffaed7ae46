"""Import a library without modules that it imports to be complete and that nobody here uses it for.

They are out of the way only while the library is imported: whoever imports one of them afterwards gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType


class _Hollow(ModuleType):
    """A module in which every name is a class of its own, to be inherited from or caught, and nothing else."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


@contextmanager
def trimmed(*, missing: Sequence[str] = (), hollow: Sequence[str] = ()) -> Iterator[None]:
    """Import within this context. What has been imported before stays as it is.

    Args:
        missing: modules that the library can do without; importing them fails, as where they are not installed.
        hollow: modules that it wants to have; names without content are in their place.
    """
    stand_ins: dict[str, ModuleType | None] = dict.fromkeys(missing) | {name: _Hollow(name) for name in hollow}
    stand_ins = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)  # type: ignore[arg-type]  # None is the documented way to make an import fail
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]

"""Import a library without modules that it imports to be complete and that nobody here uses it for.

They are out of the way only while the library is imported: whoever imports one of them afterwards gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Self


class _Hollow(ModuleType):
    """A module in which every name is a class of its own, to be inherited from or caught, and nothing else."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


def _deprecated(*_args: Any, **_options: Any) -> Any:
    """Stand for the decorator whose warnings of old calls nobody sees who does not ask Python for them."""
    return lambda what: what


NOTHING: Final[Mapping[str, Mapping[str, Any]]] = {}
TYPING: Final = {"typing_extensions": {"Self": Self, "deprecated": _deprecated}}
"""For `instead`: what gRPC and pyOpenSSL take out of `typing_extensions`, which is 0.4 MiB of other things."""


@contextmanager
def trimmed(
    *, missing: Sequence[str] = (), hollow: Sequence[str] = (), instead: Mapping[str, Mapping[str, Any]] = NOTHING
) -> Iterator[None]:
    """Import within this context. What has been imported before stays as it is.

    Args:
        missing: modules that the library can do without; importing them fails, as where they are not installed.
        hollow: modules that it wants to have; names without content are in their place.
        instead: modules out of which it takes only these names.
    """
    stand_ins: dict[str, ModuleType | None] = dict.fromkeys(missing) | {name: _Hollow(name) for name in hollow}
    for name, names in instead.items():
        stand_ins[name] = stand_in = ModuleType(name)
        vars(stand_in).update(names)
    stand_ins = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)  # type: ignore[arg-type]  # None is the documented way to make an import fail
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]

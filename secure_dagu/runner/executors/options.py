"""Read the inputs of an action right before use: typed, whether written as a value or as a reference to one.

The loader has refused unknown keys; what a `${…}` became is known only now, as text, so `"5"` is as good as `5`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secure_dagu.dag import durations, formats
from secure_dagu.errors import DefinitionError


class Options:
    """The resolved `with` of one step. Every reader raises DefinitionError, naming the key, for a wrong value."""

    def __init__(self, values: Mapping[str, Any], *, name: str = "with") -> None:
        """Take values; `name` is what errors call the map."""
        self._values = values
        self._name = name

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def keys(self) -> set[str]:
        """Return which keys were written."""
        return set(self._values)

    def any(self, key: str) -> Any:
        """Return a value as it is, None when absent."""
        return self._values.get(key)

    def text(self, key: str, default: str = "") -> str:
        """Return a scalar as text."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, Mapping | list | tuple):
            raise self._wrong(key, "expected text")
        return formats.as_text(value)

    def needed(self, key: str) -> str:
        """Return text that must be there and not be empty."""
        value = self.text(key)
        if not value:
            raise self._wrong(key, "must not be empty")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str) -> str:
        """Return one of `allowed`, in whatever case it was written."""
        value = self.text(key, default).lower() or default
        if value not in allowed:
            raise self._wrong(key, f"expected one of {', '.join(word for word in allowed if word)}")
        return value

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean, or the text of one."""
        value = self.text(key, str(default)).lower()
        if value not in ("true", "false"):
            raise self._wrong(key, "expected true or false")
        return value == "true"

    def integer(self, key: str, default: int = 0, *, minimum: int = 0, maximum: int = 2**53) -> int:
        """Return a whole number from `minimum` to `maximum`."""
        value = self.text(key, str(default)).strip()
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18 and minimum <= int(value) <= maximum):
            raise self._wrong(key, f"expected a whole number from {minimum} to {maximum}")
        return int(value)

    def seconds(self, key: str, default: float) -> float:
        """Return a duration in seconds: a number, or Go syntax."""
        value = self._values.get(key)
        return default if value is None else durations.seconds(value, field=f"{self._name}.{key}")

    def mapping(self, key: str) -> Options | None:
        """Return a nested map, None when absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, "expected a map")
        return Options(value, name=f"{self._name}.{key}")

    def items(self, key: str) -> list[Any]:
        """Return a list of values; a lone value is a list of one."""
        value = self._values.get(key)
        if value is None:
            return []
        if isinstance(value, Mapping):
            raise self._wrong(key, "expected a list")
        return list(value) if isinstance(value, list | tuple) else [value]

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; a lone text is a list of one."""
        return [formats.as_text(item) for item in self.items(key)]

    def _wrong(self, key: str, why: str) -> DefinitionError:
        return DefinitionError(f"{self._name}.{key} cannot be used", why=why)

"""Turn the raw values of several sources into `Settings`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secure_dagu.config.settings import SECTIONS, Settings, all_settings
from secure_dagu.config.values import Raw


class InvalidValues(ValueError):
    """Some values cannot be used: (key, reason) of each."""

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {reason}" for key, reason in problems))


def read(layers: tuple[Mapping[str, Raw], ...]) -> Settings:
    """Return the settings that these layers give by key, the first one winning: a map is taken whole, never merged.

    Raises:
        InvalidValues: with every problem at once.
    """
    problems: list[tuple[str, str]] = []
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, item in all_settings().items():
        for layer in layers:
            if key not in layer:
                continue
            try:
                sections[item.section][item.name] = item.parse(layer[key])
            except ValueError as problem:
                problems.append((key, str(problem)))
            break
    if problems:
        raise InvalidValues(tuple(problems))
    made: dict[str, Any] = {name: SECTIONS[name](**values) for name, values in sections.items()}
    return Settings(**made)

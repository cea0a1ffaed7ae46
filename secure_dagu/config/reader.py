"""Turn raw values into `Settings` with pydantic-settings. Imported by `load` only, and only when it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from secure_dagu.config.settings import Client, Coordinator, Core, Paths, Peer, Settings, Worker, all_settings
from secure_dagu.config.values import Raw, Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one source gives, by key."""

    name: str
    values: Mapping[str, Raw]


class _Source(PydanticBaseSettingsSource):
    """Hand one layer to pydantic-settings, in the shape of its sections."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked: a layer is handed over whole."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return {section: {field: raw value}}."""
        declared = all_settings()
        sections: dict[str, dict[str, Any]] = {}
        for key, value in self._layer.values.items():
            item = declared[key]
            sections.setdefault(item.section, {})[item.name] = Whole(value)
        return sections


class InvalidValues(ValueError):
    """Some values cannot be used: (key, reason) of each."""

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {reason}" for key, reason in problems))


def read(layers: tuple[Layer, ...]) -> Settings:
    """Return the settings that these layers give, the first one winning.

    Raises:
        InvalidValues: with every problem at once.
    """

    class Reader(BaseSettings):
        """The sections as one pydantic model, fed by our layers and by nothing else."""

        model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=False)
        core: Core = Core()
        paths: Paths = Paths()
        coordinator: Coordinator = Coordinator()
        worker: Worker = Worker()
        peer: Peer = Peer()
        client: Client = Client()

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *args: PydanticBaseSettingsSource,
            **kwargs: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Replace pydantic-settings' own sources: names of Dagu's variables follow no pattern that they know."""
            return tuple(_Source(settings_cls, layer) for layer in layers)

    try:
        done = Reader()
    except ValidationError as problem:
        problems = []
        for error in problem.errors(include_url=False, include_input=False):
            section, *rest = (str(part) for part in error["loc"])
            key = ".".join(rest) if section == "core" else ".".join((section, *rest))
            problems.append((key, error["msg"].removeprefix("Value error, ")))
        raise InvalidValues(tuple(problems)) from problem
    return Settings(
        core=done.core,
        paths=done.paths,
        coordinator=done.coordinator,
        worker=done.worker,
        peer=done.peer,
        client=done.client,
    )

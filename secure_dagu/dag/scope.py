"""Scope: what a reference may see, as explicit layers with provenance. Pure.

The environment is a stack of layers (docs/reference/workflows.md, "Environment"); a later layer wins. Every value keeps
the layer it came from, because host-only values must stay invisible to fields without host fallback and secrets must
be maskable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace


class Layer(IntEnum):
    """Environment layers in order of strength; the numbers are those of the workflow language, section 2.6."""

    HOST = 1
    PROFILE = 2
    PARAMS = 3
    MANAGED = 4
    ROOT_ENV = 5
    DOTENV = 6
    INJECTED = 7
    PROTECTED = 8
    SECRETS = 9
    STEP_MANAGED = 10
    OUTPUTS = 11
    STEP_ENV = 12
    CONTAINER = 13
    ATTEMPT = 14


class Env(Struct, frozen=True):
    """An immutable stack of environment layers, weakest first."""

    layers: tuple[tuple[Layer, Mapping[str, str]], ...] = ()
    ambient: Mapping[str, str] = field(default_factory=dict)
    """What fields with host fallback see below all layers, and no process ever gets: the engine's own environment."""

    def with_layer(self, layer: Layer, values: Mapping[str, str]) -> Env:
        """Return a stack whose `layer` holds exactly `values`; the mapping is kept, not copied."""
        kept = [entry for entry in self.layers if entry[0] is not layer]
        kept.append((layer, values))
        kept.sort(key=lambda entry: entry[0])
        return Env(tuple(kept), self.ambient)

    def layer(self, layer: Layer) -> Mapping[str, str]:
        """Return what one layer holds; empty when it is not there."""
        for known, values in self.layers:
            if known is layer:
                return values
        return {}

    def find(self, name: str, *, host: bool) -> str | None:
        """Return the strongest value of `name`, None if there is none.

        Args:
            host: whether a value that only the host environment, filtered or not, has may be seen.
        """
        for layer, values in reversed(self.layers):
            value = values.get(name)
            if value is not None:
                return value if host or layer is not Layer.HOST else None
        return self.ambient.get(name) if host else None

    def origin(self, name: str) -> Layer | None:
        """Return the layer that `name` comes from, None when it is not set."""
        for layer, values in reversed(self.layers):
            if name in values:
                return layer
        return None

    def flat(self) -> dict[str, str]:
        """Return the environment of a process: all layers, the strongest value of each name."""
        merged: dict[str, str] = {}
        for _, values in self.layers:
            merged.update(values)
        return merged


class StepView(Struct, frozen=True, kw_only=True):
    """What the compatibility forms may read of a finished step (workflow language, section 2.10)."""

    output: Any = None
    """String form: the captured text. Mapping form: a mapping. None: the step has no `output`."""
    outputs: Mapping[str, Any] | None = None
    """Published outputs by name; None: it published none."""
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None


class StepViews(Mapping[str, StepView]):
    """Steps by id, each view made when it is first read: a step that refers to nothing pays for nothing."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Mapping[str, Callable[[], StepView]]) -> None:
        self._make = make
        self._made: dict[str, StepView] = {}

    def __getitem__(self, key: str) -> StepView:
        if key not in self._made:
            self._made[key] = self._make[key]()
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


class Scope(Struct, frozen=True, kw_only=True):
    """Everything that a field's references may see. Whoever builds it decides what is permitted; `resolve` only looks.

    Attributes:
        env: environment layers.
        consts: constants of the document (strings, numbers, booleans).
        params: resolved named parameters as text; positional ones are only in `env`.
        params_json: what `${params}` and `DAG_PARAMS_JSON` hold; empty without parameters.
        context: by path below `context.`: `{"run.id": …, "paths.work_dir": …}`. Only what is available.
        declared: `${steps.ID.outputs.N}`: declared outputs by step id, only of steps the field's owner depends on.
        steps: compatibility forms, by step id, only of steps the field's owner depends on.
        foreach: `index`, `key` and the `as` name inside a foreach body; None elsewhere.
        build_inputs: `${inputs.N}` in build DAGs.
        build_outputs: `${outputs.N}` in build DAGs.
    """

    env: Env = Env()
    consts: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    params_json: str = ""
    context: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    steps: Mapping[str, StepView] = field(default_factory=dict)
    foreach: Mapping[str, Any] | None = None
    build_inputs: Mapping[str, str] | None = None
    build_outputs: Mapping[str, str] | None = None

    def with_env(self, layer: Layer, values: Mapping[str, str]) -> Scope:
        """Return this scope with one environment layer replaced."""
        return replace(self, env=self.env.with_layer(layer, values))

"""JSON bodies of the REST API. A key that is not known is refused, so a mistyped one never goes unnoticed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_NAME = r"^[A-Za-z0-9_.-]+$"
_RUN_ID = r"^[A-Za-z0-9_-]*$"

MAX_SPEC = 1024 * 1024
"""Characters of a definition."""

Spec = Annotated[str, Field(max_length=MAX_SPEC, description="A definition, YAML.")]
Name = Annotated[str, Field(pattern=_NAME, min_length=1, max_length=255)]
Label = Annotated[str, Field(min_length=1, max_length=255)]
Inputs = Annotated[dict[str, Annotated[str, Field(max_length=65536)]], Field(max_length=100)]


class Body(BaseModel):
    """What every body has in common: exact types, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NewDag(Body):
    """A definition to create; without `spec`, one that says hello."""

    name: Name
    spec: Spec | None = None


class SpecBody(Body):
    """A definition."""

    spec: Spec


class ValidateBody(Body):
    """A definition to look at."""

    spec: Spec
    name: Annotated[str, Field(max_length=255)] = ""


class RenameBody(Body):
    """Another name."""

    newFileName: Name


class SuspendBody(Body):
    """Whether the schedule rests."""

    suspend: bool


class _Run(Body):
    params: Annotated[str, Field(max_length=65536)] = ""
    dagRunId: Annotated[str, Field(pattern=_RUN_ID, max_length=128)] = ""
    singleton: bool = False
    noReuse: bool = False
    labels: Annotated[list[Label], Field(max_length=100)] = []
    tags: Annotated[list[Label], Field(max_length=100, json_schema_extra={"deprecated": True})] = []
    profile: Annotated[str, Field(max_length=255)] = ""


class StartBody(_Run):
    """What a run is started with."""

    dagName: Annotated[str, Field(max_length=255)] = ""


class StartSyncBody(StartBody):
    """What a run is started with, and for how long somebody waits for it."""

    timeout: Annotated[int, Field(ge=1, le=86_400, description="Seconds.")]


class EnqueueBody(StartBody):
    """What a run is queued with."""

    queue: Annotated[str, Field(max_length=255)] = ""


class InlineBody(_Run):
    """A run of a definition that is not in the DAGs directory."""

    spec: Annotated[str, Field(min_length=1, max_length=MAX_SPEC)]
    name: Annotated[str, Field(max_length=255)] = ""


class InlineEnqueueBody(InlineBody):
    """The same for a queue."""

    queue: Annotated[str, Field(max_length=255)] = ""


class RetryBody(Body):
    """What is run again; `dagRunId` must be the run's own."""

    dagRunId: Annotated[str, Field(pattern=_RUN_ID, min_length=1, max_length=128)]
    stepName: Annotated[str, Field(max_length=1024)] = ""
    includeDownstream: bool = False
    subDAGRunId: Annotated[str, Field(pattern=_RUN_ID, max_length=128)] = ""


class RescheduleBody(Body):
    """How the new run differs."""

    dagRunId: Annotated[str, Field(pattern=_RUN_ID, max_length=128)] = ""
    dagName: Annotated[str, Field(max_length=255)] = ""
    useCurrentDagFile: bool = False


class StepStatusBody(Body):
    """The status that a step should have had."""

    status: Annotated[int, Field(ge=0, le=9)]


class InputsBody(Body):
    """What a person fills in."""

    inputs: Inputs = {}


class RejectBody(Body):
    """Why a person says no."""

    reason: Annotated[str, Field(max_length=4096)] = ""


class TaskBody(Body):
    """The fields of a human task."""

    fields: Annotated[dict[str, Any], Field(max_length=100)] = {}


class RevokeBody(Body):
    """Why a worker's certificates are revoked."""

    reason: Literal[
        "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation",
        "privilegeWithdrawn",
    ] = "unspecified"  # fmt: skip


class DrainBody(Body):
    """Whether a worker is to get no new work."""

    draining: bool = True


class TopicsBody(Body):
    """Topics that a stream is to carry, or carry no longer."""

    sessionID: Annotated[str, Field(min_length=1, max_length=64)]
    add: Annotated[list[str], Field(max_length=100)] = []
    remove: Annotated[list[str], Field(max_length=100)] = []

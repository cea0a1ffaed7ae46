"""Query parameters and path segments of the REST API, bounded. The topics of live updates read the same queries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from secure_dagu.dispatch.operating import RunFilter, Window, WorkflowFilter
from secure_dagu.run.model import RunStatus

_LAST_SECOND = 253_402_300_799
"""Of the year 9999."""

FileName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_.-]+$", max_length=255, description="Name in the DAGs directory, no extension.")
]
DagName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]+$", max_length=255, description="Name of the DAG.")]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]+$", max_length=128, description="Run id, or `latest`.")]
SubRunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]+$", max_length=128, description="Id of a run below it.")]
StepName = Annotated[str, Path(min_length=1, max_length=1024, description="Name of a step, or `onExit` and the like.")]
QueueName = Annotated[str, Path(min_length=1, max_length=255, description="Name of a queue.")]
WorkerName = Annotated[str, Path(min_length=1, max_length=255, description="Id of a worker.")]

Stream = Annotated[Literal["stdout", "stderr"], Query(description="Which stream of the step.")]
FilePath = Annotated[
    str, Query(min_length=1, max_length=4096, description="Relative path of a file, `/` between its parts.")
]


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:  # of the first or the last year, in another zone
        raise ValueError("the time is out of range") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone, as UTC."""


def only_here(
    remoteNode: Annotated[Literal["local", ""], Query(description="This server; there are no others.")] = "local",
    workspace: Annotated[Literal["all", "default", ""], Query(description="There is one workspace.")] = "all",
) -> None:
    """Refuse what asks for another server or workspace: we have one of each."""


class BoundedQuery(BaseModel):
    """What every query has in common."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Labelled(BoundedQuery):
    labels: str = Field("", max_length=2048, description="All must hold: `key`, `key=value`, `!key`, commas between.")
    tags: str = Field("", max_length=2048, description="Old name of `labels`.", json_schema_extra={"deprecated": True})

    @model_validator(mode="after")
    def _one_of_them(self) -> _Labelled:
        if "tags" in self.model_fields_set and "labels" in self.model_fields_set:
            raise ValueError("tags is the old name of labels: give only one of them")
        return self

    @property
    def wanted_labels(self) -> tuple[str, ...]:
        """Return the labels one by one."""
        given = self.labels or self.tags
        return tuple(part.strip() for part in given.split(",") if part.strip())


class DagsQuery(_Labelled):
    """Which definitions, in which order."""

    page: int = Field(1, ge=1, le=1_000_000)
    perPage: int = Field(50, ge=1, le=1000)
    name: str = Field("", max_length=255, description="Part of the name.")
    active: bool = Field(False, description="Only those with a schedule that are not suspended.")
    sort: Literal["name", "nextRun"] = "name"
    order: Literal["asc", "desc"] = "asc"

    def filter(self) -> WorkflowFilter:
        """Return what the DAGs directory is asked for."""
        return WorkflowFilter(name_part=self.name, labels=self.wanted_labels, active_only=self.active)


class RunsQuery(_Labelled):
    """Which runs; without dates, of any time."""

    status: list[Annotated[int, Field(ge=0, le=8)]] = Field([], max_length=9, description="Repeat it for several.")
    fromDate: int | None = Field(None, ge=0, le=_LAST_SECOND, description="Unix seconds.")
    toDate: int | None = Field(None, ge=0, le=_LAST_SECOND, description="Unix seconds.")
    name: str = Field("", max_length=255, description="Part of the DAG's name.")
    dagRunId: str = Field("", max_length=128, description="Part of the run id.")
    limit: int = Field(100, ge=1, le=500)
    cursor: str = Field("", max_length=1024, description="`nextCursor` of the page before.")

    def filter(self, *, dag: str = "") -> RunFilter:
        """Return what runs are asked for; `dag` is an exact name."""
        return RunFilter(
            name=dag,
            name_part="" if dag else self.name,
            run_id_part=self.dagRunId,
            statuses=frozenset(RunStatus(number) for number in self.status),
            labels=self.wanted_labels,
            since=_moment(self.fromDate),
            until=_moment(self.toDate),
        )


class LogQuery(BoundedQuery):
    """Which lines of a log; of several wishes, `tail` counts before `head` before `offset`."""

    tail: int = Field(0, ge=0, le=10_000, description="The last lines.")
    head: int = Field(0, ge=0, le=10_000, description="The first lines.")
    offset: int = Field(0, ge=0, le=2**53, description="From this line on; 1 is the first.")
    limit: int = Field(1000, ge=1, le=10_000, description="How many from there.")

    def window(self) -> Window:
        """Return the lines."""
        return Window(tail=self.tail, head=self.head, offset=self.offset, limit=self.limit)


class ItemsQuery(BoundedQuery):
    """A piece of a queue."""

    limit: int = Field(100, ge=1, le=500)
    cursor: str = Field("", max_length=1024)


class TailQuery(BoundedQuery):
    """How much of the log a live view follows."""

    tail: int = Field(500, ge=100, le=10_000)


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

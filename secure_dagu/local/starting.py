"""From what somebody asks to run to what a run is started with: the definition, its parameters, its profile."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Definition
from secure_dagu.dag.params import bind_params
from secure_dagu.dag.plan import make_plan
from secure_dagu.dispatch.operating import StartRequest
from secure_dagu.errors import DefinitionError, InvalidRequest, NotFound
from secure_dagu.local import definitions
from secure_dagu.local.places import Places
from secure_dagu.local.profiles import Profiles
from secure_dagu.local.run_ids import new_run_id
from secure_dagu.local.runs import Start
from secure_dagu.run.model import DagRunRef
from secure_dagu.runner.files import schema_reader
from secure_dagu.store.records import DAG_NAME, RUN_ID

_FILE = re.compile(r"(?!\.)[A-Za-z0-9_. -]{1,128}\Z")


class Starts:
    """Make what runs are started with."""

    def __init__(self, places: Places, *, base_config: Callable[[], str], profiles: Path) -> None:
        """Take where definitions are, what reads `base.yaml` as it is now, and the folder of profiles."""
        self._places = places
        self._base_config = base_config
        self._profiles = Profiles(profiles)

    def of(self, request: StartRequest, *, queued: bool) -> Start:
        """Return what a request starts. One that is not queued takes no place of a named queue.

        Raises:
            NotFound: no such DAG or profile. DefinitionError: it does not load, cannot be planned, or its parameters
                do not fit. InvalidRequest: a malformed name or id.
        """
        base = self._base_config()
        if request.dag:
            path = self.file(request.dag)
            loaded = self._load(definitions.read(path), path=path, name=request.name, base=base)
        else:
            path = None
            loaded = self._load(request.text, path=None, name=request.name, base=base)
        dag = loaded.main
        if not DAG_NAME.match(dag.name):
            raise InvalidRequest("the DAG needs a name", why=f"{dag.name[:64]!r} is none", fix="send `name`")
        run_id = request.run_id or new_run_id()
        if not RUN_ID.match(run_id):
            raise InvalidRequest("dag-run ID must only contain alphanumeric characters, dashes, and underscores")
        check_plan(loaded, request.params)
        labels = (*dag.labels, *(label.strip().lower() for label in request.labels if label.strip()))
        start = Start(
            run=DagRunRef(dag.name, run_id),
            loaded=loaded,
            source_file=str(path or ""),
            params=request.params,
            labels=tuple(dict.fromkeys(labels)),
            base_config=base,
            queue=(request.queue or dag.queue or dag.name) if queued else dag.name,
            no_reuse=request.no_reuse,
            trigger=request.trigger,
            actor=request.actor,
            schedule_time=request.schedule_time,
            profile=request.profile,
        )
        if start.profile:
            self._profiles.values(start.profile)  # it exists
        return start

    def current(self, old: Start) -> Start:
        """Return an earlier start with the definition that its file has now."""
        path = Path(old.source_file) if old.source_file else self.file(old.run.name)
        base = self._base_config()
        return replace(
            old, loaded=self._load(definitions.read(path), path=path, name=old.run.name, base=base), base_config=base
        )

    def definition(self, dag: str) -> Definition:
        """Return what the file of a DAG says now, whatever its parameters would be.

        Raises:
            NotFound: there is none. DefinitionError: it does not load.
        """
        path = self.file(dag)
        return self._load(definitions.read(path), path=path, name="", base=self._base_config())

    def file(self, dag: str) -> Path:
        """Return the file of a DAG in the directory of DAGs, or below it.

        Raises:
            NotFound: there is none, or the name climbs out.
        """
        folder = self._places.dags_dir
        if _FILE.match(dag):
            for suffix in (".yaml", ".yml"):
                if (path := folder / f"{dag}{suffix}").is_file():
                    return path
            for path in sorted(folder.rglob("*.y*ml")):
                if definitions.stem(path) == dag and path.is_file():
                    return path
        raise NotFound(f'DAG "{dag[:128]}" not found', why="the DAGs directory has no such file")

    def _load(self, text: str, *, path: Path | None, name: str, base: str) -> Definition:
        reader = schema_reader(*([path.parent] if path else []), Path.cwd())
        return load_definition(
            text, file=path.name if path else "", name=name or None, base_config=base, read_schema=reader
        )


def check_plan(definition: Definition, params: str) -> None:
    """Find out before a run is recorded what would end it before its first step.

    Raises:
        DefinitionError: the steps wait for each other, or the parameters do not fit.
    """
    try:
        make_plan(definition.main)
    except DefinitionError as error:
        raise DefinitionError(f"failed to setup execution plan: {error.what}", why=error.why, fix=error.fix) from error
    bind_params(definition.main, params).check_required()

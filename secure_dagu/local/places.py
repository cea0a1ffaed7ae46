"""Where runs on this host keep logs, work and artifacts: folders made from ids (workflow language, 6.1, 6.2)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct, field

from secure_dagu.dag.model import Dag
from secure_dagu.local.running import RunningRuns
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.runner.api import RunFolders
from secure_dagu.store.records import SILENT_S, Records


class Places(Struct, frozen=True, kw_only=True):
    """The folders of this host's configuration, and what else every run here uses."""

    dags_dir: Path
    data_dir: Path
    log_dir: Path
    artifact_dir: Path
    work_dir: Path
    dag_runs_dir: Path
    queues: Path
    """The folder of queues."""
    proc_dir: Path
    """What runs now."""
    suspend_dir: Path
    state_dir: Path
    """Values that runs keep."""
    base_config: str = ""
    """The text of `base.yaml`; empty when there is none."""
    host_env: Mapping[str, str] = field(default_factory=dict)
    default_shell: str = ""
    public_url: str = ""
    """Where people reach the Web UI; empty: nobody said."""
    beat_every_s: float = 5.0
    """How often a run says to other hosts that it is being run."""
    silent_s: float = SILENT_S
    """After how much silence they take it for gone."""
    log_charset: str = "utf-8"
    """Character encoding of the logs of steps; a run's own log is always UTF-8."""
    process_env: Mapping[str, str] = field(default_factory=dict)
    """All that this process was started with: what `${NAME}` in `env` and secrets of the provider `env` may name."""

    @property
    def records(self) -> Records:
        """Return the records of runs."""
        return Records(self.dag_runs_dir)

    @property
    def running(self) -> RunningRuns:
        """Return which attempts run here."""
        return RunningRuns(self.proc_dir, queues=self.queues)

    @property
    def materializations(self) -> Path:
        """Return where build DAGs keep what they know of their outputs."""
        return self.data_dir / "materializations"

    def folders(
        self, dag: Dag, *, run: DagRunRef, root: DagRunRef, attempt_id: AttemptId, created: datetime, archive: str = ""
    ) -> RunFolders:
        """Return the folders of one attempt, which are made with it; work and artifacts are shared by all attempts.

        Args:
            dag: names its own log and artifact folders, which count from the current directory.
            run, root, attempt_id: what the folders are called by.
            created: when the run was made.
            archive: where an earlier attempt put its artifacts.
        """
        now = datetime.now(UTC)
        name = f"dag-run_{created:%Y%m%d_%H%M%S}Z_{run.run_id}"
        moment = f"{now:%Y%m%d.%H%M%S}.{now.microsecond // 1000:03d}.{run.run_id[:8]}"
        logs = (Path.cwd() / dag.log_dir if dag.log_dir else self.log_dir) / dag.name / name
        artifacts = Path.cwd() / dag.artifacts.dir if dag.artifacts.dir else self.artifact_dir
        return RunFolders(
            logs=logs / f"run_{now:%Y%m%d_%H%M%S}Z_{attempt_id}",
            run_log=logs / f"dag-run_{moment}.log",
            log_suffix=moment,
            work=self.work_folder(run=run, root=root),
            artifacts=Path(archive) if archive else artifacts / dag.name / name,
        )

    def work_folder(self, *, run: DagRunRef, root: DagRunRef) -> Path:
        """Return the working directory of a run; those of its children lie beside it."""
        tree = self.work_dir / root.name / _short(root.run_id)
        return tree / ("root" if run == root else _short(run.run_id))


def _short(run_id: str) -> str:
    """Return 26 characters that stand for a run id of any length."""
    digest = hashlib.sha256(run_id.encode()).digest()[:16]
    return base64.b32encode(digest).decode().rstrip("=").lower()

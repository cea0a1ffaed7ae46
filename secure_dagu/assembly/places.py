"""Where this host keeps its runs, as the settings say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from secure_dagu.config.load import Loaded, host_environment, process_environment
from secure_dagu.local import definitions
from secure_dagu.local.places import Places
from secure_dagu.local.workflows import WorkflowFolder

LOCALTIME = Path("/etc/localtime")


def places_of(loaded: Loaded) -> Places:
    """Return the folders of runs, and what every run here uses.

    Raises:
        DefinitionError: `base.yaml` cannot be read.
    """
    paths = loaded.settings.paths
    return Places(
        dags_dir=paths.dags_dir,
        data_dir=paths.data_dir,
        log_dir=paths.log_dir,
        artifact_dir=paths.artifact_dir,
        work_dir=paths.dag_run_work_dir,
        dag_runs_dir=paths.dag_runs_dir,
        queues=paths.queue_dir,
        proc_dir=paths.proc_dir,
        suspend_dir=paths.suspend_flags_dir,
        state_dir=paths.dag_state_dir,
        base_config=base_config_of(loaded),
        host_env={**host_environment(loaded), **_named_config(loaded)},
        default_shell=loaded.settings.core.default_shell,
        public_url=loaded.settings.core.public_url,
        beat_every_s=loaded.settings.proc.heartbeat_interval.total_seconds(),
        silent_s=loaded.settings.proc.stale_threshold.total_seconds(),
        log_charset=loaded.settings.ui.log_encoding_charset,
        process_env=process_environment(),
    )


def base_config_of(loaded: Loaded) -> str:
    """Return the text of `base.yaml`; empty when there is none."""
    path = loaded.settings.paths.base_config
    return definitions.read(path) if path.is_file() else ""


def workflows_of(loaded: Loaded) -> WorkflowFolder:
    """Return the DAGs directory of the configuration."""
    settings = loaded.settings
    return WorkflowFolder(
        settings.paths.dags_dir,
        settings.paths.suspend_flags_dir,
        base_config=lambda: base_config_of(loaded),
        zone=zone_of(loaded),
        recursive=settings.dag_discovery.recursive,
    )


def zone_of(loaded: Loaded) -> Callable[[], tzinfo]:
    """Return what says the time zone of schedules that name none: that of the settings, else this host's."""
    name = loaded.settings.core.tz
    zone = ZoneInfo(name) if name else host_zone()
    return lambda: zone


def host_zone() -> tzinfo:
    """Return the time zone of this host, with its clock changes where the host tells them."""
    with contextlib.suppress(OSError, ValueError):
        if name := process_environment().get("TZ", "").removeprefix(":"):
            return ZoneInfo(name)
        with LOCALTIME.open("rb") as file:
            return ZoneInfo.from_file(file, key=str(LOCALTIME))
    return datetime.now().astimezone().tzinfo or UTC


def _named_config(loaded: Loaded) -> dict[str, str]:
    """Return by which variable commands in steps read the same file, where another than the home's was named."""
    if loaded.config_file is None or loaded.config_file == loaded.home.config_file:
        return {}
    return {"DAGU_CONFIG": str(loaded.config_file.absolute())}

"""What a first start leaves for a person to begin with: example DAGs and a commented `base.yaml`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from secure_dagu.errors import ConfigError

EXAMPLES = Path(__file__).parent / "examples"
"""Files called `<number>-<id>.yaml`; the first line is a comment that says what it shows."""

_SCHEDULED = re.compile(r"^schedule:", re.MULTILINE)
_BASE = """\
# What every DAG of this host begins with; a DAG that says something itself wins. Keys are those of a DAG file.
#
# env:
#   - REGION: eu-1
# hist_retention_days: 30
# retry_policy:
#   limit: 2
#   interval_sec: 60
"""


def prepare(dags_dir: Path, suspend_dir: Path, base_config: Path) -> list[str]:
    """Write examples into an empty DAGs directory and a template of `base.yaml`, each once; return what was made.

    A marker beside each remembers that it was done: what somebody deleted stays deleted. Examples with a schedule are
    suspended, so that nothing starts by itself.

    Raises:
        ConfigError: a folder cannot be written.
    """
    made = []
    try:
        dags_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        base_config.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if _first_time(dags_dir / ".examples-created") and not any(dags_dir.glob("*.y*ml")):
            for path in sorted(EXAMPLES.glob("*.yaml")):
                name = f"example-{path.stem.partition('-')[2]}"
                shutil.copyfile(path, dags_dir / f"{name}.yaml")
                if _SCHEDULED.search(path.read_text()):
                    suspend_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
                    (suspend_dir / f"{name}.suspend").touch(mode=0o640)
            made.append(f"examples in {dags_dir}")
        if _first_time(base_config.parent / ".base-config-created") and not base_config.exists():
            base_config.write_text(_BASE)
            made.append(str(base_config))
    except OSError as error:
        raise ConfigError(
            "the folders of a first start cannot be written",
            why=f"{error.filename}: {os.strerror(error.errno or 0)}",
            fix="say another home with DAGU_HOME or --dagu-home, or give this user the right to write there",
        ) from error
    return made


def _first_time(marker: Path) -> bool:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
    except FileExistsError:
        return False
    return True

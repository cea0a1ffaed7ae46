"""Every setting of this version, declared once: key, type, default, variable, flag, help.

The flags, the `DAGU_*` variables, the YAML file and docs/reference/configuration.md are made from these declarations.
A setting's key is `section.field`; the fields of `Core` are top-level keys. Its variable is `DAGU_` and the key in
upper case with `_` for `.`, unless declared otherwise. `default_text` says a default that depends on the host.
"""

# ruff: noqa: RUF009 - `setting` only wraps dataclasses.field
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_type_hints

from secure_dagu.config import values
from secure_dagu.config.values import Address, Parsed, shown

Bool = Annotated[bool, Parsed(values.boolean, "true|false")]
Text = Annotated[str, Parsed(values.text, "TEXT")]
Texts = Annotated[tuple[str, ...], Parsed(values.texts, "A,B,…")]
Host = Annotated[str, Parsed(values.host, "HOST")]
Hosts = Annotated[tuple[str, ...], Parsed(values.hosts, "HOST,…")]
Port = Annotated[int, Parsed(values.integer(minimum=0, maximum=65535), "PORT")]
Count = Annotated[int, Parsed(values.integer(minimum=1, maximum=100_000), "N")]
CountOrNone = Annotated[int, Parsed(values.integer(minimum=0, maximum=1000), "N")]
Duration = Annotated[timedelta, Parsed(values.duration, "DURATION")]
Addresses = Annotated[tuple[Address, ...], Parsed(values.addresses, "HOST:PORT,…")]
Labels = Annotated[Mapping[str, str], Parsed(values.labels, "K=V,…")]
File = Annotated[Path, Parsed(lambda raw: Path(values.text(raw)), "FILE")]
OptionalFile = Annotated[Path | None, Parsed(lambda raw: Path(values.text(raw)), "FILE")]
Folder = Annotated[Path, Parsed(lambda raw: Path(values.text(raw)), "DIR")]
LogFormat = Annotated[str, Parsed(values.choice("text", "json"), "text|json")]
ExecutionMode = Annotated[str, Parsed(values.choice("local", "distributed"), "local|distributed")]
MetricsAccess = Annotated[str, Parsed(values.choice("private", "public"), "private|public")]
TlsVersion = Annotated[str, Parsed(values.choice("1.3", "1.2"), "1.3|1.2")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a field says beside its type and default."""

    help: str
    env: tuple[str, ...] = ()
    flag: str = ""
    short: str = ""
    default_text: str = ""


def setting(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - the word that argparse uses for it too
    """Declare one setting; `more` are the fields of `Declared`."""
    metadata = {"declared": Declared(help=help, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What concerns every process."""

    debug: Bool = setting(
        False, "Log why things happen, and show unexpected errors whole.", env=("DAGU_DEBUG", "DEBUG")
    )
    log_format: LogFormat = setting("text", "How log lines look on standard error.")
    tz: Text = setting("", "Time zone that steps see as TZ, as an IANA name.", default_text="the host's")
    default_shell: Text = setting("", "Shell that runs the commands of steps.", default_text="$SHELL, else sh")
    env_passthrough: Texts = setting((), "Names of variables of this process that steps see as well.")
    env_passthrough_prefixes: Texts = setting((), "Prefixes of such names. Configuration variables are never passed.")
    default_execution_mode: ExecutionMode = setting(
        "local", "Where a DAG without a selector runs if nothing else decides; dispatched tasks always go to workers."
    )
    metrics: MetricsAccess = setting(
        "private", "Where /metrics is served: private means only while the health address is a loopback one, public "
        "means wherever /health is.",
        env=("DAGU_SERVER_METRICS",),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things are. `~` and `${VAR}` are expanded, relative paths count from the current directory."""

    dags_dir: Folder = setting(
        Path(), "DAG definitions.", env=("DAGU_DAGS_DIR", "DAGU_DAGS"), default_text="<home>/dags"
    )
    data_dir: Folder = setting(
        Path(), "What the coordinator remembers.", env=("DAGU_DATA_DIR",), default_text="<home>/data"
    )
    log_dir: Folder = setting(Path(), "Logs of runs and steps.", env=("DAGU_LOG_DIR",), default_text="<home>/logs")
    artifact_dir: Folder = setting(
        Path(), "Artifacts of runs.", env=("DAGU_ARTIFACT_DIR",), default_text="{data_dir}/artifacts"
    )
    dag_run_work_dir: Folder = setting(
        Path(), "Working directories of attempts on a worker.", env=("DAGU_DAG_RUN_WORK_DIR",),
        default_text="{data_dir}/dag-run-work",
    )  # fmt: skip
    secrets_dir: Folder = setting(
        Path(), "Managed secrets, one private file for each.", env=("DAGU_SECRETS_DIR",),
        default_text="{data_dir}/secrets",
    )  # fmt: skip
    base_config: File = setting(
        Path(), "Defaults for all DAG definitions.", env=("DAGU_BASE_CONFIG",), default_text="<home>/base.yaml"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """The coordinator."""

    host: Host = setting("127.0.0.1", "Address that it listens on.", flag="--coordinator.host", short="-H")
    port: Port = setting(50055, "Port that it listens on.", flag="--coordinator.port", short="-P")
    advertise: Hosts = setting(
        (), "Names under which workers dial it; the first is written into tasks. Its certificate must cover all.",
        flag="--coordinator.advertise", short="-A", default_text="the host's name",
    )  # fmt: skip
    id: Text = setting("", "Its id in tasks and logs.", flag="--coordinator.id", default_text="<host name>@<port>")
    health_host: Host = setting("127.0.0.1", "Address of /health and /metrics.", flag="--coordinator.health-host")
    health_port: Port = setting(
        8091, "Port of /health and /metrics; 0 turns both off.", flag="--coordinator.health-port"
    )
    task_wait: Duration = setting(
        timedelta(minutes=5), "How long a task waits while no live worker matches it; then its run fails.",
        flag="--coordinator.task-wait",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker."""

    coordinators: Addresses = setting((), "Coordinators to poll (required).", flag="--worker.coordinators")
    id: Text = setting(
        "", "Who it is: the name in its certificate, or that name, @ and anything.", flag="--worker.id", short="-w",
        default_text="<host name>@<pid>",
    )  # fmt: skip
    max_active_runs: Count = setting(100, "Runs at once, at least 1.", flag="--worker.max-active-runs", short="-m")
    labels: Labels = setting({}, "What tasks may select it by.", flag="--worker.labels", short="-l")
    health_host: Host = setting("127.0.0.1", "Address of /health and /metrics.", flag="--worker.health-host")
    health_port: Port = setting(8092, "Port of /health and /metrics; 0 turns both off.", flag="--worker.health-port")
    drain_timeout: Duration = setting(
        timedelta(minutes=5), "How long running work may go on after SIGTERM.", flag="--worker.drain-timeout"
    )
    orphan_timeout: Duration = setting(
        timedelta(minutes=3), "How long a run goes on while its coordinator cannot be reached.",
        flag="--worker.orphan-timeout",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The connection between coordinators and everybody who calls them."""

    insecure: Bool = setting(
        False, "No TLS: nobody is proven and everything can be read. Both ends must say it.", flag="--peer.insecure"
    )
    cert_file: OptionalFile = setting(
        None, "Own certificate, PEM.", flag="--peer.cert-file", default_text="that of the standard place"
    )
    key_file: OptionalFile = setting(
        None, "Its private key, PEM, mode 0600.", flag="--peer.key-file", default_text="as above"
    )
    client_ca_file: OptionalFile = setting(
        None, "The only CA that this process trusts, PEM.", flag="--peer.client-ca-file", default_text="as above"
    )
    skip_tls_verify: Bool = setting(
        False, "Always refused: a connection whose other end is not verified protects nothing.",
        flag="--peer.skip-tls-verify",
    )  # fmt: skip
    min_tls_version: TlsVersion = setting("1.3", "Oldest TLS version that is spoken.", flag="--peer.min-tls-version")
    max_retries: CountOrNone = setting(3, "How often a dispatch is tried again.")
    retry_interval: Duration = setting(timedelta(seconds=1), "First pause between such tries; it doubles up to 30s.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Commands that an operator runs: dispatch, status, logs, artifacts, workers, cancel."""

    coordinators: Addresses = setting(
        (), "Coordinators that these commands dial.", flag="--coordinators",
        default_text="worker.coordinators, else coordinator.advertise or localhost with coordinator.port",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of them."""

    core: Core = field(default_factory=Core)
    paths: Paths = field(default_factory=Paths)
    coordinator: Coordinator = field(default_factory=Coordinator)
    worker: Worker = field(default_factory=Worker)
    peer: Peer = field(default_factory=Peer)
    client: Client = field(default_factory=Client)


SECTIONS: Mapping[str, type[Any]] = {
    "core": Core,
    "paths": Paths,
    "coordinator": Coordinator,
    "worker": Worker,
    "peer": Peer,
    "client": Client,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One declaration, ready to make a flag, a variable, a file key or a line of documentation of."""

    section: str
    name: str
    key: str
    help: str
    word: str
    env: tuple[str, ...]
    flag: str
    short: str
    default: str
    is_bool: bool


@cache  # --help asks for each command; it never changes
def all_settings() -> Mapping[str, Setting]:
    """Return every declaration by key, in the order of this file."""
    return MappingProxyType({item.key: item for section, cls in SECTIONS.items() for item in _of(section, cls)})


def _of(section: str, cls: type[Any]) -> Iterator[Setting]:
    hints = get_type_hints(cls, include_extras=True)
    for item in fields(cls):
        declared: Declared = item.metadata["declared"]
        kind, parsed = get_args(hints[item.name])[:2]
        key = item.name if section == "core" else f"{section}.{item.name}"
        default = item.default if item.default is not MISSING else {}
        yield Setting(
            section=section,
            name=item.name,
            key=key,
            help=declared.help,
            word=parsed.word,
            env=declared.env or ("DAGU_" + key.upper().replace(".", "_"),),
            flag=declared.flag,
            short=declared.short,
            default=declared.default_text or shown(default),
            is_bool=kind is bool,
        )

"""Read flags, variables and the file into `Settings`: the only place that reads the environment."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from secure_dagu.config import document, known, reader
from secure_dagu.config.home import Home, expand, find_home
from secure_dagu.config.peers import Insecure, PeerFiles, Purpose, choose_peer
from secure_dagu.config.settings import Setting, Settings, all_settings
from secure_dagu.config.values import Address, Raw, charset
from secure_dagu.errors import ConfigError

# What a step sees of this process's environment, and nothing else (configuration reference, section 10). Of
# what begins with DAGU_, where tokens and key files are too, only where things are passes.
_STEP_WORDS = """
PATH HOME USER SHELL TMPDIR TERM EDITOR VISUAL LANG LC_ALL LC_CTYPE TZ LD_LIBRARY_PATH XDG_CONFIG_HOME XDG_DATA_HOME
XDG_CACHE_HOME XDG_STATE_HOME DOCKER_HOST DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION
"""
_STEP_NAMES = frozenset(_STEP_WORDS.split())
_STEP_PREFIXES = ("DAG_", "LC_", "KUBERNETES_")
_OURS_PASSED = frozenset({"DAGU_HOME", "DAGU_CONTAINER_RUNTIME", "DAGU_PODMAN_HOST"})
_NEVER_PREFIXES = ("DAGU_", "_DAGU_INTERNAL_")

# Variables that this program and its steps use beside the settings; not worth a warning.
_OTHER_VARIABLES = _OURS_PASSED | {"DAGU_CONFIG", "DAGU_OUTPUT_FILE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The settings, where each came from, and what should be said about them."""

    settings: Settings
    sources: Mapping[str, str]
    """Key → `flag --x`, `variable DAGU_X`, `FILE:LINE` or `default`."""
    warnings: tuple[str, ...]
    home: Home
    config_file: Path | None
    """The file that was read; None when there is none."""


def load(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read everything: typed flags over variables over the file over defaults.

    Args:
        args: flags under their keys (`cli.flags.add_settings_flags`), `dagu_home` and `config`.
        environ: the environment; None means this process's. A variable set to nothing counts as not set.

    Raises:
        ConfigError: with every invalid value, its key and where it came from.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251 - the one door (docs/architecture.md)
    home = home_of(args, environ)
    parsed = _parse(args, environ, home)
    settings = _with_host_defaults(parsed.settings, home, environ, parsed.sources)
    _check(settings, parsed.sources)
    return replace(parsed, settings=settings)


def home_of(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Home:
    """Return the home directory; reads no file.

    Raises:
        ConfigError: it names a variable that is not set.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251 - the one door (docs/architecture.md)
    try:
        return find_home(getattr(args, "dagu_home", None), environ, cwd=Path.cwd())
    except ValueError as problem:
        raise ConfigError("the home directory cannot be used", why=str(problem), fix="see --dagu-home") from problem


def wants_debug() -> bool:
    """Tell whether unexpected errors are shown whole, before or without reading the configuration."""
    environ = os.environ  # noqa: TID251 - the one door (docs/architecture.md)
    return bool(environ.get("DEBUG")) or environ.get("DAGU_DEBUG", "") in ("1", "t", "T", "TRUE", "true", "True")


def is_completing() -> bool:
    """Tell whether a shell asks for completions instead of running a command."""
    environ = os.environ  # noqa: TID251 - the one door (docs/architecture.md)
    return "_ARGCOMPLETE" in environ


def peer_files(loaded: Loaded, purpose: Purpose) -> PeerFiles | Insecure:
    """Return the certificate files of a process, or `Insecure` (see `peers.choose_peer`).

    Raises:
        ConfigError: a part is missing or contradicts another.
    """
    return choose_peer(
        loaded.settings.peer,
        purpose,
        worker_id=loaded.settings.worker.id,
        pki_dir=loaded.home.pki_dir,
        exists=Path.is_file,
    )


def notify_socket() -> str:
    """Return where systemd wants to hear that this process is ready; empty when it does not."""
    environ = os.environ  # noqa: TID251 - the one door (docs/architecture.md)
    return environ.get("NOTIFY_SOCKET", "")


def process_environment() -> Mapping[str, str]:
    """Return what this process was started with, unfiltered: only for what a person names, such as a secret."""
    return os.environ  # noqa: TID251 - the one door (docs/architecture.md)


def child_environment() -> dict[str, str]:
    """Return what a process that executes runs for a server is started with: no configuration, so none of its secrets.

    Where things are it is told otherwise. What else the operator set stays: secrets of the provider `env` are there.
    """
    environ = os.environ  # noqa: TID251 - the one door (docs/architecture.md)
    return {
        name: value for name, value in environ.items() if name in _OURS_PASSED or not name.startswith(_NEVER_PREFIXES)
    }


def home_environment(loaded: Loaded) -> dict[str, str]:
    """Return by which variable a child finds the same home, whatever its current directory is."""
    return {"DAGU_HOME": str(loaded.home.config_dir)} if loaded.home.said in ("--dagu-home", "DAGU_HOME") else {}


def host_environment(loaded: Loaded, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what steps may see of this process's environment: an allow-list, never a configuration variable."""
    environ = os.environ if environ is None else environ  # noqa: TID251 - the one door (docs/architecture.md)
    settings = loaded.settings
    names = _STEP_NAMES | set(settings.core.env_passthrough)
    prefixes = (*_STEP_PREFIXES, *settings.core.env_passthrough_prefixes)
    passed = {
        name: value
        for name, value in environ.items()
        if name in _OURS_PASSED
        or ((name in names or name.startswith(prefixes)) and not name.startswith(_NEVER_PREFIXES))
    }
    if settings.core.tz:
        passed["TZ"] = settings.core.tz
    if settings.core.default_shell:
        passed["SHELL"] = settings.core.default_shell
    return passed | home_environment(loaded)


def _parse(args: argparse.Namespace, environ: Mapping[str, str], home: Home) -> Loaded:
    """Do everything but what depends on the host."""
    declared = all_settings()
    typed, typed_sources = _typed_flags(args, declared)
    variables, variable_sources, warnings = _variables(environ, declared)
    path, written = _document(args, environ, home, declared)
    file_values: dict[str, Raw] = {key: found.value for key, found in written.found.items()}
    sources = (
        dict.fromkeys(declared, "default")
        | {key: f"{path}:{found.line}" for key, found in written.found.items()}
        | variable_sources
        | typed_sources
    )
    settings = _read(file_values, variables, typed, sources)
    return Loaded(
        settings=settings, sources=sources, warnings=(*written.warnings, *warnings), home=home, config_file=path
    )


def _typed_flags(args: argparse.Namespace, declared: Mapping[str, Setting]) -> tuple[dict[str, Raw], dict[str, str]]:
    given = {key: value for key in declared if (value := vars(args).get(key)) is not None}
    return given, {key: f"flag {declared[key].flag}" for key in given}


def _variables(
    environ: Mapping[str, str], declared: Mapping[str, Setting]
) -> tuple[dict[str, Raw], dict[str, str], list[str]]:
    given: dict[str, Raw] = {}
    sources: dict[str, str] = {}
    for key, item in declared.items():
        name = next((name for name in item.env if environ.get(name)), None)
        if name is not None:
            # Plain DEBUG is anybody's; whatever it holds, it only asks for more log.
            given[key] = "true" if name == "DEBUG" else environ[name]
            sources[key] = f"variable {name}"
        elif item.is_secret and (
            file := next((f"{word}_FILE" for word in item.env if environ.get(f"{word}_FILE")), "")
        ):
            given[key] = _secret_file(file, Path(environ[file]))
            sources[key] = f"variable {file}"
    names = {name for item in declared.values() for name in item.env}
    names |= {f"{name}_FILE" for item in declared.values() if item.is_secret for name in item.env}
    warnings, unused = [], []
    for name in sorted(environ):
        if name.startswith("DAGU_") and name not in names | _OTHER_VARIABLES and environ[name]:
            if known.is_unused_variable(name):
                unused.append(name)
            elif close := _close(name, names):
                warnings.append(f"the variable {name} means nothing here (did you mean {close}?)")
    if unused:
        warnings.append(f"variables known to Dagu and not used by this version: {', '.join(unused)}")
    return given, sources, warnings


def _close(name: str, names: Collection[str]) -> str:
    import difflib  # only an environment with a mistake pays for it

    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.9)), "")


def _secret_file(variable: str, path: Path) -> str:
    """Read a secret from the file that a variable names.

    Raises:
        ConfigError: it cannot be read, or is not one line of text.
    """
    try:
        with path.open("rb") as file:
            return file.read(4096).decode().strip()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the secret of {variable} cannot be read", why=f"{path}: {why}") from problem


def _document(
    args: argparse.Namespace, environ: Mapping[str, str], home: Home, declared: Mapping[str, Setting]
) -> tuple[Path | None, document.Document]:
    said = getattr(args, "config", None) or environ.get("DAGU_CONFIG")
    path = Path(said) if said else home.config_file
    if not said and not path.exists():
        return None, document.Document(found={}, warnings=())
    return path, document.read_document(path, declared.keys())


def _read(
    file_values: Mapping[str, Raw], variables: Mapping[str, Raw], typed: Mapping[str, Raw], sources: Mapping[str, str]
) -> Settings:
    try:
        return reader.read((typed, variables, file_values))
    except reader.InvalidValues as problem:
        raise ConfigError(
            "the configuration has values that cannot be used",
            why="; ".join(f"invalid {key}: {reason} ({sources.get(key, '?')})" for key, reason in problem.problems),
            fix="correct them; docs/reference/configuration.md says what each key takes",
        ) from problem


def _with_host_defaults(
    settings: Settings, home: Home, environ: Mapping[str, str], sources: Mapping[str, str]
) -> Settings:
    """Fill in what depends on the host: paths, names, and whom operator commands dial."""
    name = socket.gethostname()
    coordinator = settings.coordinator
    if not coordinator.advertise:
        coordinator = coordinator.replaced(advertise=(name,))
    if not coordinator.id:
        coordinator = coordinator.replaced(id=f"{name}@{coordinator.port}")
    worker = settings.worker
    if not worker.id:
        worker = worker.replaced(id=f"{name}@{os.getpid()}")
    ui = settings.ui
    if not ui.log_encoding_charset:
        ui = ui.replaced(log_encoding_charset=_host_charset(environ))
    client = settings.client
    if not client.coordinators:
        local = Address(_local_name(settings, is_advertised=bool(settings.coordinator.advertise)), coordinator.port)
        client = client.replaced(coordinators=worker.coordinators or (local,))

    def place(key: str, value: Path, default: Path) -> Path:
        if sources[key] == "default":
            return default
        try:
            return Path.cwd() / expand(str(value), environ)
        except ValueError as problem:
            raise ConfigError(f"{key} cannot be used", why=f"{sources[key]}: {problem}") from problem

    def optional(key: str, value: Path | None) -> Path | None:
        return None if value is None else place(key, value, value)

    data = place("paths.data_dir", settings.paths.data_dir, home.data_dir)
    logs = place("paths.log_dir", settings.paths.log_dir, home.log_dir)
    admin = place("paths.admin_logs_dir", settings.paths.admin_logs_dir, logs / "admin")
    defaults = {
        "dags_dir": home.config_dir / "dags",
        "data_dir": data,
        "log_dir": logs,
        "artifact_dir": data / "artifacts",
        "dag_run_work_dir": data / "dag-run-work",
        "secrets_dir": data / "secrets",
        "dag_runs_dir": data / "dag-runs",
        "queue_dir": data / "queue",
        "proc_dir": data / "proc",
        "contexts_dir": data / "contexts",
        "dag_state_dir": data / "dag-state",
        "service_registry_dir": data / "service-registry",
        "suspend_flags_dir": home.data_dir.parent / "suspend",
        "admin_logs_dir": admin,
        "event_store_dir": admin / "events",
        "users_dir": data / "users",
        "api_keys_dir": data / "apikeys",
        "base_config": home.config_dir / "base.yaml",
    }
    paths = settings.paths.replaced(
        **{field: place(f"paths.{field}", getattr(settings.paths, field), path) for field, path in defaults.items()},
    )
    peer = settings.peer.replaced(
        cert_file=optional("peer.cert_file", settings.peer.cert_file),
        key_file=optional("peer.key_file", settings.peer.key_file),
        client_ca_file=optional("peer.client_ca_file", settings.peer.client_ca_file),
    )
    pki = settings.pki.replaced(passphrase_file=optional("pki.passphrase_file", settings.pki.passphrase_file))
    tls = settings.tls.replaced(
        cert_file=optional("tls.cert_file", settings.tls.cert_file),
        key_file=optional("tls.key_file", settings.tls.key_file),
        ca_file=optional("tls.ca_file", settings.tls.ca_file),
    )
    return settings.replaced(
        coordinator=coordinator, worker=worker, client=client, paths=paths, peer=peer, pki=pki, tls=tls, ui=ui
    )


def _host_charset(environ: Mapping[str, str]) -> str:
    """Return the character encoding of the locale; utf-8 where it names none that a log can have."""
    said = (environ.get("LC_ALL") or environ.get("LANG") or "").partition(".")[2].partition("@")[0]
    try:
        return charset(said) or "utf-8"
    except ValueError:
        return "utf-8"


def _local_name(settings: Settings, *, is_advertised: bool) -> str:
    """Return the name by which commands on the coordinator's own host dial it.

    A name that was advertised on purpose; else a particular address that it listens on; else localhost, which every
    coordinator certificate of `pki init` covers.
    """
    if is_advertised:
        return settings.coordinator.advertise[0]
    host = settings.coordinator.host
    return "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost") else host  # noqa: S104 - compared


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    """Check what no single value shows."""
    if settings.core.tz:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(settings.core.tz)
        except (ZoneInfoNotFoundError, ValueError, OSError) as problem:
            raise ConfigError(
                f"tz ({sources['tz']}) names no time zone",
                why=f"{settings.core.tz!r} is unknown on this host",
                fix="use an IANA name such as Europe/Berlin; on a minimal system install tzdata",
            ) from problem
    if settings.proc.heartbeat_interval >= settings.proc.stale_threshold:
        raise ConfigError(
            "proc.heartbeat_interval is not less than proc.stale_threshold",
            why="other hosts would take a run for gone between two of its signs of life",
            fix="raise proc.stale_threshold, best to several times the interval",
        )
    coordinator = settings.coordinator
    if coordinator.health_port and coordinator.health_port == coordinator.port:
        raise ConfigError(
            f"coordinator.port and coordinator.health_port are both {coordinator.port}",
            fix="give them different ports, or set coordinator.health_port to 0 to turn it off",
        )

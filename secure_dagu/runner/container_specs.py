"""What an author says about a container, resolved, as the Docker Engine API wants it (workflow language, section 4.7).

No input or output: text in, values out.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from secure_dagu.dag import durations, formats
from secure_dagu.dag.model import EnvEntry, Resources
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.files import path_below

KEEP_ALIVE = ("/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done")
"""What a container does that is only there for commands to run in."""
LABEL = "secure-dagu.run"
"""Label of every container that we make: `docker ps --filter label=secure-dagu.run` finds what was left behind."""
DOCKER_HUB = ("docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io")
_VOLUME = re.compile(r"(?P<source>.+?):(?P<target>/[^:]*)(?::(?P<mode>[^:]*))?")
_PORT = re.compile(r"(?:(?:(?P<ip>[\d.]+|\[[\da-fA-F:]+\]):)?(?P<host>\d*):)?(?P<port>\d+)(?:/(?P<kind>tcp|udp|sctp))?")
_PULL = {"true": "always", "false": "never"}


class Container(Struct, frozen=True, kw_only=True):
    """A container to make, or with `running` one to enter."""

    running: str = ""
    """Name of a container that is there already."""
    image: str = ""
    name: str = ""
    pull: str = "missing"
    platform: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    """What is posted to make it."""
    exec_body: Mapping[str, Any] = field(default_factory=dict)
    """What each command in it is posted with."""
    shell: tuple[str, ...] = ()
    """Shell of its commands; empty: `sh -e`."""
    wait_for: str = "running"
    log_pattern: str = ""
    is_kept: bool = False


def read(value: Any, scope: Scope, *, root: Path, run_id: str, resources: Resources, is_lasting: bool) -> Container:
    """Read a `container`, with references resolved.

    Args:
        scope: what its fields may see, its own `env` among it.
        root: the DAG's working directory: relative sources of volumes are below it.
        is_lasting: commands will run in it, so that it must stay by itself.

    Raises:
        DefinitionError: a value cannot be used.
    """
    if not isinstance(value, Mapping):
        return Container(running=resolve(formats.as_text(value), scope, FieldMode.FIELD))
    volumes = [_volume(formats.as_text(item), scope, root) for item in value.get("volumes") or ()]
    rest = {key: item for key, item in value.items() if key not in ("volumes", "env")}
    options = Options(resolve_tree(rest, scope, FieldMode.FIELD), name="container")
    entering = _present(User=options.text("user"), WorkingDir=options.text("working_dir"))
    if "exec" in options:
        return Container(running=options.needed("exec"), exec_body=entering, shell=_shell(options))
    body: dict[str, Any] = {"Image": options.needed("image"), "Labels": {LABEL: run_id}, **entering}
    startup = options.choice("startup", ("keepalive", "entrypoint", "command"), "keepalive")
    if startup == "command":
        body["Cmd"] = options.texts("command")
    elif startup == "keepalive" and is_lasting:
        body |= {"Entrypoint": list(KEEP_ALIVE), "Cmd": []}
    env = {entry.name: scope.env.find(entry.name, host=False) or "" for entry in env_entries(value.get("env"))}
    if env:
        body["Env"] = [f"{name}={text}" for name, text in env.items()]
    if check := options.mapping("healthcheck"):
        body["Healthcheck"] = _healthcheck(check)
    body["HostConfig"] = {
        "Init": True,
        **_present(Binds=volumes, NetworkMode=options.text("network")),
        **_present(NanoCpus=resources.cpu_millicores * 1_000_000, Memory=resources.memory_bytes),
        **({"RestartPolicy": {"Name": options.text("restart_policy")}} if options.text("restart_policy") else {}),
    }
    exposed, bound = _ports(options.texts("ports"))
    if exposed:
        body["ExposedPorts"], body["HostConfig"]["PortBindings"] = exposed, bound
    return Container(
        image=options.needed("image"),
        name=options.text("name"),
        pull=pull_policy(options, "pull_policy"),
        platform=options.text("platform"),
        body=body,
        shell=_shell(options),
        wait_for=options.choice("wait_for", ("running", "healthy"), "running"),
        log_pattern=options.text("log_pattern"),
        is_kept=options.boolean("keep_container"),
    )


def read_action(inputs: Mapping[str, Any], scope: Scope, *, root: Path, run_id: str, env: Mapping[str, str],
                resources: Resources) -> Container:  # fmt: skip
    """Read `with` of `docker.run`: an image to run, or a running container to enter.

    `container`, `host`, `network` and `exec` are objects of the API, whose fields go before what we say ourselves.
    """
    volumes = [_volume(formats.as_text(item), scope, root) for item in inputs.get("volumes") or ()]
    rest = {key: item for key, item in inputs.items() if key != "volumes"}
    options = Options(resolve_tree(rest, scope, FieldMode.FIELD), name="with")
    image, name = options.text("image"), options.text("container_name")
    command = _words(options)
    entering = _present(WorkingDir=options.text("working_dir"), Env=[f"{key}={text}" for key, text in env.items()])
    if not image:
        if not name:
            raise DefinitionError("with.image or with.container_name is needed")
        if not command:
            raise DefinitionError("with.command is needed", why="a running container is entered to run something")
        body = merged({"Cmd": command, **entering}, options.any("exec"))
        return Container(running=name, exec_body=body)
    body = merged({"Image": image, "Labels": {LABEL: run_id}, **entering, **_present(Cmd=command)},
                  options.any("container"))  # fmt: skip
    limits = _present(NanoCpus=resources.cpu_millicores * 1_000_000, Memory=resources.memory_bytes)
    body["HostConfig"] = merged({**_present(Binds=volumes), **limits}, options.any("host"))
    if options.any("network"):
        body["NetworkingConfig"] = options.any("network")
    return Container(
        image=image,
        name=name,
        pull=pull_policy(options, "pull"),
        platform=options.text("platform"),
        body=body,
        is_kept=not options.boolean("auto_remove", default=True),
    )


def merged(ours: Mapping[str, Any], authored: Any) -> dict[str, Any]:
    """Return our fields with the author's over them; the API does not tell upper from lower case."""
    theirs = authored if isinstance(authored, Mapping) else {}
    taken = {str(key).lower() for key in theirs}
    return {**{key: value for key, value in ours.items() if key.lower() not in taken}, **theirs}


def env_entries(value: Any) -> list[EnvEntry]:
    """Return the entries of an authored `env`, whose shape the loader has checked."""
    pairs: list[tuple[str, Any]] = []
    for item in [value] if isinstance(value, Mapping) else value or ():
        if isinstance(item, Mapping):
            pairs += item.items()
        else:
            name, _, text = formats.as_text(item).partition("=")
            pairs.append((name, text))
    return [EnvEntry(name=str(name), value="" if text is None else formats.as_text(text)) for name, text in pairs]


def pull_policy(options: Options, key: str) -> str:
    """Return when an image is pulled; true is always, false never."""
    text = options.text(key, "missing").lower()
    text = _PULL.get(text, text)
    if text not in ("always", "missing", "never", "fallback"):
        raise DefinitionError(f"{key} cannot be used", why="expected always, missing, never or fallback")
    return text


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _words(options: Options) -> list[str]:
    if isinstance(options.any("command"), list | tuple):
        return options.texts("command")
    try:
        return shlex.split(options.text("command"))
    except ValueError as error:
        raise DefinitionError("with.command cannot be read", why=str(error)) from None


def _shell(options: Options) -> tuple[str, ...]:
    """Return the shell of commands, its flag added."""
    words = options.texts("shell")
    if len(words) == 1:
        words = words[0].split()
    return (*words, *(() if words[-1].startswith("-") and words[-1].endswith("c") else ("-c",))) if words else ()


def _volume(text: str, scope: Scope, root: Path) -> str:
    """Return a bind or a named volume. `$VAR` of this host counts in the source alone."""
    found = _VOLUME.fullmatch(text) or _VOLUME.fullmatch(text := resolve(text, scope, FieldMode.FIELD))
    if found is None or found["mode"] not in (None, "ro", "rw"):
        raise DefinitionError(
            f"the volume {text[:100]!r} cannot be used", why="expected source:/target or …:ro or …:rw"
        )
    source = resolve(found["source"], scope, FieldMode.HOST)
    if source.startswith(("/", ".", "~")) or "/" in source:
        source = str(path_below(root, source).absolute())
    if ":" in source:
        raise DefinitionError(f"the volume {text[:100]!r} cannot be used", why="its source has a colon")
    return ":".join(
        [source, resolve(found["target"], scope, FieldMode.FIELD), *([found["mode"]] if found["mode"] else [])]
    )


def _ports(texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    exposed: dict[str, Any] = {}
    bound: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        found = _PORT.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise DefinitionError(
                f"the port {text[:50]!r} cannot be used", why="expected 80, 8080:80 or IP:8080:80/tcp"
            )
        port = f"{found['port']}/{found['kind'] or 'tcp'}"
        exposed[port] = {}
        binding = {"HostIp": (found["ip"] or "").strip("[]"), "HostPort": found["host"] or ""}
        bound.setdefault(port, []).append(binding)
    return exposed, bound


def _healthcheck(options: Options) -> dict[str, Any]:
    test = options.any("test")
    found: dict[str, Any] = {"Test": list(test) if isinstance(test, list) else ["CMD-SHELL", options.needed("test")]}
    for key, name in (("interval", "Interval"), ("timeout", "Timeout"), ("start_period", "StartPeriod")):
        if key in options:
            found[name] = int(durations.seconds(options.any(key), field=f"container.healthcheck.{key}") * 1e9)
    if "retries" in options:
        found["Retries"] = options.integer("retries")
    return found


# ── registries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def registry_of(image: str) -> str:
    """Return the host of the registry that an image is pulled from."""
    first, found, _ = image.partition("/")
    return first if found and ("." in first or ":" in first or first == "localhost") else "docker.io"


def credentials(image: str, auths: Any, fallback: str) -> Mapping[str, str] | None:
    """Return what to tell the daemon about an image's registry; None: nothing is known.

    Args:
        auths: resolved `registry_auths`: JSON text, or host → text or map.
        fallback: `DOCKER_AUTH_CONFIG`, counted where `auths` says nothing.
    """
    host = registry_of(image)
    names = DOCKER_HUB if host in DOCKER_HUB else (host, f"https://{host}")
    for known in (_auths(auths, "registry_auths"), _auths(fallback, "DOCKER_AUTH_CONFIG")):
        for name in names:
            if name in known:
                return _credential(known[name], host)
    return None


def _auths(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DefinitionError(f"{name} cannot be read", why="it is not JSON") from None
    if not isinstance(value, Mapping):
        return {}
    inner = value.get("auths", value)
    return inner if isinstance(inner, Mapping) else {}


def _credential(entry: Any, host: str) -> Mapping[str, str]:
    if isinstance(entry, str) and entry.lstrip().startswith("{"):
        entry = _auths(entry, f"registry_auths.{host}")
    if isinstance(entry, str):
        entry = {"auth": entry}
    auth = formats.as_text(entry.get("auth") or "")
    username, password = (formats.as_text(entry.get(key) or "") for key in ("username", "password"))
    if auth:
        try:
            username, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except ValueError:
            raise DefinitionError(f"the auth of the registry {host} cannot be read", why="it is not base64") from None
    return {"username": username, "password": password, "serveraddress": host}

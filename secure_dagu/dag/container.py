"""Read `container` of a root or a step, and `registry_auths` (workflow language, section 4.7). Pure.

The loader checks shapes and keeps what the author wrote: references are resolved when the container is needed.
"""

from __future__ import annotations

import re
from typing import Any

from secure_dagu.dag import nodes, parts, reading, schema
from secure_dagu.dag.nodes import Mapping, Node, Scalar
from secure_dagu.dag.reading import Report

PULL_POLICIES = ("always", "missing", "never", "fallback")
_CHOICES = {
    "startup": ("keepalive", "entrypoint", "command"),
    "wait_for": ("running", "healthy"),
    "restart_policy": ("no", "always", "unless-stopped"),
}
_AUTH = schema.Key("text")


def read_container(report: Report, node: Node | None, path: str) -> Any:
    """Return the name of a running container, or a map with exactly one of `exec` and `image`; None: not set."""
    if node is None:
        return None
    if isinstance(node, Scalar):
        name = nodes.scalar_text(node).strip()
        if not name:
            report.problem(node, path, "must name a running container")
        return name
    entry = reading.table(report, node, path, schema.CONTAINER)
    if entry is None:
        return None
    kind = "exec" if entry.get("image") is None else "image"
    if (entry.get("exec") is None) == (entry.get("image") is None):
        report.problem(entry, path, "exactly one of exec and image is needed")
    elif not reading.text(report, entry.get(kind), f"{path}.{kind}").strip():
        report.problem(entry.entries[kind], f"{path}.{kind}", "must not be empty")
    elif entry.get("exec") is not None:
        for key in entry.entries:
            if key in schema.CONTAINER and key not in schema.CONTAINER_EXEC:
                report.problem(entry.keys[key], f"{path}.{key}", "only with image: exec enters a running container")
    reading.fits(report, entry, path, schema.CONTAINER)
    parts.env(report, entry.get("env"), f"{path}.env")
    _choices(report, entry, path)
    return nodes.plain_value(entry)


def _choices(report: Report, entry: Mapping, path: str) -> None:
    pull = entry.get("pull_policy")
    if pull is not None and not (isinstance(pull, Scalar) and isinstance(nodes.scalar_value(pull), bool)):
        reading.choice(report, pull, f"{path}.pull_policy", PULL_POLICIES, "missing")
    for key, allowed in _CHOICES.items():
        if entry.get(key) is not None:
            reading.choice(report, entry.get(key), f"{path}.{key}", allowed, allowed[0])
    if entry.get("command") is not None and reading.text(report, entry.get("startup"), path) != "command":
        report.problem(entry.keys["command"], f"{path}.command", "needs startup: command")
    pattern = reading.text(report, entry.get("log_pattern"), f"{path}.log_pattern")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        report.problem(entry.entries["log_pattern"], f"{path}.log_pattern", "this is not a valid regexp")
    check = reading.table(report, entry.get("healthcheck"), f"{path}.healthcheck", schema.HEALTHCHECK)
    if check is None:
        return
    if check.get("test") is None:
        report.problem(check, f"{path}.healthcheck", "test is required")
    for key in ("interval", "timeout", "start_period"):
        parts.check_duration(report, check.get(key), f"{path}.healthcheck.{key}")


def read_registry_auths(report: Report, node: Node | None, path: str) -> Any:
    """Return one text (JSON or a reference), or host → text or {username, password} or {auth}."""
    if node is None or isinstance(node, Scalar):
        return None if node is None else nodes.scalar_text(node)
    if not isinstance(node, Mapping):
        report.problem(node, path, f"expected text or a map, found {reading.kind_of(node)}")
        return None
    for host, entry in node.entries.items():
        if not isinstance(entry, Scalar):
            table = {"username": _AUTH, "password": _AUTH, "auth": _AUTH}
            reading.table(report, entry, f"{path}.{host[:80]}", table)
    return nodes.plain_value(node)

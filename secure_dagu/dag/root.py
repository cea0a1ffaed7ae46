"""Read the settings of a document that are about the whole run: times, retention, mail, limits, defaults. Pure."""

from __future__ import annotations

import re
from typing import Any

from secure_dagu.dag import actions, declarations, nodes, parts, reading, schema
from secure_dagu.dag.model import Artifacts, DagRetry, Resources, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar
from secure_dagu.dag.reading import Report

_TEXTS = ("group", "description", "working_dir", "queue", "log_dir")
_SECONDS = {
    "timeout_sec": "timeout_s",
    "delay_sec": "delay_s",
    "restart_wait_sec": "restart_wait_s",
    "max_clean_up_time_sec": "max_clean_up_s",
}
_NUMBERS = {
    "max_active_steps": ("max_active_steps", 0),
    "max_output_size": ("max_output_bytes", 0),
    "hist_retention_days": ("retention_days", 0),
    "hist_retention_runs": ("retention_runs", 1),
}
_MAILS = ("error_mail", "info_mail", "wait_mail")
_QUEUE = r"(?!\.)[A-Za-z0-9_.-]{1,64}"
_PORT = r"\s*\d{1,5}\s*|(?s:.*\$.*)"
_DAYS = r"(?=.)(?:\d{1,6}d)?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))*"  # these are compiled when a file first needs them
_CPU = r"\d{1,6}(?:\.\d{1,6})?|\d{1,9}m"
_MEMORY = r"(?i:(\d{1,18}(?:\.\d{1,6})?)([kmgtpe]i?)?b?)"
_POWERS = "kmgtpe"


def read_settings(report: Report, root: Mapping) -> dict[str, Any]:
    """Return the fields of `Dag` that are plain settings; absent ones keep the defaults of `Dag`."""
    settings: dict[str, Any] = {
        key: reading.text(report, root.get(key), key) for key in _TEXTS if root.get(key) is not None
    }
    if (node := root.get("queue")) is not None and settings["queue"] and not re.fullmatch(_QUEUE, settings["queue"]):
        report.problem(node, "queue", "this is no name of a queue: at most 64 letters, digits, _, - and .")
    for key, field in _SECONDS.items():
        if (node := root.get(key)) is not None:
            settings[field] = float(reading.integer(report, node, key))
    for key, (field, minimum) in _NUMBERS.items():
        if (node := root.get(key)) is not None:
            settings[field] = reading.integer(report, node, key, minimum=minimum)
    if not settings.get("retention_days", 1):
        del settings["retention_days"]  # 0 asks for the default: it must not delete every run
    if root.get("hist_retention_days") is not None and root.get("hist_retention_runs") is not None:
        report.problem(
            root.keys["hist_retention_runs"], "hist_retention_runs", "hist_retention_days and this exclude each other"
        )
    if (node := root.get("log_output")) is not None:
        word = reading.choice(report, node, "log_output", ("separate", "merged"), "separate")
        settings["merged_logs"] = word == "merged"
    if (node := root.get("max_active_runs")) is not None and reading.integer(report, node, "max_active_runs") != 1:
        report.warn(
            root.keys["max_active_runs"],
            "max_active_runs",
            "Deprecated DAG syntax: max_active_runs is deprecated; use `queue` with a named queue",
        )
    _scheduling(report, root, settings)
    _notification(report, root, settings)
    _places(report, root, settings)
    return settings


def _scheduling(report: Report, root: Mapping, settings: dict[str, Any]) -> None:
    if (node := root.get("schedule")) is not None:
        from secure_dagu.dag.schedule import read_schedule  # time zones cost more than most runs need

        settings["schedule"] = read_schedule(report, node, "schedule")
    if (node := root.get("skip_if_successful")) is not None:
        settings["skip_if_successful"] = reading.boolean(report, node, "skip_if_successful")
    if (node := root.get("overlap_policy")) is not None:
        settings["overlap_policy"] = reading.choice(report, node, "overlap_policy", ("skip", "all", "latest"), "skip")
    if (node := root.get("catchup_window")) is not None:
        settings["catchup_window"] = reading.text(report, node, "catchup_window")
        if not re.fullmatch(_DAYS, settings["catchup_window"]):
            report.problem(node, "catchup_window", "expected a duration such as 6h or 2d12h")
    if (node := root.get("retry_policy")) is not None:
        settings["retry"] = _retry(report, node, "retry_policy")


def _retry(report: Report, node: Node, path: str) -> DagRetry | None:
    entry = reading.table(report, node, path, schema.DAG_RETRY)
    if entry is None:
        return None
    if entry.get("limit") is None:
        report.problem(entry, path, "limit is required")
    return DagRetry(
        limit=_literal(report, entry.get("limit"), f"{path}.limit", 0, minimum=0),
        interval_s=float(_literal(report, entry.get("interval_sec"), f"{path}.interval_sec", 60, minimum=1)),
        backoff=parts.backoff(report, entry.get("backoff"), f"{path}.backoff"),
        max_interval_s=float(_literal(report, entry.get("max_interval_sec"), f"{path}.max_interval_sec", 3600)),
    )


def _literal(report: Report, node: Node | None, path: str, default: int, *, minimum: int = 1) -> int:
    """Read a whole number or its digits: references are not allowed here (section 1.4)."""
    if node is None:
        return default
    text = nodes.scalar_text(node).strip() if isinstance(node, Scalar) else ""
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < minimum:
        report.problem(node, path, f"expected a literal integer of at least {minimum}, without references")
        return default
    return int(text)


def _notification(report: Report, root: Mapping, settings: dict[str, Any]) -> None:
    entry = reading.table(report, root.get("mail_on"), "mail_on", schema.MAIL_ON)
    if entry is not None:
        settings["mail_on"] = {
            key: reading.boolean(report, entry.get(key), f"mail_on.{key}") for key in schema.MAIL_ON if entry.get(key)
        }
    mails: dict[str, Any] = {}
    for key in _MAILS:
        mail = reading.table(report, root.get(key), key, schema.MAIL)
        if mail is not None:
            reading.fits(report, mail, key, schema.MAIL)
            mails[key] = nodes.plain_value(mail)
    if mails:
        settings["mails"] = mails


_OAUTH_NEEDS = {
    "microsoft": ("tenant_id", "client_id", "client_secret"),
    "google_service_account": ("service_account_json",),
    "google_refresh": ("client_id", "client_secret", "refresh_token"),
}


def _check_smtp(report: Report, smtp: Mapping) -> None:
    oauth = reading.table(report, smtp.get("oauth"), "smtp.oauth", schema.OAUTH)
    if oauth is None:
        return
    reading.fits(report, oauth, "smtp.oauth", schema.OAUTH)
    if smtp.get("password") is not None:
        report.problem(smtp.keys["password"], "smtp.password", "oauth and password exclude each other")
    provider = reading.text(report, oauth.get("provider"), "smtp.oauth.provider")
    if provider not in _OAUTH_NEEDS:
        report.problem(oauth, "smtp.oauth.provider", f"expected one of {', '.join(_OAUTH_NEEDS)}")
    for key in _OAUTH_NEEDS.get(provider, ()):
        if oauth.get(key) is None:
            report.problem(oauth, "smtp.oauth", f"{provider} needs {key}")


def _places(report: Report, root: Mapping, settings: dict[str, Any]) -> None:
    """Read where work is done: containers, hosts, services, and how much of this one it may take."""
    if (node := root.get("container")) is not None:
        from secure_dagu.dag.container import read_container  # few workflows have one

        settings["container"] = read_container(report, node, "container")
        if root.get("ssh") is not None:
            report.problem(root.keys["ssh"], "ssh", "ssh and container exclude each other at the root")
    if (node := root.get("registry_auths")) is not None:
        from secure_dagu.dag.container import read_registry_auths

        settings["registry_auths"] = read_registry_auths(report, node, "registry_auths")
    defaults: dict[str, Any] = {}
    for key, table in (
        ("ssh", actions.SSH_KEYS),
        ("s3", actions.S3_KEYS),
        ("redis", actions.REDIS.keys),
        ("smtp", schema.SMTP),
    ):
        entry = reading.table(report, root.get(key), key, table)
        if entry is not None:
            reading.fits(report, entry, key, table)
            defaults[key] = nodes.plain_value(entry)
            port = entry.get("port")
            if isinstance(port, Scalar) and not re.fullmatch(_PORT, nodes.scalar_text(port)):
                report.problem(port, f"{key}.port", "expected the number of a port")
            if key == "smtp":
                _check_smtp(report, entry)
    if defaults:
        settings["step_defaults"] = defaults
    resources = reading.table(report, root.get("resources"), "resources", schema.RESOURCES)
    if resources is not None:
        settings["resources"] = _limits(report, resources.get("limits"), "resources.limits")


def _limits(report: Report, node: Node | None, path: str) -> Resources:
    entry = reading.table(report, node, path, schema.LIMITS)
    if entry is None:
        return Resources()
    return Resources(
        cpu_millicores=_cpu(report, entry.get("cpu"), f"{path}.cpu"),
        memory_bytes=_memory(report, entry.get("memory"), f"{path}.memory"),
    )


def _cpu(report: Report, node: Node | None, path: str) -> int:
    if node is None:
        return 0
    text = reading.text(report, node, path).strip()
    if not re.fullmatch(_CPU, text):
        report.problem(node, path, "expected cores such as 0.5, or millicores such as 500m")
        return 0
    millicores = int(text[:-1]) if text.endswith("m") else int(round(float(text) * 1000, 6))
    if millicores < 1:
        report.problem(node, path, "must be at least 0.001 cores")
    return millicores


def _memory(report: Report, node: Node | None, path: str) -> int:
    if node is None:
        return 0
    found = re.fullmatch(_MEMORY, reading.text(report, node, path).strip())
    if not found:
        report.problem(node, path, "expected bytes, or a number with k, M, G, T, P, E or Ki, Mi, Gi, …")
        return 0
    suffix = (found[2] or "").lower()
    factor: int = (1024 if suffix.endswith("i") else 1000) ** (_POWERS.index(suffix[0]) + 1) if suffix else 1
    size = int(float(found[1]) * factor) if "." in found[1] else int(found[1]) * factor
    if not 0 < size < 2**63:
        report.problem(node, path, "must be more than 0 and below 8 EiB")
        return 0
    return size


def read_artifacts(report: Report, root: Mapping, steps: tuple[Step, ...], *, named: bool) -> Artifacts:
    """Read `artifacts`; unset, they are enabled by use: an action, a stream, or the folder's name in the file."""
    entry = reading.table(report, root.get("artifacts"), "artifacts", schema.ARTIFACTS)
    enabled: bool | None = None
    folder = ""
    writes = any(step.stdout.artifact or step.stderr.artifact or step.kind.startswith("artifact.") for step in steps)
    if entry is not None:
        if entry.get("enabled") is not None:
            enabled = reading.boolean(report, entry.get("enabled"), "artifacts.enabled")
        folder = reading.text(report, entry.get("dir"), "artifacts.dir")
        if enabled is False and writes:
            report.problem(entry, "artifacts.enabled", "a step writes an artifact, so artifacts cannot be disabled")
    return Artifacts(enabled=writes or named if enabled is None else enabled, dir=folder)


def read_labels(report: Report, root: Mapping) -> tuple[str, ...]:
    """Read `labels`, or `tags` as it was called."""
    labels, tags = root.get("labels"), root.get("tags")
    if tags is not None:
        report.warn(root.keys["tags"], "tags", "Deprecated DAG syntax: tags is deprecated; use `labels`")
        if labels is not None:
            report.problem(root.keys["tags"], "tags", "tags is the old name of labels: only one of them")
    return declarations.read_labels(report, labels or tags, "labels")


def read_extra(report: Report, root: Mapping) -> dict[str, Any]:
    """Return what services and the UI look at, as plain values: `run_config`, `webhook`, `otel`."""
    extra: dict[str, Any] = {}
    for key, table in (("run_config", schema.RUN_CONFIG), ("webhook", schema.WEBHOOK), ("otel", schema.OTEL)):
        entry = reading.table(report, root.get(key), key, table)
        if entry is not None:
            reading.fits(report, entry, key, table)
            extra[key] = nodes.plain_value(entry)
    return extra

"""Keys and variables of Dagu that mean something else here, or nothing: a whole file of Dagu's can come along.

Old names are taken for the new ones. What this version does not use is accepted with a warning.
"""

from __future__ import annotations

_SECTIONS = """
secrets webhooks terminal git_sync license opencode remote_nodes
"""

_KEYS = """
proc.heartbeat_sync_interval
check_updates latest_status_today cache executable
audit.enabled audit.retention_days auth.oidc auth.proxy worker.postgres_pool
scheduler.heartbeat_interval scheduler.stale_threshold dag_discovery.symlinks
tunnel.tailscale.auth_key tunnel.tailscale.hostname tunnel.tailscale.state_dir tunnel.allowed_ips tunnel.allow_terminal
tunnel.rate_limiting
paths.alt_dags_dir
paths.executable paths.tools_dir paths.webhooks_dir paths.remote_nodes_dir paths.views_dir
paths.workspaces_dir paths.wiki_dir paths.docs_dir
"""

OLD_NAMES = {
    "dags": "paths.dags_dir",
    "permission_write_dags": "permissions.write_dags",
    "permission_run_dags": "permissions.run_dags",
    "api_base_url": "api_base_path",
} | {
    name: f"paths.{name}"
    for name in (
        "dags_dir", "log_dir", "data_dir", "artifact_dir", "suspend_flags_dir", "base_config", "admin_logs_dir",
        "event_store_dir",
    )
}  # fmt: skip
"""What a key was called once, at the top level → its name now. As in Dagu, the old one wins."""

UNUSED_SECTIONS = frozenset(_SECTIONS.split())
"""Top-level keys that are skipped with everything below them."""

UNUSED_KEYS = frozenset(_KEYS.split())


def is_unused(key: str) -> bool:
    """Tell whether Dagu knows the key (dotted, lower case) and this version does not act on it."""
    return key in UNUSED_KEYS or key.partition(".")[0] in UNUSED_SECTIONS


_IRREGULAR = {"git_sync": "GITSYNC"}
_VARIABLES = frozenset(
    "DAGU_" + _IRREGULAR.get(key, key.removeprefix("paths.").replace(".", "_").upper())
    for key in UNUSED_KEYS | UNUSED_SECTIONS
) - {"DAGU_EXECUTABLE"}  # every step of ours has it
_OTHERS = frozenset({"DAGU_ENCRYPTION_KEY"})


def is_unused_variable(name: str) -> bool:
    """Tell whether Dagu knows the variable and this version does not act on it."""
    return name in _VARIABLES | _OTHERS or any(name.startswith(f"{known}_") for known in _VARIABLES)

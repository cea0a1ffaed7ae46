"""Keys that Dagu knows and this version does not use: accepted with a warning, so that a whole file can come along."""

from __future__ import annotations

_SECTIONS = """
auth ui audit event_store sse scheduler queues proc monitoring tls ip_access permissions dag_discovery secrets webhooks
terminal git_sync tunnel license opencode remote_nodes
"""

_KEYS = """
host port base_path api_base_path api_base_url public_url headless cors_allowed_origins access_log_mode skip_examples
check_updates latest_status_today cache permission_write_dags permission_run_dags
coordinator.enabled worker.postgres_pool
paths.alt_dags_dir paths.admin_logs_dir paths.event_store_dir paths.dag_runs_dir paths.queue_dir paths.proc_dir
paths.service_registry_dir paths.suspend_flags_dir paths.users_dir paths.api_keys_dir paths.dag_state_dir
paths.executable paths.tools_dir paths.webhooks_dir paths.contexts_dir paths.remote_nodes_dir paths.views_dir
paths.workspaces_dir paths.wiki_dir paths.docs_dir
"""

UNUSED_SECTIONS = frozenset(_SECTIONS.split())
"""Top-level keys that are skipped with everything below them."""

UNUSED_KEYS = frozenset(_KEYS.split())


def is_unused(key: str) -> bool:
    """Tell whether Dagu knows the key (dotted, lower case) and this version does not act on it."""
    return key in UNUSED_KEYS or key.partition(".")[0] in UNUSED_SECTIONS

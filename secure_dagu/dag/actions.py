"""The builtin actions: what each may be told in `with`, and what it needs. Pure data.

The loader checks `with` against this table, unknown-key errors come from it, and so do the JSON Schema and the
reference page. What an action does is in `runner.executors`.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from secure_dagu.dag.tables import Table, keys


class Action(Struct, frozen=True):
    """One builtin action: the keys of its `with`, which of them must be there, and groups of which exactly one must."""

    keys: Table
    required: tuple[str, ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()


SSH_KEYS = keys("""
    user=text host=text ip=text port=text|int key=text password=text strict_host_key=bool known_host_file=text
    shell=text|list timeout=text|int bastion=map
    """)
S3_KEYS = keys("""
    region=text endpoint=text access_key_id=text secret_access_key=text session_token=text profile=text bucket=text
    force_path_style=bool disable_ssl=bool key=text source=text destination=text prefix=text content_type=text
    storage_class=text metadata=map tags=map max_keys=int recursive=bool delimiter=text output_format=text quiet=bool
    """)
_SQL = keys("""
    dsn=text query=text params=list|map timeout=int|number|text transaction=bool isolation_level=text output_format=text
    headers=bool null_string=text max_rows=int streaming=bool output_file=text max_open_conns=int max_idle_conns=int
    conn_max_lifetime=int|text conn_max_idle_time=int|text
    """)
_IMPORT = keys("dsn=text timeout=int|number|text import=map")
_REDIS = keys("""
    url=text host=text port=text|int username=text password=text db=int tls=bool tls_cert=text tls_key=text tls_ca=text
    tls_skip_verify=bool mode=text sentinel_master=text sentinel_addrs=list cluster_addrs=list max_retries=int
    timeout=int|number|text command=text key=text keys=list value=any values=list|map field=text fields=list|map
    ttl=int|text nx=bool xx=bool start=int|text stop=int|text score=int|number members=list min=any max=any
    with_scores=bool match=text count=int cursor=int member=any channel=text message=any pattern=text destination=text
    position=text pivot=any offset=int end=int index=int amount=int|number timestamp=int
    pipeline=list multi=bool script=text script_file=text script_keys=list script_args=list lock=text
    lock_timeout=int|number|text lock_retry=int lock_wait=int output_format=text null_value=text max_result_size=int
    """)
_ARCHIVE = keys("""
    source=text destination=text format=text compression_level=int password=text overwrite=bool preserve_paths=bool
    strip_components=int include=list exclude=list dry_run=bool verbose=bool follow_symlinks=bool verify_integrity=bool
    continue_on_error=bool
    """)
_DATA_INPUT = keys("data=any input=text has_header=bool headers=bool delimiter=text columns=list")
_CONTAINER = keys("""
    image=text container_name=text command=text|list pull=text|bool auto_remove=bool working_dir=text
    volumes=list platform=text container=map host=map network=map exec=map
    """)
_STATE = keys("key=text scope=text namespace=text")
_GIT_WORKTREE = keys("branch=text path=text force=bool delete_branch=bool force_delete_branch=bool")

ACTIONS: Mapping[str, Action] = {
    "exec": Action(keys("command=text args=list"), ("command",)),
    "noop": Action({}),
    "log.write": Action(keys("message=any"), ("message",)),
    "outputs.write": Action(keys("values=map"), ("values",)),
    "dag.run": Action(keys("dag=text params=text|list|map"), ("dag",)),
    "dag.enqueue": Action(keys("dag=text params=text|list|map queue=text"), ("dag",)),
    "router.route": Action(keys("value=any routes=map"), ("value", "routes")),
    "human.task": Action(keys("prompt=text form=map"), ("prompt",)),
    "http.request": Action(
        keys("""
            method=text url=text timeout=int|number|text headers=map query=map body=any form=map files=map silent=bool
            debug=bool format=text json=bool skip_tls_verify=bool output=text
            """),
        ("method", "url"),
    ),
    "wait.duration": Action(keys("duration=text"), ("duration",)),
    "wait.until": Action(keys("until=text"), ("until",)),
    "wait.file": Action(keys("path=text state=text poll_interval=text"), ("path",)),
    "wait.http": Action(
        keys("url=text method=text status=int|text headers=map body=any poll_interval=text request_timeout=text"),
        ("url",),
    ),
    "file.write": Action(
        keys("path=text content=any mode=text|int overwrite=bool create_dirs=bool atomic=bool dry_run=bool"), ("path",)
    ),
    "file.read": Action(keys("path=text format=text max_bytes=int"), ("path",)),
    "file.stat": Action(keys("path=text missing_ok=bool follow_symlinks=bool"), ("path",)),
    "file.copy": Action(
        keys("""
            source=text destination=text overwrite=bool create_dirs=bool recursive=bool follow_symlinks=bool
            dry_run=bool
            """),
        ("source", "destination"),
    ),
    "file.move": Action(
        keys("source=text destination=text overwrite=bool create_dirs=bool recursive=bool dry_run=bool"),
        ("source", "destination"),
    ),
    "file.delete": Action(keys("path=text recursive=bool missing_ok=bool dry_run=bool"), ("path",)),
    "file.mkdir": Action(keys("path=text mode=text|int dry_run=bool"), ("path",)),
    "file.list": Action(keys("path=text pattern=text recursive=bool include_dirs=bool"), ("path",)),
    "artifact.write": Action(keys("path=text content=any overwrite=bool atomic=bool mode=text|int"), ("path",)),
    "artifact.read": Action(keys("path=text format=text max_bytes=int"), ("path",)),
    "artifact.list": Action(keys("path=text pattern=text recursive=bool include_dirs=bool")),
    "state.get": Action({**_STATE, **keys("default=any required=bool")}, ("key",)),
    "state.set": Action({**_STATE, **keys("value=any expected_version=int create_only=bool")}, ("key", "value")),
    "state.diff": Action({**_STATE, **keys("value=any update=bool expected_version=int")}, ("key", "value")),
    "state.list": Action(keys("prefix=text limit=int include_values=bool scope=text namespace=text")),
    "state.delete": Action(_STATE, ("key",)),
    "jq.filter": Action(keys("filter=text data=any input=text raw=bool"), ("filter",), (("data", "input"),)),
    "data.convert": Action({**_DATA_INPUT, **keys("from=text to=text")}, ("from", "to"), (("data", "input"),)),
    "data.pick": Action(
        {**_DATA_INPUT, **keys("from=text select=text raw=bool to=text")}, ("from", "select"), (("data", "input"),)
    ),
    "template.render": Action(
        keys("template=text template_ref=text data=map output=text"), (), (("template", "template_ref"),)
    ),
    "sqlite.query": Action({**_SQL, **keys("file_lock=bool shared_memory=bool")}, ("dsn", "query")),
    "sqlite.import": Action({**_IMPORT, **keys("file_lock=bool shared_memory=bool")}, ("dsn", "import")),
    "postgres.query": Action({**_SQL, **keys("advisory_lock=text")}, ("dsn", "query")),
    "postgres.import": Action({**_IMPORT, **keys("advisory_lock=text")}, ("dsn", "import")),
    "s3.upload": Action(S3_KEYS),
    "s3.download": Action(S3_KEYS),
    "s3.list": Action(S3_KEYS),
    "s3.delete": Action(S3_KEYS),
    "ssh.run": Action({**SSH_KEYS, **keys("command=text|list")}, ("command",)),
    "sftp.upload": Action(
        {**SSH_KEYS, **keys("source=text destination=text direction=text")}, ("source", "destination")
    ),
    "sftp.download": Action(
        {**SSH_KEYS, **keys("source=text destination=text direction=text")}, ("source", "destination")
    ),
    "mail.send": Action(
        keys("from=text to=text|list subject=text message=text attachments=list"), ("from", "to", "subject", "message")
    ),
    "git.checkout": Action(
        keys("""
            repository=text path=text ref=text depth=int force=bool token=text username=text password=text
            ssh_key_path=text ssh_passphrase=text
            """),
        ("repository", "path"),
    ),
    "git.worktree.add": Action(keys("branch=text path=text create_branch=bool base=text")),
    "git.worktree.remove": Action(_GIT_WORKTREE),
    "archive.create": Action(_ARCHIVE, ("source",)),
    "archive.extract": Action(_ARCHIVE, ("source",)),
    "archive.list": Action(_ARCHIVE, ("source",)),
    "docker.run": Action(_CONTAINER),
    "container.run": Action(_CONTAINER),
}
"""What this version can do; `redis.<command>` as well (`action_named`)."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "wait.file.state": ("exists", "missing"),
    "file.read.format": ("raw", "json"),
    "artifact.read.format": ("raw", "json"),
    "data.convert.from": ("json", "yaml", "csv", "tsv", "text"),
    "data.convert.to": ("json", "yaml", "csv", "tsv", "text"),
    "data.pick.from": ("json", "yaml", "csv", "tsv", "text"),
    "data.pick.to": ("json", "yaml", "csv", "tsv", "text"),
    "http.request.format": ("json",),
    "sftp.upload.direction": ("upload", "download"),
    "sftp.download.direction": ("upload", "download"),
}
"""`<action>.<key>` → the words that it may be, unless it is a reference."""

REDIS = Action(_REDIS)
"""`with` of every `redis.<command>`."""

OUT_OF_SCOPE = frozenset("chat.completion harness.run k8s.run kubernetes.run".split())  # noqa: SIM905
"""Actions of the language that are not part of this edition."""


def action_named(name: str) -> Action | None:
    """Return a builtin action, None when there is none of that name."""
    if name.startswith("redis.") and name.removeprefix("redis.").replace("_", "").isalnum():
        return REDIS
    return ACTIONS.get(name)

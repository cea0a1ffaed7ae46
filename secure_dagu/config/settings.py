"""Every setting of this version, declared once: key, type, default, variable, flag, help.

The flags, the `DAGU_*` variables, the YAML file and docs/reference/configuration.md are made from these declarations.
A setting's key is `section.field`, or `section.` and its `path`; the fields of `Core` are top-level keys. Its variable
is `DAGU_` and the key in upper case with `_` for `.`, unless declared otherwise. `default_text` says a default that
depends on the host. A secret may also be in a file that the variable with `_FILE` behind its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NoReturn, Self, dataclass_transform, get_args, get_type_hints

from secure_dagu.config import values
from secure_dagu.config.values import Address, Parsed, Raw, shown

Bool = Annotated[bool, Parsed(values.boolean, "true|false")]
Text = Annotated[str, Parsed(values.text, "TEXT")]
Texts = Annotated[tuple[str, ...], Parsed(values.texts, "A,B,…")]
Host = Annotated[str, Parsed(values.host, "HOST")]
Hosts = Annotated[tuple[str, ...], Parsed(values.hosts, "HOST,…")]
Port = Annotated[int, Parsed(values.integer(minimum=0, maximum=65535), "PORT")]
Count = Annotated[int, Parsed(values.integer(minimum=1, maximum=100_000), "N")]
Shown = Annotated[int, Parsed(values.integer(minimum=1, maximum=1000), "N")]
ByteCount = Annotated[int, Parsed(values.integer(minimum=0, maximum=2**30), "N")]
CountOrNone = Annotated[int, Parsed(values.integer(minimum=0, maximum=1000), "N")]
Duration = Annotated[timedelta, Parsed(values.duration, "DURATION")]
PositiveDuration = Annotated[timedelta, Parsed(values.positive_duration, "DURATION")]
Addresses = Annotated[tuple[Address, ...], Parsed(values.addresses, "HOST:PORT,…")]
Labels = Annotated[Mapping[str, str], Parsed(values.labels, "K=V,…")]
File = Annotated[Path, Parsed(lambda raw: Path(values.text(raw)), "FILE")]
OptionalFile = Annotated[Path | None, Parsed(lambda raw: Path(values.text(raw)), "FILE")]
Folder = Annotated[Path, Parsed(lambda raw: Path(values.text(raw)), "DIR")]
Charset = Annotated[str, Parsed(values.charset, "NAME")]
Syslog = Annotated[str, Parsed(values.syslog, "HOST:PORT|/PATH")]
IdentityRules = Annotated[tuple[Any, ...], Parsed(values.identity_rules, "LIST")]
LogFormat = Annotated[str, Parsed(values.choice("text", "json"), "text|json")]
ExecutionMode = Annotated[str, Parsed(values.choice("local", "distributed"), "local|distributed")]
Metrics = Annotated[str, Parsed(values.choice("private", "public"), "private|public")]
MetricsAccess = Annotated[str, Parsed(values.choice("private", "token", "tls", "public"), "private|token|tls|public")]
PolicyMode = Annotated[str, Parsed(values.choice("enforce", "dry-run"), "enforce|dry-run")]
AllowDeny = Annotated[str, Parsed(values.choice("deny", "allow"), "deny|allow")]
AccessLog = Annotated[str, Parsed(values.choice("all", "non-public", "none"), "all|non-public|none")]
AuthMode = Annotated[str, Parsed(values.choice("builtin", "basic", "none"), "builtin|basic|none")]
SortField = Annotated[str, Parsed(values.choice("name", "nextRun"), "name|nextRun")]
SortOrder = Annotated[str, Parsed(values.choice("asc", "desc"), "asc|desc")]
UrlPath = Annotated[str, Parsed(values.url_path, "PATH")]
PublicUrl = Annotated[str, Parsed(values.public_url, "URL")]
Networks = Annotated[tuple[Any, ...], Parsed(values.networks, "IP|CIDR,…")]
NamedQueues = Annotated[tuple[values.NamedQueue, ...], Parsed(values.named_queues, "LIST")]
Secret = Annotated[values.Hidden | None, Parsed(values.hidden, "SECRET")]
TlsVersion = Annotated[str, Parsed(values.choice("1.3", "1.2"), "1.3|1.2")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a field says beside its type."""

    default: Any
    help: str
    env: tuple[str, ...] = ()
    flag: str = ""
    short: str = ""
    default_text: str = ""
    path: str = ""


def setting(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - the word that argparse uses for it too
    """Declare one setting; `more` are the other fields of `Declared`."""
    return Declared(default=default, help=help, **more)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Section:
    """Settings that belong together: given by keyword, else their defaults, and never changed.

    What `dataclass` would be for, but it writes and compiles eight functions for each class: together 15 ms of every
    start, also of `--help`, and 0.3 MiB of every service.
    """

    declared: ClassVar[Mapping[str, Declared]]

    def __init_subclass__(cls) -> None:
        cls.declared = {name: item for name, item in vars(cls).items() if isinstance(item, Declared)}
        for name, item in cls.declared.items():
            setattr(cls, name, item.default)

    def __init__(self, **given: Any) -> None:
        if unknown := given.keys() - type(self).__annotations__.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        vars(self).update(given)

    def replaced(self, **given: Any) -> Self:
        """Return a copy in which some are others."""
        return type(self)(**vars(self) | given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to {name!r}")


class Core(Section):
    """What concerns every process."""

    debug: Bool = setting(
        False, "Log why things happen, and show unexpected errors whole.", env=("DAGU_DEBUG", "DEBUG")
    )
    log_format: LogFormat = setting(
        "text",
        "Log lines on standard error: `time=… level=… msg=… key=value`, shorter on a terminal, or JSON of those names.",
    )
    tz: Text = setting("", "Time zone that steps see as TZ, as an IANA name.", default_text="the host's")
    default_shell: Text = setting("", "Shell that runs the commands of steps.", default_text="$SHELL, else sh")
    env_passthrough: Texts = setting((), "Names of variables of this process that steps see as well.")
    env_passthrough_prefixes: Texts = setting((), "Prefixes of such names. Configuration variables are never passed.")
    default_execution_mode: ExecutionMode = setting(
        "local", "Where a DAG without a selector runs if nothing else decides; dispatched tasks always go to workers."
    )
    host: Host = setting("127.0.0.1", "Address of the web server: UI and REST API.", flag="--host", short="-s")
    port: Port = setting(8080, "Its port.", flag="--port", short="-p")
    base_path: UrlPath = setting("", "Prefix of every URL, behind a reverse proxy that does not strip it.")
    api_base_path: UrlPath = setting(
        "/api/v1", "Where the REST API is below base_path.", env=("DAGU_API_BASE_PATH", "DAGU_API_BASE_URL")
    )
    public_url: PublicUrl = setting(
        "", "Under which URL people reach the web server: in links of mails, and an origin that may call it."
    )
    headless: Bool = setting(False, "Serve the REST API without the Web UI.")
    cors_allowed_origins: Texts = setting((), "Origins whose pages may call the REST API with credentials.")
    access_log_mode: AccessLog = setting(
        "none", "Which HTTP requests are logged; non-public leaves out health, login and public metrics."
    )
    skip_examples: Bool = setting(False, "Write no example DAGs and no base.yaml at the first start.")
    metrics: Metrics = setting(
        "private", "`public` is the short form of metrics_access public for every process.",
        env=("DAGU_SERVER_METRICS",),
    )  # fmt: skip
    metrics_per_dag: Bool = setting(
        False, "Tell DAGs apart in the metrics of runs: up to 200 of them have a label, the others share `_other`."
    )
    metrics_token_file: OptionalFile = setting(
        None, "Bearer token of /metrics, mode 0600, where metrics_access is token.", default_text="none"
    )
    health_cert_file: OptionalFile = setting(
        None, "Certificate of the health port where it speaks HTTPS, PEM; any server certificate will do.",
        default_text="a coordinator's own; a worker's is for clients only, so a worker needs one here",
    )  # fmt: skip
    health_key_file: OptionalFile = setting(None, "Its private key, PEM, mode 0600.", default_text="as above")


class Paths(Section):
    """Where things are. `~` and `${VAR}` are expanded, relative paths count from the current directory."""

    dags_dir: Folder = setting(
        Path(), "DAG definitions.", env=("DAGU_DAGS_DIR", "DAGU_DAGS"), flag="--dags", short="-d",
        default_text="<home>/dags",
    )  # fmt: skip
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
    dag_runs_dir: Folder = setting(
        Path(), "Records of the runs of this host.", env=("DAGU_DAG_RUNS_DIR",), default_text="{data_dir}/dag-runs"
    )
    queue_dir: Folder = setting(
        Path(), "Queues, one file an item.", env=("DAGU_QUEUE_DIR",), default_text="{data_dir}/queue"
    )
    proc_dir: Folder = setting(
        Path(), "Which runs this host executes now, one link each.", env=("DAGU_PROC_DIR",),
        default_text="{data_dir}/proc",
    )  # fmt: skip
    dag_state_dir: Folder = setting(
        Path(), "Values that runs of this host keep (`state.*`); a coordinator keeps those of dispatched runs.",
        env=("DAGU_DAG_STATE_DIR",), default_text="{data_dir}/dag-state",
    )  # fmt: skip
    service_registry_dir: Folder = setting(
        Path(), "Where coordinators and schedulers that share a folder find each other.",
        env=("DAGU_SERVICE_REGISTRY_DIR",), default_text="{data_dir}/service-registry",
    )  # fmt: skip
    suspend_flags_dir: Folder = setting(
        Path(), "Flags of suspended DAGs.", env=("DAGU_SUSPEND_FLAGS_DIR",), default_text="<home>/suspend"
    )
    admin_logs_dir: Folder = setting(
        Path(), "What the web server logs about runs.", env=("DAGU_ADMIN_LOG_DIR",), default_text="{log_dir}/admin"
    )
    event_store_dir: Folder = setting(
        Path(), "What runs did, one file an hour.", env=("DAGU_EVENT_STORE_DIR",),
        default_text="{admin_logs_dir}/events",
    )  # fmt: skip
    users_dir: Folder = setting(Path(), "Users.", env=("DAGU_USERS_DIR",), default_text="{data_dir}/users")
    api_keys_dir: Folder = setting(
        Path(), "API keys, as hashes.", env=("DAGU_API_KEYS_DIR",), default_text="{data_dir}/apikeys"
    )
    contexts_dir: Folder = setting(
        Path(), "Other servers by name, each with its API key, one private file for each.", env=("DAGU_CONTEXTS_DIR",),
        default_text="{data_dir}/contexts",
    )  # fmt: skip
    base_config: File = setting(
        Path(), "Defaults for all DAG definitions.", env=("DAGU_BASE_CONFIG",), default_text="<home>/base.yaml"
    )


class Coordinator(Section):
    """The coordinator."""

    enabled: Bool = setting(
        True, "Whether `start-all` runs a coordinator (it does if coordinator.host or .advertise is set), and whether "
        "anything is dispatched at all.",
    )  # fmt: skip
    host: Host = setting("127.0.0.1", "Address that it listens on.", flag="--coordinator.host", short="-H")
    port: Port = setting(50055, "Port that it listens on.", flag="--coordinator.port", short="-P")
    advertise: Hosts = setting(
        (), "Names under which workers dial it; the first is written into tasks. Its certificate must cover all.",
        flag="--coordinator.advertise", short="-A", default_text="the host's name",
    )  # fmt: skip
    id: Text = setting("", "Its id in tasks and logs.", flag="--coordinator.id", default_text="<host name>@<port>")
    health_host: Host = setting(
        "127.0.0.1", "Address of /health, /ready and /metrics.", flag="--coordinator.health-host"
    )
    health_port: Port = setting(
        8091, "Port of /health, /ready and /metrics; 0 turns them off.", flag="--coordinator.health-port"
    )
    metrics_access: MetricsAccess = setting(
        "private", "Who may read /metrics: private, whoever reaches the health address while it is a loopback one; "
        "token, who knows the token; tls, who has a certificate of role metrics or admin; public, everybody. "
        "With tls, and with token beyond loopback, the health port speaks HTTPS.",
        flag="--coordinator.metrics-access",
    )  # fmt: skip
    proxy_protocol_from: Networks = setting(
        (), "TCP forwarders that say by the PROXY protocol, version 2, for whom they forward; from them it is "
        "required, from nobody else it is taken.", flag="--coordinator.proxy-protocol-from", default_text="none",
    )  # fmt: skip
    shared_certificates: Texts = setting(
        (), "Names of worker certificates that several hosts share on purpose, such as a pool of pods; any other one "
        "that is in use from two addresses at once raises an alarm.", flag="--coordinator.shared-certificates",
        default_text="none",
    )  # fmt: skip
    keepalive: Duration = setting(
        timedelta(seconds=20), "How often it pings a connection over which nothing comes, at least 1s; keep it below "
        "the idle limit of whatever stands in between.", flag="--coordinator.keepalive",
    )  # fmt: skip
    task_wait: Duration = setting(
        timedelta(minutes=5), "How long a task waits while no live worker matches it; then its run fails.",
        flag="--coordinator.task-wait",
    )  # fmt: skip


class Worker(Section):
    """A worker."""

    coordinators: Addresses = setting((), "Coordinators to poll (required).", flag="--worker.coordinators")
    id: Text = setting(
        "", "Who it is: the name in its certificate, or that name, @ and anything.", flag="--worker.id", short="-w",
        default_text="<host name>@<pid>",
    )  # fmt: skip
    max_active_runs: Count = setting(100, "Runs at once, at least 1.", flag="--worker.max-active-runs", short="-m")
    labels: Labels = setting({}, "What tasks may select it by.", flag="--worker.labels", short="-l")
    health_host: Host = setting("127.0.0.1", "Address of /health, /ready and /metrics.", flag="--worker.health-host")
    health_port: Port = setting(
        8092, "Port of /health, /ready and /metrics; 0 turns them off.", flag="--worker.health-port"
    )
    metrics_access: MetricsAccess = setting(
        "private", "Who may read /metrics: private, whoever reaches the health address while it is a loopback one; "
        "token, who knows the token; tls, who has a certificate of role metrics or admin; public, everybody. "
        "With tls, and with token beyond loopback, the health port speaks HTTPS.",
        flag="--worker.metrics-access",
    )  # fmt: skip
    drain_timeout: Duration = setting(
        timedelta(minutes=5), "How long running work may go on after SIGTERM.", flag="--worker.drain-timeout"
    )
    orphan_timeout: Duration = setting(
        timedelta(minutes=3), "How long a run goes on while its coordinator cannot be reached.",
        flag="--worker.orphan-timeout",
    )  # fmt: skip


class Peer(Section):
    """The connection between coordinators and everybody who calls them."""

    insecure: Bool = setting(
        False, "No TLS: nobody is proven and everything can be read. Both ends must say it, and beyond this host each "
        "needs an exception (`secure-dagu exception grant plaintext`).", flag="--peer.insecure",
    )  # fmt: skip
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
    identity_rules: IdentityRules = setting(
        (), "Who holds a certificate of another CA: a list of rules (how-to, own CA). Without rules its one spiffe URI "
        "says it.", default_text="none",
    )  # fmt: skip
    min_tls_version: TlsVersion = setting(
        "1.3", "Oldest TLS version that is spoken; 1.2 needs an exception (`secure-dagu exception grant tls-1.2`).",
        flag="--peer.min-tls-version",
    )  # fmt: skip
    ungranted_labels: AllowDeny = setting(
        "deny", "On a coordinator: what becomes of ordinary labels that a worker claims and its certificate does not "
        "grant. Security labels always need a grant; allow needs an exception "
        "(`secure-dagu exception grant ungranted-labels`).", flag="--peer.ungranted-labels",
    )  # fmt: skip
    reload_interval: Duration = setting(
        timedelta(seconds=1), "How often the certificate, key, CA and CRL files are looked at for changes.",
        flag="--peer.reload-interval",
    )  # fmt: skip
    crl_file: OptionalFile = setting(
        None, "Revocation lists of the trusted CAs, PEM. Once one was in use, it may not vanish or get older.",
        flag="--peer.crl-file", default_text="a coordinator: ca.crl of the standard place, if it is there",
    )  # fmt: skip
    crl_grace: Duration = setting(
        timedelta(days=1), "How long after its next update a revocation list may stay in use; then nobody is admitted.",
        flag="--peer.crl-grace",
    )  # fmt: skip
    proxy: Secret = setting(
        None, "HTTP proxy, http://[user:password@]host:port, asked by CONNECT for the way to coordinators; the same "
        "TLS is spoken inside. Never asked for loopback.", env=("DAGU_PEER_PROXY", "HTTPS_PROXY", "https_proxy"),
        default_text="none",
    )  # fmt: skip
    no_proxy: Texts = setting(
        (), "Coordinators that are reached without it: names, suffixes, addresses, networks, or *.",
        env=("DAGU_PEER_NO_PROXY", "NO_PROXY", "no_proxy"),
    )  # fmt: skip
    max_retries: CountOrNone = setting(3, "How often a dispatch is tried again.")
    retry_interval: Duration = setting(timedelta(seconds=1), "First pause between such tries; it doubles up to 30s.")


class Policy(Section):
    """What a coordinator refuses beyond role and identity."""

    mode: PolicyMode = setting(
        "enforce", "dry-run only counts and logs what the rules on labels and tenants would refuse; it needs an "
        "exception (`secure-dagu exception grant policy-dry-run`). Roles and identities are always enforced.",
        flag="--policy.mode",
    )  # fmt: skip


class Client(Section):
    """Commands that an operator runs: dispatch, status, logs, artifacts, workers, cancel."""

    coordinators: Addresses = setting(
        (), "Coordinators that these commands dial.", flag="--coordinators",
        default_text="worker.coordinators, else coordinator.advertise or localhost with coordinator.port",
    )  # fmt: skip


class Audit(Section):
    """The coordinator's audit log, in {data_dir}/audit. It cannot be turned off."""

    syslog: Syslog = setting(
        "", "Where a copy of every record goes: a syslog server over TCP (RFC 5424, octet counting), or a local "
        "socket such as /dev/log.", flag="--audit.syslog",
    )  # fmt: skip
    verify_interval: PositiveDuration = setting(
        timedelta(hours=1), "How often a service verifies its audit log from the first record on, with a tenth of a "
        "core at most, and shows the head of the chain in its metrics.",
    )  # fmt: skip


class Pki(Section):
    """The CA on the coordinator's host, from which machines that join or renew get their certificates."""

    passphrase_file: OptionalFile = setting(
        None, "Passphrase of the CA's key, mode 0600.", flag="--pki.passphrase-file",
        default_text="the systemd credential ca-passphrase, where there is one",
    )  # fmt: skip
    pods_file: OptionalFile = setting(
        None, "Which pods of a Kubernetes cluster may join, and its public keys: JSON, which the chart's Job writes.",
        flag="--pki.pods-file",
    )  # fmt: skip


class Tls(Section):
    """HTTPS of the web server. Beyond loopback it is on by itself, with the certificate of the standard place."""

    cert_file: OptionalFile = setting(
        None, "Certificate, PEM; renewed files are taken over without a restart.", env=("DAGU_CERT_FILE",),
        default_text="beyond loopback: the coordinator's of the standard place",
    )  # fmt: skip
    key_file: OptionalFile = setting(
        None, "Its private key, PEM, mode 0600.", env=("DAGU_KEY_FILE",), default_text="as above"
    )
    ca_file: OptionalFile = setting(
        None, "CA of client certificates that may log in instead of a password, PEM.", env=("DAGU_TLS_CA_FILE",),
        default_text="ca.crt of the standard place where its certificate is used",
    )  # fmt: skip
    insecure: Bool = setting(
        False, "Serve plain HTTP beyond loopback, for a reverse proxy on an isolated network; needs an exception "
        "(`secure-dagu exception grant http-plaintext`).",
    )  # fmt: skip


class Auth(Section):
    """Who may use the web server."""

    mode: AuthMode = setting("builtin", "builtin: users and API keys; basic: one user; none: everybody is an admin.")
    basic_username: Text = setting("", "The one user of mode basic.", path="basic.username")
    basic_password: Secret = setting(None, "That user's password.", path="basic.password", default_text="none")
    token_secret: Secret = setting(
        None, "Key that signs login tokens.", env=("DAGU_AUTH_TOKEN_SECRET",), path="builtin.token.secret",
        default_text="made once, in {data_dir}/auth/token_secret",
    )  # fmt: skip
    token_ttl: PositiveDuration = setting(
        timedelta(hours=24), "How long a login lasts.", env=("DAGU_AUTH_TOKEN_TTL",), path="builtin.token.ttl"
    )
    initial_admin_username: Text = setting(
        "", "The first admin, made while there is no user.", path="builtin.initial_admin.username"
    )
    initial_admin_password: Secret = setting(
        None, "That admin's password, at least 8 characters.", path="builtin.initial_admin.password",
        default_text="none",
    )  # fmt: skip


class Permissions(Section):
    """What the web server does for anybody, whatever the role."""

    write_dags: Bool = setting(True, "Create, change and delete DAGs.")
    run_dags: Bool = setting(True, "Start, stop, retry, enqueue and suspend.")


class IpAccess(Section):
    """Which addresses may use the web server, health and metrics included."""

    allowed_ips: Networks = setting((), "Addresses and networks; none listed: all.")
    trusted_proxies: Networks = setting((), "Proxies whose X-Forwarded-For says who calls.")


class DagDiscovery(Section):
    """How the DAGs directory is read."""

    recursive: Bool = setting(False, "Also read directories below it.")


class Scheduler(Section):
    """The scheduler."""

    host: Host = setting(
        "127.0.0.1", "Address of its /health, /ready and /metrics; not of `start-all`, see scheduler.port.",
        flag="--scheduler.host",
    )  # fmt: skip
    port: Port = setting(
        8090, "Port of /health, /ready and /metrics of `scheduler`; 0 turns them off. `start-all` has no such port: "
        "there the web server answers for the scheduler, below /api/v1.", flag="--scheduler.port",
    )  # fmt: skip
    metrics_access: MetricsAccess = setting(
        "private", "Who may read /metrics, as coordinator.metrics_access.", flag="--scheduler.metrics-access"
    )
    lock_stale_threshold: Duration = setting(
        timedelta(seconds=30), "After which silence of the active scheduler another one takes over."
    )
    lock_retry_interval: Duration = setting(timedelta(seconds=5), "How often a standby looks.")
    zombie_detection_interval: Duration = setting(
        timedelta(seconds=45), "How often runs of this host whose process is gone are looked for; 0 turns it off."
    )
    failure_threshold: CountOrNone = setting(3, "Failed starts of a queued run until it fails with the reason.")
    retry_failure_window: Duration = setting(
        timedelta(hours=24), "How old a failed run may be for the automatic retry of its DAG; 0 turns it off."
    )
    drain_timeout: Duration = setting(
        timedelta(minutes=5), "How long runs that `start-all` executes may go on after SIGTERM."
    )


class Proc(Section):
    """Whether runs of a host still live, as other hosts on a shared folder see it; on one host the kernel says it."""

    heartbeat_interval: PositiveDuration = setting(
        timedelta(seconds=5), "How often a run says that it is being run; less than proc.stale_threshold."
    )
    stale_threshold: PositiveDuration = setting(
        timedelta(seconds=90), "After how much silence other hosts take a run of this one for gone."
    )


class Queues(Section):
    """Queues."""

    enabled: Bool = setting(True, "Whether runs can be enqueued.", env=("DAGU_QUEUE_ENABLED",))
    config: NamedQueues = setting(
        (), "Named queues: a list of maps with `name` and `max_concurrency`.", default_text="none"
    )


class Monitoring(Section):
    """Load of the web server's host, as the UI shows it; kept in memory."""

    interval: PositiveDuration = setting(
        timedelta(seconds=5), "How often it is sampled; never more than once a second."
    )
    retention: Duration = setting(timedelta(hours=24), "How long samples are kept.")


class EventStore(Section):
    """A log of what runs did, in paths.event_store_dir."""

    enabled: Bool = setting(True, "Whether it is written.")
    retention_days: CountOrNone = setting(1, "Days that it is kept; 0: for ever.")


class Sse(Section):
    """Live updates of the web server (server-sent events)."""

    max_topics_per_connection: Count = setting(20, "Topics of one stream.")
    max_clients: Count = setting(1000, "Open streams; more are answered 503.")
    heartbeat_interval: PositiveDuration = setting(
        timedelta(seconds=10), "How often a silent stream says that it lives."
    )
    write_buffer_size: ByteCount = setting(
        65536, "Bytes handed to one reader at once; what is newer replaces what still waits."
    )
    slow_client_timeout: Duration = setting(timedelta(seconds=30), "After which time such a reader is cut off.")


class Ui(Section):
    """How the Web UI looks."""

    navbar_title: Text = setting("secure-dagu", "Its title.", env=("DAGU_UI_NAVBAR_TITLE", "DAGU_NAVBAR_TITLE"))
    navbar_color: Text = setting(
        "", "Colour of its navigation, as CSS says it.", env=("DAGU_UI_NAVBAR_COLOR", "DAGU_NAVBAR_COLOR")
    )
    max_dashboard_page_limit: Shown = setting(100, "Runs that the overview's timeline shows, the newest, 1 to 1000.")
    log_encoding_charset: Charset = setting(
        "", "Character encoding of what steps write into their logs, as an IANA name; one that begins with ASCII.",
        default_text="that of LC_ALL or LANG, else utf-8",
    )  # fmt: skip
    dags_sort_field: SortField = setting("name", "First order of the list of workflows.", path="dags.sort_field")
    dags_sort_order: SortOrder = setting("asc", "Its direction.", path="dags.sort_order")


class Tunnel(Section):
    """Reach Web UI and REST API through the Tailscale of this host. It never carries the coordinator's port."""

    enabled: Bool = setting(False, "Open it.", env=("DAGU_TUNNEL", "DAGU_TUNNEL_ENABLED"), flag="--tunnel", short="-t")
    funnel: Bool = setting(
        False, "Reachable from the internet, not only from the tailnet.", path="tailscale.funnel",
        flag="--tunnel-funnel",
    )  # fmt: skip
    https: Bool = setting(
        True, "HTTPS with a certificate of the tailnet; false needs the tailnet to be trusted.",
        path="tailscale.https", flag="--tunnel-https",
    )  # fmt: skip


class Settings(Section):
    """All of them."""

    core: Core = Core()
    paths: Paths = Paths()
    coordinator: Coordinator = Coordinator()
    worker: Worker = Worker()
    peer: Peer = Peer()
    policy: Policy = Policy()
    client: Client = Client()
    audit: Audit = Audit()
    pki: Pki = Pki()
    tls: Tls = Tls()
    auth: Auth = Auth()
    permissions: Permissions = Permissions()
    ip_access: IpAccess = IpAccess()
    dag_discovery: DagDiscovery = DagDiscovery()
    scheduler: Scheduler = Scheduler()
    proc: Proc = Proc()
    queues: Queues = Queues()
    monitoring: Monitoring = Monitoring()
    event_store: EventStore = EventStore()
    sse: Sse = Sse()
    ui: Ui = Ui()
    tunnel: Tunnel = Tunnel()


SECTIONS: Mapping[str, type[Section]] = {
    "core": Core,
    "paths": Paths,
    "coordinator": Coordinator,
    "worker": Worker,
    "peer": Peer,
    "policy": Policy,
    "client": Client,
    "audit": Audit,
    "pki": Pki,
    "tls": Tls,
    "auth": Auth,
    "permissions": Permissions,
    "ip_access": IpAccess,
    "dag_discovery": DagDiscovery,
    "scheduler": Scheduler,
    "proc": Proc,
    "queues": Queues,
    "monitoring": Monitoring,
    "event_store": EventStore,
    "sse": Sse,
    "ui": Ui,
    "tunnel": Tunnel,
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
    is_secret: bool
    parse: Callable[[Raw], Any]
    """Raises ValueError with the reason."""


@cache  # --help asks for each command; it never changes
def all_settings() -> Mapping[str, Setting]:
    """Return every declaration by key, in the order of this file."""
    return MappingProxyType({item.key: item for section, cls in SECTIONS.items() for item in _of(section, cls)})


def _of(section: str, cls: type[Section]) -> Iterator[Setting]:
    hints = get_type_hints(cls, include_extras=True)
    for name, declared in cls.declared.items():
        kind, parsed = get_args(hints[name])[:2]
        key = name if section == "core" else f"{section}.{declared.path or name}"
        yield Setting(
            section=section,
            name=name,
            key=key,
            help=declared.help,
            word=parsed.word,
            env=declared.env or ("DAGU_" + key.upper().replace(".", "_"),),
            flag=declared.flag,
            short=declared.short,
            default=declared.default_text or shown(declared.default),
            is_bool=kind is bool,
            is_secret=parsed.parse is values.hidden,
            parse=parsed.parse,
        )

"""The controls that an assessor asks about, judged from what a process knows of itself. Pure.

A control has a fixed id, which is the label of the metric too, and names the requirements that its result is evidence
for. A result says how this process stands now; it is no statement that a requirement is met. What a process does not
have, such as the API of a coordinator, is not judged there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct


class Control(StrEnum):
    """The controls, in the order of a report."""

    PEER_MTLS = "peer_mtls"
    TLS_MIN_12 = "tls_min_12"
    CERT_VALIDITY = "cert_validity"
    AUDIT_ENABLED = "audit_enabled"
    AUTH_ENABLED = "auth_enabled"
    API_TLS = "api_tls"
    SECRETS_NOT_IN_ENV = "secrets_not_in_env"
    FS_PERMISSIONS = "fs_permissions"


class References(Struct, frozen=True, kw_only=True):
    """The requirements that a control is evidence for."""

    pci_dss_4: tuple[str, ...]
    """PCI DSS 4.0, requirements."""
    soc_2: tuple[str, ...]
    """SOC 2, trust services criteria of 2017."""
    nist_800_53: tuple[str, ...]
    """NIST SP 800-53 revision 5, controls."""
    iso_27001: tuple[str, ...]
    """ISO/IEC 27001:2022, annex A."""


REFERENCES: Mapping[Control, References] = MappingProxyType(
    {
        Control.PEER_MTLS: References(
            pci_dss_4=("4.2.1",), soc_2=("CC6.1", "CC6.7"), nist_800_53=("IA-3", "SC-8", "SC-23"),
            iso_27001=("A.8.5", "A.8.20"),
        ),
        Control.TLS_MIN_12: References(
            pci_dss_4=("4.2.1",), soc_2=("CC6.7",), nist_800_53=("SC-8(1)", "SC-13"), iso_27001=("A.8.24",),
        ),
        Control.CERT_VALIDITY: References(
            pci_dss_4=("4.2.1", "4.2.1.1"), soc_2=("CC6.1",), nist_800_53=("IA-5(2)", "SC-12", "SC-17"),
            iso_27001=("A.8.24",),
        ),
        Control.AUDIT_ENABLED: References(
            pci_dss_4=("10.2.1", "10.3.2"), soc_2=("CC7.2",), nist_800_53=("AU-2", "AU-9", "AU-12"),
            iso_27001=("A.8.15",),
        ),
        Control.AUTH_ENABLED: References(
            pci_dss_4=("7.3.1", "8.3.1"), soc_2=("CC6.1",), nist_800_53=("AC-3", "IA-2"), iso_27001=("A.5.15", "A.8.5"),
        ),
        Control.API_TLS: References(
            pci_dss_4=("2.2.7", "4.2.1"), soc_2=("CC6.7",), nist_800_53=("SC-8", "SC-8(1)"),
            iso_27001=("A.8.20", "A.8.24"),
        ),
        Control.SECRETS_NOT_IN_ENV: References(
            pci_dss_4=("8.3.2", "8.6.2"), soc_2=("CC6.1",), nist_800_53=("IA-5(6)", "IA-5(7)"), iso_27001=("A.5.17",),
        ),
        Control.FS_PERMISSIONS: References(
            pci_dss_4=("7.2.1", "10.3.1"), soc_2=("CC6.1", "CC6.3"), nist_800_53=("AC-3", "AC-6", "AU-9"),
            iso_27001=("A.8.3",),
        ),
    }
)  # fmt: skip


class Certificate(Struct, frozen=True, kw_only=True):
    """A certificate that this process has loaded. `name`: the setting of its file, and its role."""

    name: str
    not_before: datetime
    not_after: datetime


class Api(Struct, frozen=True, kw_only=True):
    """How the web server of a process is reached."""

    host: str
    is_local: bool
    """It listens on loopback, and nothing of ours carries it further without TLS."""
    is_https: bool
    login: str
    """`auth.mode`."""


class Facts(Struct, frozen=True, kw_only=True):
    """What a process knows of itself."""

    is_plaintext: bool
    """`peer.insecure`."""
    minimum_tls: str
    """`peer.min_tls_version`."""
    certificates: Sequence[Certificate]
    audit_problem: str
    """Why nothing can be recorded; empty: it can."""
    secrets_in_env: Sequence[str]
    """Variables that hold a secret of the configuration."""
    looked_at: int
    """How many private files and folders were found."""
    open_paths: Sequence[str]
    """Those that others may use, each with its mode."""
    api: Api | None
    """None: this process has no web server."""


class Result(Struct, frozen=True, kw_only=True):
    """How one control stands. `fix` is empty where it passes."""

    control: Control
    passed: bool
    looked_at: str
    why: str
    fix: str = ""

    @property
    def references(self) -> References:
        """Return the requirements that this is evidence for."""
        return REFERENCES[self.control]


MAX_NAMED = 5
"""Things at fault that one result names."""


def judge(facts: Facts, now: datetime) -> tuple[Result, ...]:
    """Return how every control stands that this process has, in the order of `Control`."""
    found = [_peers(facts), _versions(facts), _certificates(facts.certificates, now), _audit(facts)]
    if facts.api is not None:
        found += [_login(facts.api), _https(facts.api)]
    return (*found, _secrets(facts), _files(facts))


def _peers(facts: Facts) -> Result:
    looked_at = f"peer.insecure={str(facts.is_plaintext).lower()}"
    if not facts.is_plaintext:
        return _pass(Control.PEER_MTLS, looked_at, "both ends of every link between machines prove who they are")
    return _fail(
        Control.PEER_MTLS, looked_at, "nobody is proven and everything can be read on the way",
        "remove peer.insecure on both ends and issue certificates with `secure-dagu pki issue ROLE NAME`",
    )  # fmt: skip


def _versions(facts: Facts) -> Result:
    looked_at = f"peer.insecure={str(facts.is_plaintext).lower()}, peer.min_tls_version={facts.minimum_tls}"
    if facts.is_plaintext:
        return _fail(Control.TLS_MIN_12, looked_at, "no TLS is spoken to other machines", "remove peer.insecure")
    return _pass(Control.TLS_MIN_12, looked_at, f"no TLS older than {facts.minimum_tls} is spoken")


def _certificates(certificates: Sequence[Certificate], now: datetime) -> Result:
    looked_at = _some([f"{one.name} until {one.not_after:%Y-%m-%d %H:%M}Z" for one in certificates])
    bad = [f"{one.name} has ended" for one in certificates if now >= one.not_after]
    bad += [f"{one.name} is not yet valid" for one in certificates if now < one.not_before]
    if bad:
        return _fail(
            Control.CERT_VALIDITY, looked_at, _some(bad),
            "issue it again with `secure-dagu pki issue ROLE NAME --force`, or set the clock by NTP",
        )  # fmt: skip
    return _pass(
        Control.CERT_VALIDITY,
        looked_at or "no certificate is loaded here",
        "every loaded certificate is valid now" if certificates else "nothing here needs one",
    )


def _audit(facts: Facts) -> Result:
    looked_at = "the audit log of this process"
    if facts.audit_problem:
        return _fail(
            Control.AUDIT_ENABLED, looked_at, facts.audit_problem, "make room for it, or see `secure-dagu audit verify`"
        )
    return _pass(Control.AUDIT_ENABLED, looked_at, "it is written, and what cannot be recorded is refused")


def _login(api: Api) -> Result:
    looked_at = f"auth.mode={api.login}"
    if api.login == "none":
        return _fail(
            Control.AUTH_ENABLED, looked_at, "whoever reaches the web server is an admin, and nobody is named",
            "set auth.mode to builtin",
        )  # fmt: skip
    shared = "a login is needed; it is one account for all" if api.login == "basic" else "each account logs in"
    return _pass(Control.AUTH_ENABLED, looked_at, shared)


def _https(api: Api) -> Result:
    looked_at = f"host={api.host}, {'HTTPS' if api.is_https else 'HTTP'}"
    if api.is_https:
        return _pass(Control.API_TLS, looked_at, "Web UI and REST API speak TLS")
    if api.is_local:
        return _pass(Control.API_TLS, looked_at, "it is served on this host's loopback addresses only")
    return _fail(
        Control.API_TLS, looked_at, "passwords can be read on the way",
        "remove tls.insecure, and tunnel.tailscale.https=false; name a certificate in tls.cert_file and tls.key_file",
    )  # fmt: skip


def _secrets(facts: Facts) -> Result:
    looked_at = "the source of every secret setting"
    if facts.secrets_in_env:
        return _fail(
            Control.SECRETS_NOT_IN_ENV, looked_at, f"in the environment: {_some(facts.secrets_in_env)}",
            "put it in a file of mode 0600 and name that in the variable with _FILE behind its name",
        )  # fmt: skip
    return _pass(Control.SECRETS_NOT_IN_ENV, looked_at, "none comes from an environment variable")


def _files(facts: Facts) -> Result:
    looked_at = f"{facts.looked_at} keys, tokens, account and audit folders, and the exception ledger"
    if facts.open_paths:
        return _fail(
            Control.FS_PERMISSIONS, looked_at, f"others may use {_some(facts.open_paths)}",
            "chmod 600 the files and chmod 700 the folders",
        )  # fmt: skip
    return _pass(Control.FS_PERMISSIONS, looked_at, "none of them can be used by others")


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more


def _pass(control: Control, looked_at: str, why: str) -> Result:
    return Result(control=control, passed=True, looked_at=looked_at, why=why)


def _fail(control: Control, looked_at: str, why: str, fix: str) -> Result:
    return Result(control=control, passed=False, looked_at=looked_at, why=why, fix=fix)

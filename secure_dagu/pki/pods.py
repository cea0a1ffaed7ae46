"""Pods join without anybody's help: their cluster says who they are, in a signed token for us alone.

The token is that of a service account, as the kubelet hands it to one pod (a projected volume): it names the pod, its
service account and its namespace, is made for our audience, and ends soon. We verify it against the cluster's public
keys, which lie here in a file with the service accounts whose pods may join and the labels that they get:

    {"issuer": URL, "audience": NAME, "keys": [JWK, …],
     "pools": [{"namespace": NAME, "service_account": NAME, "labels": ["KEY=VALUE", …]}]}

Nobody here asks the cluster anything, and a token for us is worth nothing to it. Each is good once.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.pki.asking import MAX_POD_TOKEN
from secure_dagu.pki.tokens import Offer

MAX_FILE: Final = 256 << 10
MAX_AGE: Final = timedelta(hours=2)
"""From its making to its end: one for longer was not made for joining."""
LEEWAY: Final = timedelta(minutes=1)
"""By which the cluster's clock may be ahead of ours."""
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
"""Of public keys only, so that a public key is never taken for a shared secret."""


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pods that may join, and the labels that their certificates grant."""

    namespace: str
    service_account: str
    labels: tuple[str, ...] = ()


class Cluster(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose word is taken, and for whom."""

    issuer: Annotated[str, Meta(min_length=1)]
    audience: Annotated[str, Meta(min_length=1)]
    keys: Annotated[tuple[dict[str, Any], ...], Meta(max_length=32)]
    pools: Annotated[tuple[Pool, ...], Meta(max_length=1000)]


class _Named(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1)]


class _About(Struct, frozen=True):
    namespace: str
    serviceaccount: _Named
    pod: _Named


class _Claims(Struct, frozen=True):
    iat: Annotated[float, Meta(ge=0, le=1e11)]
    exp: Annotated[float, Meta(ge=0, le=1e11)]
    about: _About = field(name="kubernetes.io")


def read_cluster(file: Path) -> Cluster:
    """Read whose word is taken.

    Raises:
        ConfigError: the file cannot be read or used.
    """
    try:
        with file.open("rb") as source:
            return msgspec.json.decode(source.read(MAX_FILE), type=Cluster)
    except OSError as problem:
        raise _unusable(file, problem.strerror or str(problem)) from problem
    except msgspec.MsgspecError as problem:
        raise _unusable(file, str(problem)) from problem


def offer_for(token: str, cluster: Cluster, now: datetime) -> Offer:
    """Return what the pod gets that a token names, `until` its end.

    Raises:
        InvalidRequest: it is not of this cluster, not for us, has ended, or names no pod that may join.
    """
    claims = _claims(token, cluster)
    made, until = (datetime.fromtimestamp(moment, now.tzinfo) for moment in (claims.iat, claims.exp))
    if now >= until:
        raise _bad("it has ended")
    if made > now + LEEWAY:
        raise _bad("it is not of now")
    if until - made > MAX_AGE:
        raise _bad(f"it lasts {until - made}, and one for joining {MAX_AGE} at most")
    about = claims.about
    who = f"service account {about.namespace}/{about.serviceaccount.name}"
    for pool in cluster.pools:
        if (pool.namespace, pool.service_account) == (about.namespace, about.serviceaccount.name):
            return Offer(
                role=Role.WORKER, name=about.pod.name, labels=pool.labels, made_at=made.isoformat(),
                until=until.isoformat(), actor=who,
            )  # fmt: skip
    raise _bad(f"pods of {who} may not join")


def _claims(token: str, cluster: Cluster) -> _Claims:
    import jwt  # only where pods join

    if len(token) > MAX_POD_TOKEN:
        raise _bad("it is too long")
    try:
        header = jwt.get_unverified_header(token)
        found = next((key for key in cluster.keys if key.get("kid") == header.get("kid")), None)
        if found is None:
            raise _bad("none of the cluster's keys that we know made it")
        said = jwt.decode(
            token, jwt.PyJWK(found), algorithms=ALGORITHMS, audience=cluster.audience, issuer=cluster.issuer,
            options={
                "require": ["exp", "iat", "aud", "iss"],
                # Times are compared with the clock that we are handed.
                "verify_exp": False, "verify_iat": False, "verify_nbf": False,
            },
        )  # fmt: skip
        return msgspec.convert(said, _Claims)
    except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, TypeError) as problem:
        raise _bad(str(problem)) from problem


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest("the pod's token is refused", why=why)


def _unusable(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file} says not which pods may join", why=why, fix="let the Job of the chart write it again")

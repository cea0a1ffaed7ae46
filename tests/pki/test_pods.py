"""Which pods may join: what their cluster says, for us, now, once; and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.pki import directory as pki
from secure_dagu.pki.asking import MAX_POD_TOKEN
from secure_dagu.pki.enrolment import Desk
from secure_dagu.pki.holder import Wish
from secure_dagu.pki.ledger import Status
from secure_dagu.pki.pods import MAX_AGE, offer_for, read_cluster
from secure_dagu.pki.tokens import Tokens
from secure_dagu.security.secret import Secret
from tests.deploy.cluster import ISSUER, Cluster
from tests.pki.forging import NOW

OURS = "spiffe://secure-dagu"
GPU = "dagu-worker-gpu"
POD = "dagu-worker-gpu-6d4cf56db6-x7k2p"


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """Return our cluster."""
    return Cluster()


@pytest.fixture
def file(cluster: Cluster, tmp_path: Path) -> Path:
    """Return what the Job says of it."""
    pools = [{"namespace": "flows", "service_account": GPU, "labels": ["gpu=true"]}]
    path = tmp_path / "pods.json"
    path.write_text(json.dumps({"issuer": ISSUER, "audience": OURS, "keys": cluster.keys, "pools": pools}))
    return path


def made(cluster: Cluster, **more: object) -> str:
    return cluster.token(**{"pod": POD, "account": GPU, "audience": OURS, "now": NOW, **more})  # type: ignore[arg-type]


def test_a_pod_gets_its_own_name_and_the_labels_of_its_pool(cluster: Cluster, file: Path) -> None:
    offer = offer_for(made(cluster), read_cluster(file), NOW)
    assert (offer.role, offer.name, offer.labels) == (Role.WORKER, POD, ("gpu=true",))
    assert offer.actor == f"service account flows/{GPU}"
    assert offer.until == (NOW + timedelta(minutes=10)).isoformat()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"account": "dagu-worker-general"}, "may not join"),
        ({"namespace": "other"}, "may not join"),
        ({"audience": "https://kubernetes.default.svc"}, "udience"),
        ({"audience": "spiffe://other"}, "udience"),
        ({"iss": "https://other"}, "ssuer"),
        ({"now": NOW - timedelta(minutes=10)}, "ended"),
        ({"now": NOW + timedelta(minutes=2)}, "not of now"),
        ({"lasts": MAX_AGE + timedelta(seconds=1)}, "lasts"),
        ({"kubernetes.io": {"namespace": "flows", "serviceaccount": {"name": GPU}}}, "pod"),
        ({"kubernetes.io": "x"}, "object"),
        ({"pod": ""}, "length"),
        ({"pod": "x" * MAX_POD_TOKEN}, "too long"),
    ],
)
def test_another_pods_place_time_or_audience_is_refused(
    cluster: Cluster, file: Path, change: dict[str, object], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        offer_for(made(cluster, **change), read_cluster(file), NOW)


def test_a_token_that_lasts_as_long_as_one_may_is_taken(cluster: Cluster, file: Path) -> None:
    assert offer_for(made(cluster, lasts=MAX_AGE), read_cluster(file), NOW + MAX_AGE - timedelta(seconds=1)).name == POD


def test_a_token_that_the_cluster_did_not_sign_is_refused(cluster: Cluster, file: Path) -> None:
    known, good = read_cluster(file), made(cluster)
    head, body, _ = good.split(".")

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    public = cluster.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = f"{part({'alg': 'HS256', 'kid': cluster.kid})}.{body}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, confused.encode(), hashlib.sha256)).decode().rstrip("=")
    claims = jwt.decode(good, options={"verify_signature": False})
    claims["kubernetes.io"]["pod"]["name"] = "another"
    forged = [
        made(Cluster()),
        made(replace(cluster, kid="two")),
        f"{part({'alg': 'none', 'kid': cluster.kid})}.{body}.",
        f"{confused}.{mac}",
        f"{head}.{part(claims)}.{good.rpartition('.')[2]}",
        "nothing",
        "",
    ]
    for token in forged:
        with pytest.raises(InvalidRequest, match="refused"):
            offer_for(token, known, NOW)


@pytest.mark.parametrize("text", ["", "{}", '{"issuer": "", "audience": "a", "keys": [], "pools": []}'])
def test_a_file_that_does_not_say_whom_is_no_use(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="which pods may join"):
        read_cluster(file)


@pytest.fixture
def desk(file: Path, tmp_path: Path) -> Desk:
    """Return a desk where pods join."""
    place = tmp_path / "pki"
    pki.initialise(place, advertised=["localhost"], trust_domain="secure-dagu", now=NOW)
    return Desk(place, None, pods_file=file)


def test_a_token_is_good_once_also_after_a_restart_and_another_is_good_again(
    desk: Desk, cluster: Cluster, file: Path, tmp_path: Path
) -> None:
    token, where = made(cluster), {"address": "10.0.0.7:4", "now": NOW}
    first = desk.join(Wish().to_join_as_pod(Secret(token)), **where)  # type: ignore[arg-type]
    assert first.entry is not None
    assert (first.entry.name, first.entry.labels) == (POD, ("gpu=true",))
    assert first.entry.actor == f"service account flows/{GPU}"
    for one in (desk, Desk(tmp_path / "pki", None, pods_file=file)):
        again = one.join(Wish().to_join_as_pod(Secret(token)), **where)  # type: ignore[arg-type]
        assert (again.entry, again.reason) == (None, "token")
    fresh = Wish().to_join_as_pod(Secret(made(cluster, jti="another")))
    assert desk.join(fresh, **where).entry is not None  # type: ignore[arg-type]
    book = pki.ledger(tmp_path / "pki")
    assert [entry.status for entry in book.entries() if entry.name == POD] == [Status.SUPERSEDED, Status.VALID]


def test_what_was_spent_is_forgotten_when_it_has_ended(desk: Desk, cluster: Cluster, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "pki")
    desk.join(Wish().to_join_as_pod(Secret(made(cluster))), address="10.0.0.7:4", now=NOW)
    assert len(list((tmp_path / "pki/tokens").iterdir())) == 1
    tokens.sweep(NOW + timedelta(minutes=9))
    assert len(list((tmp_path / "pki/tokens").iterdir())) == 1
    tokens.sweep(NOW + timedelta(minutes=10))
    assert list((tmp_path / "pki/tokens").iterdir()) == []
    assert tokens.waiting(NOW) == ()


def test_where_no_pods_join_their_tokens_are_nothing_and_the_keys_are_read_anew(
    desk: Desk, cluster: Cluster, file: Path, tmp_path: Path
) -> None:
    closed = Desk(tmp_path / "pki", None)
    request = Wish().to_join_as_pod(Secret(made(cluster)))
    assert closed.join(request, address="10.0.0.7:4", now=NOW).reason == "token"
    other = Cluster(kid="two")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"keys": other.keys}))
    assert desk.join(request, address="10.0.0.8:4", now=NOW).reason == "token"
    assert desk.join(Wish().to_join_as_pod(Secret(made(other))), address="10.0.0.8:4", now=NOW).entry is not None
    file.unlink()
    broken = desk.join(Wish().to_join_as_pod(Secret(made(other, jti="b"))), address="10.0.0.8:4", now=NOW)
    assert broken.reason == "authority"
    assert msgspec.json.decode(broken.document)["problem"]["code"] == "refused", "a stranger learns no more"

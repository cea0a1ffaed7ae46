"""What a cluster says of its pods: tokens of service accounts, as the kubelet projects them, and its public keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass
class Cluster:
    """One cluster; a second one is a stranger."""

    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    kid: str = "one"

    @property
    def keys(self) -> list[dict[str, Any]]:
        """Return the public keys, as `/openid/v1/jwks` says them."""
        return [
            json.loads(RSAAlgorithm.to_jwk(self.key.public_key())) | {"kid": self.kid, "use": "sig", "alg": "RS256"}
        ]

    def token(
        self, *, pod: str, account: str, audience: str, namespace: str = "flows", now: datetime | None = None,
        lasts: timedelta = timedelta(minutes=10), **more: object,
    ) -> str:  # fmt: skip
        """Return a token for one pod. `more` replaces claims."""
        made = now or datetime.now(UTC)
        claims: Mapping[str, object] = {
            "aud": [audience],
            "exp": int((made + lasts).timestamp()),
            "iat": int(made.timestamp()),
            "iss": ISSUER,
            "kubernetes.io": {
                "namespace": namespace,
                "node": {"name": "node-1"},
                "pod": {"name": pod, "uid": "1f0c5a1e-1c0e-4e57-9d4e-3f4c5d6e7f80"},
                "serviceaccount": {"name": account, "uid": "2f0c5a1e-1c0e-4e57-9d4e-3f4c5d6e7f80"},
            },
            "nbf": int(made.timestamp()),
            "sub": f"system:serviceaccount:{namespace}:{account}",
        }
        return jwt.encode({**claims, **more}, self.key, algorithm="RS256", headers={"kid": self.kid})

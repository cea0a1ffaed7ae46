"""People and programs that use the web server: their roles, and accounts as values. Pure."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from secure_dagu.web.api.deps import Need


class Role(StrEnum):
    """What an account may be, least first."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    DEVELOPER = "developer"
    MANAGER = "manager"
    ADMIN = "admin"


MOST = {
    Role.VIEWER: Need.READ,
    Role.OPERATOR: Need.RUN,
    Role.DEVELOPER: Need.MACHINES,
    Role.MANAGER: Need.AUDIT,
    Role.ADMIN: Need.ADMIN,
}
"""The highest need that each role meets; it meets all below (REST reference, section 2)."""


class Way(StrEnum):
    """How somebody proved who it is: the metric label `method`."""

    PASSWORD = "password"  # noqa: S105 - a word, no password
    API_KEY = "api_key"
    BASIC = "basic"
    CERTIFICATE = "certificate"
    NONE = "none"


class Person(Struct, frozen=True, kw_only=True):
    """Who asks (`web.api.deps.Account`)."""

    name: str
    role: Role
    way: Way
    user_id: str = ""
    key_id: str = ""
    session: str = ""
    """Id of the login; empty without one."""
    in_cookie: bool = False
    """The login came in a cookie, which a browser sends by itself: what changes something needs more."""
    expires_at: datetime | None = None
    serial: str = ""
    """Of its certificate, hex."""
    only_metrics: bool = False

    def may(self, need: Need) -> bool:
        """Tell whether the role meets a need."""
        return need <= MOST[self.role] and (need <= Need.READ or not self.only_metrics)


class User(Struct, frozen=True, kw_only=True):
    """One person's account."""

    id: str
    username: str
    role: Role
    password_hash: str
    created_at: str
    updated_at: str
    password_changed_at: float = 0.0
    """Unix seconds: when the password was changed, or the account disabled, last; logins from before are over."""
    is_disabled: bool = False


class ApiKey(Struct, frozen=True, kw_only=True):
    """One program's account."""

    id: str
    name: str
    role: Role
    description: str
    key_digest: str
    """SHA-256 of the key, hex: it has 256 random bits, so a slow hash would protect nothing."""
    key_prefix: str
    created_at: str
    updated_at: str
    created_by: str
    attribution_class: str = "service_account"
    service_account_name: str = ""
    owner_user_id: str = ""
    expires_at: str = ""
    last_used_at: str = ""

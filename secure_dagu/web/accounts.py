"""Users and API keys: who there is, how they prove it, and how they are changed."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.structs import replace

from secure_dagu.errors import AlreadyExists, InvalidRequest, NotFound, Refused, Unauthenticated
from secure_dagu.store.accounts import AccountFolder
from secure_dagu.web.passwords import Passwords
from secure_dagu.web.people import ApiKey, Person, Role, User, Way
from secure_dagu.web.sessions import Attempts, Sessions

KEY_PREFIX: Final = "dagu_"
USED_EVERY_S: Final = 60
"""How often the last use of a key is written."""
_USERNAME: Final = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")
_FIRST: Final = ".first-admin"


class TooOften(Unauthenticated):
    """Too many failures; the message says how long to wait."""

    code = "too-often"

    def __init__(self, wait_s: int) -> None:
        super().__init__("too many failed logins", why=f"try again in {wait_s} s")
        self.wait_s = wait_s


class Accounts:
    """All accounts of an installation. A change is on disk when its method returns."""

    def __init__(self, users: AccountFolder, keys: AccountFolder, sessions: Sessions, *, setup_token: str = "") -> None:
        """Take where they are kept.

        `setup_token`: what the first admin must know besides; empty where only this host reaches the server.
        """
        self._users, self._keys, self.sessions = users, keys, sessions
        self._passwords, self.attempts = Passwords(), Attempts()
        self._setup_token = setup_token
        self._changing = asyncio.Lock()
        self._by_digest: tuple[object, dict[str, ApiKey]] = (None, {})

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def users(self) -> Sequence[User]:
        """Return all users by name."""
        return sorted((_user(document) for document in self._users.all().values()), key=lambda user: user.username)

    def user(self, user_id: str) -> User:
        """Return one. NotFound: there is none."""
        document = self._users.all().get(user_id)
        if document is None:
            raise NotFound("there is no such user")
        return _user(document)

    def api_keys(self) -> Sequence[ApiKey]:
        """Return all API keys by name."""
        return sorted((_key(document) for document in self._keys.all().values()), key=lambda key: key.name)

    def api_key(self, key_id: str) -> ApiKey:
        """Return one. NotFound: there is none."""
        document = self._keys.all().get(key_id)
        if document is None:
            raise NotFound("there is no such API key")
        return _key(document)

    @property
    def is_set_up(self) -> bool:
        """Tell whether there is a user."""
        return bool(self._users.all())

    @property
    def needs_setup_token(self) -> bool:
        """Tell whether the first admin must say the setup token."""
        return bool(self._setup_token)

    # ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def log_in(self, username: str, password: str, *, address: str) -> tuple[str, Person]:
        """Return a login token and who logged in.

        Raises:
            TooOften: after five failures within fifteen minutes.
            Unauthenticated: name or password is wrong, or the account is disabled; one text for all.
        """
        keys, now = (f"address:{address}", f"name:{username[:64].casefold()}"), time.monotonic()
        if wait := self.attempts.wait_s(*keys, now=now):
            raise TooOften(wait)
        self.attempts.failed(*keys, now=now)  # before the slow part: attempts side by side count as well
        user = next((one for one in self.users() if one.username == username), None)
        is_right = await self._passwords.fits(user.password_hash if user is not None else None, password)
        if user is None or not is_right or user.is_disabled:
            raise Unauthenticated("Invalid username or password")
        self.attempts.forget(*keys)
        return self._begin(user)

    def of_token(self, token: str) -> Person:
        """Return whose login a token is; role and state are those of now.

        Raises:
            Unauthenticated: it is over, or the account is gone, disabled, or has another password since.
        """
        login = self.sessions.read(token)
        document = self._users.all().get(login.user_id)
        if document is not None:
            user = _user(document)
            if not user.is_disabled and login.began_at >= user.password_changed_at:
                return Person(
                    name=user.username, role=user.role, way=Way.PASSWORD, user_id=user.id, session=login.session,
                    expires_at=login.ends_at,
                )  # fmt: skip
        raise Unauthenticated("the login is over", why="the account is gone or was changed", fix="log in again")

    def of_key(self, said: str) -> Person:
        """Return whose API key it is.

        Raises:
            Unauthenticated: nobody's, or it has ended.
        """
        found = self._digests().get(hashlib.sha256(said.encode(errors="replace")).hexdigest())
        now = datetime.now(UTC)
        if found is None or (found.expires_at and _moment(found.expires_at) <= now):
            raise Unauthenticated("the API key is unknown, or has ended", fix="make another one")
        if not found.last_used_at or (now - _moment(found.last_used_at)).total_seconds() >= USED_EVERY_S:
            self._keys.put(found.id, _document(replace(found, last_used_at=_text(now))))
        return Person(name=f"apikey:{found.name}", role=found.role, way=Way.API_KEY, key_id=found.id)

    def log_out(self, person: Person) -> None:
        """End a login."""
        if person.session and person.expires_at is not None:
            self.sessions.end(person.session, person.expires_at)

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def set_up(self, username: str, password: str, *, token: str = "") -> tuple[str, Person]:
        """Make the first admin and log in.

        Raises:
            Refused: as `check_open`.
        """
        self.check_open(token)
        async with self._changing:
            if self.is_set_up or not self._users.claim(_FIRST):
                raise Refused("Setup has already been completed")
            try:
                kept = await self._passwords.hashed(password)
                user = self._put(_new_user(username, Role.ADMIN, kept))
            finally:
                self._users.release(_FIRST)
        return self._begin(user)

    def check_open(self, token: str) -> None:
        """Check that somebody may make the first admin.

        Raises:
            Refused: there is a user already, or the setup token is wrong.
        """
        if self.is_set_up:
            raise Refused("Setup has already been completed")
        if self._setup_token and not secrets.compare_digest(self._setup_token.encode(), token.encode(errors="replace")):
            raise Refused(
                "the setup token is wrong", why="this server can be reached from other hosts",
                fix="it is on the server's host, in auth/setup_token of its data directory",
            )  # fmt: skip

    async def create(self, username: str, password: str, role: Role) -> User:
        """Make a user. Conflict: the name is taken."""
        kept = await self._passwords.hashed(password)
        async with self._changing:
            self._check_free(username)
            return self._put(_new_user(username, role, kept))

    async def change(
        self, user_id: str, *, by: Person, username: str | None = None, role: Role | None = None,
        is_disabled: bool | None = None,
    ) -> User:  # fmt: skip
        """Change a user. None leaves a field as it is.

        Raises:
            Refused: somebody would lock out himself, or the last admin.
        """
        async with self._changing:
            user, now = self.user(user_id), datetime.now(UTC)
            if username is not None and username != user.username:
                self._check_free(username)
            after = replace(
                user, username=user.username if username is None else _checked(username),
                role=user.role if role is None else role,
                is_disabled=user.is_disabled if is_disabled is None else is_disabled,
                password_changed_at=now.timestamp() if is_disabled else user.password_changed_at,
                updated_at=_text(now),
            )  # fmt: skip
            if user_id == by.user_id and (after.is_disabled or after.role is not user.role):
                raise Refused("nobody changes the role or state of the own account", fix="ask another admin")
            self._keep_an_admin(user, after)
            return self._put(after)

    async def delete(self, user_id: str, *, by: Person) -> None:
        """Remove a user. Refused: it is the own account, or the last admin."""
        async with self._changing:
            user = self.user(user_id)
            if user_id == by.user_id:
                raise Refused("nobody deletes the own account", fix="ask another admin")
            self._keep_an_admin(user, replace(user, is_disabled=True))
            self._users.remove(user_id)

    async def set_password(self, user_id: str, password: str) -> None:
        """Give a user another password; every login of that user is over."""
        kept = await self._passwords.hashed(password)
        async with self._changing:
            now = datetime.now(UTC)
            changed = replace(
                self.user(user_id), password_hash=kept, password_changed_at=now.timestamp(), updated_at=_text(now)
            )
            self._put(changed)

    async def change_password(self, person: Person, current: str, new: str, *, address: str) -> None:
        """Let somebody change the own password.

        Raises:
            Unauthenticated: the current one is wrong. Refused: the account has none.
        """
        if not person.user_id:
            raise Refused("this account has no password")
        keys, now = (f"address:{address}", f"name:{person.name.casefold()}"), time.monotonic()
        if wait := self.attempts.wait_s(*keys, now=now):
            raise TooOften(wait)
        self.attempts.failed(*keys, now=now)
        if not await self._passwords.fits(self.user(person.user_id).password_hash, current):
            raise Unauthenticated("the current password is wrong")
        self.attempts.forget(*keys)
        await self.set_password(person.user_id, new)

    def relogin(self, user_id: str) -> tuple[str, Person]:
        """Return a new login of a user who has just changed the password."""
        return self._begin(self.user(user_id))

    async def make_key(
        self, *, name: str, role: Role, by: Person, description: str = "", expires_at: str = "",
        attribution_class: str = "service_account", service_account_name: str = "", owner_user_id: str = "",
    ) -> tuple[ApiKey, str]:  # fmt: skip
        """Make an API key; return it and its text, which is shown once and kept nowhere.

        Raises:
            Conflict: the name is taken. InvalidRequest: the end is no time, or is over; its owner is no user.
        """
        async with self._changing:
            if attribution_class == "user_owned" and owner_user_id not in self._users.all():
                raise InvalidRequest("a user's key needs its user", fix="send the id of a user as ownerUserId")
            if any(key.name == name for key in self.api_keys()):
                raise AlreadyExists(f"there is an API key {name!r}")
            said, now = KEY_PREFIX + secrets.token_urlsafe(32), datetime.now(UTC)
            key = ApiKey(
                id=str(uuid.uuid4()), name=name, role=role, description=description,
                key_digest=hashlib.sha256(said.encode()).hexdigest(), key_prefix=said[:8], created_at=_text(now),
                updated_at=_text(now), created_by=by.name, attribution_class=attribution_class,
                service_account_name=service_account_name or name, owner_user_id=owner_user_id,
                expires_at=_future(expires_at, now),
            )  # fmt: skip
            self._keys.put(key.id, _document(key))
            return key, said

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> ApiKey:
        """Change name, role, description or end of a key."""
        async with self._changing:
            key, now = self.api_key(key_id), datetime.now(UTC)
            if any(other.name == changes.get("name") and other.id != key_id for other in self.api_keys()):
                raise AlreadyExists(f"there is an API key {changes['name']!r}")
            if "expires_at" in changes:
                changes = {**changes, "expires_at": _future(str(changes["expires_at"] or ""), now)}
            after = replace(key, **changes, updated_at=_text(now))
            self._keys.put(key_id, _document(after))
            return after

    async def delete_key(self, key_id: str) -> None:
        """Remove a key."""
        async with self._changing:
            self.api_key(key_id)
            self._keys.remove(key_id)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, user: User) -> tuple[str, Person]:
        token, login = self.sessions.begin(user_id=user.id, username=user.username, role=user.role.value)
        return token, Person(
            name=user.username, role=user.role, way=Way.PASSWORD, user_id=user.id, session=login.session,
            expires_at=login.ends_at,
        )  # fmt: skip

    def _put(self, user: User) -> User:
        self._users.put(user.id, _document(user) | {"workspace_access": {"all": True, "grants": []}})
        return user

    def _check_free(self, username: str) -> None:
        if any(user.username == username for user in self.users()):
            raise AlreadyExists(f"there is a user {username!r}")

    def _keep_an_admin(self, before: User, after: User) -> None:
        if before.role is not Role.ADMIN or before.is_disabled or (after.role is Role.ADMIN and not after.is_disabled):
            return
        others = [
            user for user in self.users() if user.id != before.id and user.role is Role.ADMIN and not user.is_disabled
        ]
        if not others:
            raise Refused("that is the last admin", fix="make another one first")

    def _digests(self) -> dict[str, ApiKey]:
        documents = self._keys.all()
        if self._by_digest[0] is not documents:
            self._by_digest = documents, {key.key_digest: key for key in map(_key, documents.values())}
        return self._by_digest[1]


def _new_user(username: str, role: Role, kept: str) -> User:
    now = _text(datetime.now(UTC))
    return User(
        id=str(uuid.uuid4()), username=_checked(username), role=role, password_hash=kept, created_at=now, updated_at=now
    )


def _checked(username: str) -> str:
    if not _USERNAME.fullmatch(username):
        raise InvalidRequest("a user name has 1 to 64 letters, digits and . _ @ + -")
    return username


def _future(said: str, now: datetime) -> str:
    if not said:
        return ""
    try:
        at = _moment(said)
    except ValueError:
        raise InvalidRequest(f"{said[:40]!r} is no time", fix="write it as 2027-01-31T00:00:00Z") from None
    if at <= now:
        raise InvalidRequest("the end of the key is over already")
    return _text(at)


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _document(account: User | ApiKey) -> dict[str, Any]:
    return {name: getattr(account, name) for name in account.__struct_fields__}


def _user(document: Mapping[str, Any]) -> User:
    known = {name: document[name] for name in User.__struct_fields__ if name in document}
    return User(**{**known, "role": _role(document)})


def _key(document: Mapping[str, Any]) -> ApiKey:
    defaults = {"description": "", "created_by": ""}
    known = {name: document[name] for name in ApiKey.__struct_fields__ if document.get(name) is not None}
    return ApiKey(**{**defaults, **known, "role": _role(document)})


def _role(document: Mapping[str, Any]) -> Role:
    try:
        return Role(str(document.get("role")))
    except ValueError:
        return Role.VIEWER  # a role of another program: the least

"""`/auth`, `/users` and `/api-keys` (REST reference, section 9)."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.audit.events import Action
from secure_dagu.errors import NotFound, Unauthenticated
from secure_dagu.web.accounts import Accounts
from secure_dagu.web.api.bodies import Body
from secure_dagu.web.api.deps import Account, Admin, Viewer, empty, reply
from secure_dagu.web.api.shapes import moment
from secure_dagu.web.gate import Doorkeeper, address_of, clear_cookie, set_cookie
from secure_dagu.web.people import ApiKey, Person, Role, User

router = APIRouter(tags=["accounts"])

RoleWord = Literal["admin", "manager", "developer", "operator", "viewer"]
Username = Annotated[str, Field(min_length=1, max_length=64)]
Password = Annotated[str, Field(min_length=8, max_length=256)]
Surfaces = Annotated[list[Literal["rest_api"]], Field(min_length=1, max_length=10)]


class EveryWorkspace(Body):
    """Access to every workspace: there is one. Less is refused, for it could not be kept."""

    all: Literal[True]
    grants: Annotated[list[Any], Field(max_length=0)] | None = None


class Credentials(Body):
    """Who logs in. With `cookie`, the token goes into a cookie that no script reads, instead of the answer."""

    username: Annotated[str, Field(min_length=1, max_length=256)]
    password: Annotated[str, Field(min_length=1, max_length=1024)]
    cookie: bool = False


class SetupBody(Body):
    """The first admin. `setupToken` is in the server's log, where other hosts can reach it."""

    username: Username
    password: Password
    setupToken: Annotated[str, Field(max_length=128)] = ""
    cookie: bool = False


class ChangePassword(Body):
    """The own password."""

    currentPassword: Annotated[str, Field(min_length=1, max_length=1024)]
    newPassword: Password


class NewUser(Body):
    """A user to make."""

    username: Username
    password: Password
    role: RoleWord
    workspaceAccess: EveryWorkspace | None = None


class UserChange(Body):
    """What is changed of a user."""

    username: Username | None = None
    role: RoleWord | None = None
    workspaceAccess: EveryWorkspace | None = None
    isDisabled: bool | None = None


class ResetPassword(Body):
    """Another password for somebody."""

    newPassword: Password


class NewKey(Body):
    """An API key to make."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: RoleWord
    description: Annotated[str, Field(max_length=500)] = ""
    expiresAt: Annotated[str, Field(max_length=40)] = ""
    workspaceAccess: EveryWorkspace | None = None
    allowedSurfaces: Surfaces | None = None
    attributionClass: Literal["service_account", "user_owned"] = "service_account"
    serviceAccountName: Annotated[str, Field(max_length=100)] = ""
    ownerUserId: Annotated[str, Field(max_length=64)] = ""


class KeyChange(Body):
    """What is changed of an API key."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    role: RoleWord | None = None
    description: Annotated[str, Field(max_length=500)] | None = None
    expiresAt: Annotated[str, Field(max_length=40)] | None = None
    workspaceAccess: EveryWorkspace | None = None
    allowedSurfaces: Surfaces | None = None


class WorkspaceAccess(TypedDict):
    """Always all: there are no workspaces here."""

    all: bool
    grants: list[dict[str, str]]


class UserShape(TypedDict):
    """A user."""

    id: str
    username: str
    role: str
    workspaceAccess: WorkspaceAccess
    authProvider: str
    isDisabled: bool
    createdAt: str
    updatedAt: str


class Me(TypedDict):
    """Who asks."""

    user: UserShape


class LoggedIn(Me):
    """A login. `token` is missing where it went into a cookie; `formToken` is what `X-CSRF-Token` then says."""

    token: NotRequired[str]
    formToken: str
    expiresAt: str


class UserList(TypedDict):
    """All users."""

    users: list[UserShape]
    managedRoleProviders: list[str]
    managedWorkspaceAccessProviders: list[str]


class KeyShape(TypedDict):
    """An API key without its text."""

    id: str
    name: str
    description: str
    role: str
    workspaceAccess: WorkspaceAccess
    allowedSurfaces: list[str]
    attributionClass: str
    ownerUserId: str
    ownerUsername: NotRequired[str]
    serviceAccountName: str
    keyPrefix: str
    createdAt: str
    updatedAt: str
    createdBy: str
    expiresAt: str | None
    lastUsedAt: str | None


class OneKey(TypedDict):
    """One API key."""

    apiKey: KeyShape


class MadeKey(OneKey):
    """A new API key; its text is shown this once."""

    key: str


class KeyList(TypedDict):
    """All API keys."""

    apiKeys: list[KeyShape]


class Message(TypedDict):
    """It is done."""

    message: str


# ── the own login ────────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/auth/setup", response_model=LoggedIn)
async def set_up(request: Request, body: SetupBody) -> Response:
    """Make the first admin, and log in. Public until it is done."""
    token, person = await _door(request).set_up(request, body.username, body.password, token=body.setupToken)
    return _logged_in(request, token, person, in_cookie=body.cookie)


@router.post("/auth/login", response_model=LoggedIn)
async def log_in(request: Request, body: Credentials) -> Response:
    """Log in by password. Public."""
    token, person = await _door(request).log_in(request, body.username, body.password)
    return _logged_in(request, token, person, in_cookie=body.cookie)


@router.post("/auth/logout", response_model=None)
async def log_out(request: Request) -> Response:
    """End the login of this request, for good."""
    door, answer = _door(request), empty()
    try:
        person = door.who(request)
    except Unauthenticated:
        clear_cookie(request, answer)
        return answer
    door.check_origin(request, person)
    door.log_out(request, person)
    clear_cookie(request, answer)
    return answer


@router.get("/auth/me", response_model=Me)
async def me(request: Request, account: Viewer) -> Response:
    """Show who asks."""
    return reply(request, {"user": _me(request, _person(account))})


@router.post("/auth/change-password", response_model=Message)
async def change_password(request: Request, account: Viewer, body: ChangePassword) -> Response:
    """Change the own password; every other login is over."""
    door, person = _door(request), _person(account)
    await door.note(request, person, Action.PASSWORD_CHANGED, f"user:{person.name}")
    await door.accounts.change_password(person, body.currentPassword, body.newPassword, address=address_of(request))
    answer = reply(request, {"message": "Password changed"})
    if person.in_cookie:
        token, again = door.accounts.relogin(person.user_id)
        set_cookie(request, answer, token, again)
    return answer


# ── users ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/users", response_model=UserList)
async def list_users(request: Request, _: Admin) -> Response:
    """List all users."""
    users = [_user(user) for user in _door(request).accounts.users()]
    return reply(request, {"users": users, "managedRoleProviders": [], "managedWorkspaceAccessProviders": []})


@router.post("/users", response_model=Me, status_code=201)
async def make_user(request: Request, account: Admin, body: NewUser) -> Response:
    """Make a user."""
    door = _door(request)
    await door.note(request, _person(account), Action.USER_CREATED, f"user:{body.username}", what=body.role)
    made = await door.accounts.create(body.username, body.password, Role(body.role))
    return reply(request, {"user": _user(made)}, status=201)


@router.get("/users/{userId}", response_model=Me)
async def get_user(request: Request, _: Admin, userId: str) -> Response:
    """Show a user."""
    return reply(request, {"user": _user(_door(request).accounts.user(userId))})


@router.patch("/users/{userId}", response_model=Me)
async def change_user(request: Request, account: Admin, userId: str, body: UserChange) -> Response:
    """Change name, role or state of a user."""
    door, person = _door(request), _person(account)
    changed = sorted(body.model_dump(exclude_none=True))
    name = door.accounts.user(userId).username
    await door.note(request, person, Action.USER_UPDATED, f"user:{name}", what=",".join(changed))
    after = await door.accounts.change(
        userId, by=person, username=body.username, role=Role(body.role) if body.role else None,
        is_disabled=body.isDisabled,
    )  # fmt: skip
    return reply(request, {"user": _user(after)})


@router.delete("/users/{userId}", status_code=204, response_model=None)
async def delete_user(request: Request, account: Admin, userId: str) -> Response:
    """Delete a user."""
    door, person = _door(request), _person(account)
    await door.note(request, person, Action.USER_DELETED, f"user:{door.accounts.user(userId).username}")
    await door.accounts.delete(userId, by=person)
    return Response(status_code=204)


@router.post("/users/{userId}/reset-password", response_model=Message)
async def reset_password(request: Request, account: Admin, userId: str, body: ResetPassword) -> Response:
    """Give a user another password; every login of that user is over."""
    door = _door(request)
    name = door.accounts.user(userId).username
    await door.note(request, _person(account), Action.PASSWORD_RESET, f"user:{name}")
    await door.accounts.set_password(userId, body.newPassword)
    return reply(request, {"message": "Password reset"})


# ── API keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/api-keys", response_model=KeyList)
async def list_keys(request: Request, _: Admin) -> Response:
    """List all API keys, without their texts."""
    accounts = _door(request).accounts
    return reply(request, {"apiKeys": [_key(key, accounts) for key in accounts.api_keys()]})


@router.post("/api-keys", response_model=MadeKey, status_code=201)
async def make_key(request: Request, account: Admin, body: NewKey) -> Response:
    """Make an API key. Its text is in this answer and nowhere else."""
    door, person = _door(request), _person(account)
    await door.note(request, person, Action.KEY_CREATED, f"apikey:{body.name}", what=body.role)
    made, said = await door.accounts.make_key(
        name=body.name, role=Role(body.role), by=person, description=body.description, expires_at=body.expiresAt,
        attribution_class=body.attributionClass, service_account_name=body.serviceAccountName,
        owner_user_id=body.ownerUserId,
    )  # fmt: skip
    answer = reply(request, {"apiKey": _key(made, door.accounts), "key": said}, status=201)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("/api-keys/{keyId}", response_model=OneKey)
async def get_key(request: Request, _: Admin, keyId: str) -> Response:
    """Show an API key, without its text."""
    accounts = _door(request).accounts
    return reply(request, {"apiKey": _key(accounts.api_key(keyId), accounts)})


@router.patch("/api-keys/{keyId}", response_model=OneKey)
async def change_key(request: Request, account: Admin, keyId: str, body: KeyChange) -> Response:
    """Change name, role, description or end of an API key."""
    door = _door(request)
    said = body.model_dump(exclude_none=True)
    await door.note(
        request,
        _person(account),
        Action.KEY_UPDATED,
        f"apikey:{door.accounts.api_key(keyId).name}",
        what=",".join(said),
    )
    changes: dict[str, Any] = {key: said[key] for key in ("name", "description") if key in said}
    if "role" in said:
        changes["role"] = Role(said["role"])
    if "expiresAt" in said:
        changes["expires_at"] = said["expiresAt"]
    return reply(request, {"apiKey": _key(await door.accounts.change_key(keyId, changes), door.accounts)})


@router.delete("/api-keys/{keyId}", status_code=204, response_model=None)
async def delete_key(request: Request, account: Admin, keyId: str) -> Response:
    """Delete an API key."""
    door = _door(request)
    await door.note(request, _person(account), Action.KEY_DELETED, f"apikey:{door.accounts.api_key(keyId).name}")
    await door.accounts.delete_key(keyId)
    return Response(status_code=204)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _door(request: Request) -> Doorkeeper:
    """Return the gate with its accounts."""
    door: Doorkeeper = request.app.state.services.door
    return door


def _person(account: Account) -> Person:
    assert isinstance(account, Person), "the gate lets persons in"
    return account


def _logged_in(request: Request, token: str, person: Person, *, in_cookie: bool) -> Response:
    value = {
        "user": _me(request, person),
        "formToken": _door(request).form_token(person) if in_cookie else "",
        "expiresAt": moment(person.expires_at) if person.expires_at else "",
        **({} if in_cookie else {"token": token}),
    }
    answer = reply(request, value)
    answer.headers["Cache-Control"] = "no-store"
    if in_cookie:
        set_cookie(request, answer, token, person)
    return answer


def _me(request: Request, person: Person) -> UserShape:
    if person.user_id:
        return _user(_door(request).accounts.user(person.user_id))
    return _shape(id=person.key_id or person.name, username=person.name, role=person.role.value, provider="builtin")


def _user(user: User) -> UserShape:
    return {
        **_shape(id=user.id, username=user.username, role=user.role.value, provider="builtin"),
        "isDisabled": user.is_disabled,
        "createdAt": user.created_at,
        "updatedAt": user.updated_at,
    }


def _shape(*, id: str, username: str, role: str, provider: str) -> UserShape:  # noqa: A002 - the field's name
    return {
        "id": id, "username": username, "role": role, "workspaceAccess": {"all": True, "grants": []},
        "authProvider": provider, "isDisabled": False, "createdAt": "", "updatedAt": "",
    }  # fmt: skip


def _key(key: ApiKey, accounts: Accounts) -> KeyShape:
    shape: KeyShape = {
        "id": key.id, "name": key.name, "description": key.description, "role": key.role.value,
        "workspaceAccess": {"all": True, "grants": []}, "allowedSurfaces": ["rest_api"],
        "attributionClass": key.attribution_class, "ownerUserId": key.owner_user_id,
        "serviceAccountName": key.service_account_name, "keyPrefix": key.key_prefix, "createdAt": key.created_at,
        "updatedAt": key.updated_at, "createdBy": key.created_by, "expiresAt": key.expires_at or None,
        "lastUsedAt": key.last_used_at or None,
    }  # fmt: skip
    if key.owner_user_id:
        with contextlib.suppress(NotFound):  # the owner may be gone
            shape["ownerUsername"] = accounts.user(key.owner_user_id).username
    return shape

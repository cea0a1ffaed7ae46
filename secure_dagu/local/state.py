"""Shared state of runs on this host (workflow language, section 3.26): one file a value below paths.dag_state_dir."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from secure_dagu.dispatch.model import StateEntry, StateRef, StateSource
from secure_dagu.errors import Conflict, InvalidRequest, LimitExceeded

MAX_VALUE_BYTES = 1_048_576


class StateFolder:
    """Versioned values. A lock on the folder of a namespace makes a change of one of its values whole."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made with the first value."""
        self._folder = folder

    def get(self, ref: StateRef) -> StateEntry | None:
        """Return a value, None when there is none."""
        return _read(self._path(ref), ref)

    def put(
        self, ref: StateRef, value: bytes, *, expected_version: int | None, create_only: bool, updated_by: StateSource
    ) -> StateEntry:
        """Write a value.

        Raises:
            Conflict: `expected_version` or `create_only` does not hold.
            LimitExceeded: the value has more than 1 MiB.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise LimitExceeded("the value is too large", why=f"the limit is {MAX_VALUE_BYTES} bytes")
        with self._locked(ref):
            before = _read(self._path(ref), ref)
            version = before.version if before else 0
            if (create_only and before) or (expected_version is not None and expected_version != version):
                why = f"version {version} is there" if before else "there is no such value"
                raise Conflict(f"state {ref.key!r}: conflict", why=why, fix="read it again and decide anew")
            now = time.time_ns()
            entry = StateEntry(
                ref=ref,
                value=value,
                version=version + 1,
                hash=hashlib.sha256(value).hexdigest(),
                created_at_ns=before.created_at_ns if before else now,
                updated_at_ns=now,
                updated_by=updated_by,
            )
            _write(self._path(ref), entry)
        return entry

    def delete(self, ref: StateRef) -> bool:
        """Remove a value; False when there was none."""
        with self._locked(ref):
            try:
                os.unlink(self._path(ref))
            except FileNotFoundError:
                return False
        return True

    def list(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        """Return values by key; `limit` 0 means all."""
        folder = self._namespace(scope, namespace)
        with contextlib.suppress(FileNotFoundError):
            keys = sorted(_key_of(name) for name in os.listdir(folder) if name.endswith(".json"))
            found = (
                _read(folder / f"{_safe(key)}.json", StateRef(scope, namespace, key))
                for key in keys
                if key.startswith(prefix)
            )
            entries = [entry for entry in found if entry is not None]
            return entries[: limit or None]
        return []

    def _namespace(self, scope: str, namespace: str) -> Path:
        return self._folder / scope / _safe(namespace)

    def _path(self, ref: StateRef) -> Path:
        return self._namespace(ref.scope, ref.namespace) / f"{_safe(ref.key)}.json"

    @contextlib.contextmanager
    def _locked(self, ref: StateRef) -> Iterator[None]:
        folder = self._namespace(ref.scope, ref.namespace)
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _safe(text: str) -> str:
    """Return a file name that stands for any text: the same text again, another for another, and nothing climbs.

    Raises:
        InvalidRequest: it is too long.
    """
    name = base64.b32encode(text.encode()).decode().rstrip("=").lower()
    if len(name) > 240:
        raise InvalidRequest(f"the key {text[:40]!r}… is too long", why="the limit is 150 bytes")
    return name or "_"


def _key_of(name: str) -> str:
    text = name.removesuffix(".json").upper()
    return base64.b32decode(text + "=" * (-len(text) % 8)).decode() if text != "_" else ""


def _read(path: Path, ref: StateRef) -> StateEntry | None:
    try:
        found = json.loads(path.read_bytes())
        value = json.dumps(found["value"], ensure_ascii=False, separators=(",", ":")).encode()
        return StateEntry(
            ref=ref,
            value=value,
            version=int(found["version"]),
            hash=str(found["hash"]),
            created_at_ns=int(found["createdAt"]),
            updated_at_ns=int(found["updatedAt"]),
            updated_by=StateSource(**found["updatedBy"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Conflict(f"state {ref.key!r} cannot be read", why=f"{path} is not what we wrote") from error


def _write(path: Path, entry: StateEntry) -> None:
    by = entry.updated_by
    document = {
        "key": entry.ref.key,
        "value": json.loads(entry.value),
        "version": entry.version,
        "hash": entry.hash,
        "createdAt": entry.created_at_ns,
        "updatedAt": entry.updated_at_ns,
        "updatedBy": {"dag_name": by.dag_name, "run_id": by.run_id, "attempt_id": by.attempt_id, "step": by.step},
    }
    beside = path.with_name(f".{path.name}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(document, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)

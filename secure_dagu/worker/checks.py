"""Check what a coordinator hands over before anything is made of it: a bad coordinator must not reach this host.

Ids become folder names, file names and log fields, so their letters and lengths are checked first (protocol, section
2.1; weaknesses W1, W2 and W6). Pure.
"""

from __future__ import annotations

import re

from secure_dagu.dispatch.model import BundleRef, Claim, Operation, Owner, Task
from secure_dagu.errors import InvalidRequest
from secure_dagu.run.model import DagRunRef

_DAG_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ATTEMPT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ATTEMPT_KEY = re.compile(r"[A-Za-z0-9:_.-]{1,256}")
_TOKEN = re.compile(r"[!-~]{1,256}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_BUNDLE_BYTES = 64 * 2**20
_MAX_DEFINITION_BYTES = 4 * 2**20


def check_claim(claim: Claim) -> None:
    """Accept a claim as safe to act on.

    Raises:
        InvalidRequest: an id is malformed, the owner is half named, or the operation is not one that a worker knows.
    """
    task = claim.task
    _check_run("run", task.run)
    _check_run("root run", task.root)
    if task.parent is not None:
        _check_run("parent run", task.parent)
    elif task.root != task.run:
        raise _malformed("root run", f"{task.root} is neither this run nor accompanied by a parent")
    _matches("attempt id", _ATTEMPT_ID, task.attempt_id, may_be_empty=True)
    _matches("attempt key", _ATTEMPT_KEY, task.attempt_key, may_be_empty=True)
    _matches("claim token", _TOKEN, claim.token, may_be_empty=True)
    if len(task.definition) > _MAX_DEFINITION_BYTES:
        raise _malformed("definition", f"it is longer than {_MAX_DEFINITION_BYTES} bytes")
    _check_operation(task)
    if claim.token and claim.owner is None:
        raise _malformed("owner", "a claim token needs a coordinator that takes the acknowledgement")
    if claim.owner is not None:
        _check_owner(claim.owner)
    if task.bundle is not None:
        _check_bundle(task.bundle)


def _check_run(what: str, run: DagRunRef) -> None:
    _matches(f"{what} name", _DAG_NAME, run.name)
    _matches(f"{what} id", _RUN_ID, run.run_id)
    if run.name in (".", ".."):
        raise _malformed(f"{what} name", "it names a folder, not a DAG")


def _check_operation(task: Task) -> None:
    if task.operation not in (Operation.START, Operation.RETRY):
        raise _malformed("operation", f"{int(task.operation)} is neither START nor RETRY")
    if task.operation is Operation.RETRY and not task.previous_status:
        raise _malformed("previous status", "a RETRY must say what it continues")
    if not task.definition and task.bundle is None:
        raise _malformed("definition", "it is empty and there is no bundle")


def _check_owner(owner: Owner) -> None:
    if not owner.host or len(owner.host) > 255 or not 1 <= owner.port <= 65535:
        raise _malformed("owner", "host and port must both be set")


def _check_bundle(bundle: BundleRef) -> None:
    _matches("bundle digest", _DIGEST, bundle.digest)
    if not 0 < bundle.size_bytes <= _MAX_BUNDLE_BYTES:
        raise _malformed("bundle size", f"it must be 1 to {_MAX_BUNDLE_BYTES} bytes")
    parts = bundle.dag_path.split("/")
    if "\0" in bundle.dag_path or "\\" in bundle.dag_path or not all(parts) or {".", ".."} & set(parts):
        raise _malformed("bundle path", "it must be relative and may not climb")


def _matches(what: str, pattern: re.Pattern[str], text: str, *, may_be_empty: bool = False) -> None:
    if not (pattern.fullmatch(text) or (may_be_empty and not text)):
        raise _malformed(what, f"{text[:80]!r} is malformed")


def _malformed(what: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the task's {what} is refused", why=why, fix="look at the coordinator that handed it out")

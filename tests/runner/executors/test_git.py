"""`git.checkout` and `git.worktree.*` with real repositories: files, bare ones, one behind HTTP and a password."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from tests import needs
from tests.runner.executors.test_sqlite import dag, error_of, step, stopped_at
from tests.runner.harness import Seen, run

TOKEN = "tok-8842-secret"
IDENTITY = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent",
    "PATH": os.environ["PATH"],
}  # fmt: skip


def git(folder: Path, *args: str) -> str:
    program = needs.program("git", package="git")
    done = subprocess.run([program, *args], cwd=folder, env=IDENTITY, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "-qm", f"Write {name}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with a branch `main` of two commits, a branch `feature/x` and a tag `v1`."""
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    commit(folder, "a.txt", "one")
    git(folder, "tag", "v1")
    git(folder, "checkout", "-qb", "feature/x")
    commit(folder, "b.txt", "feature")
    git(folder, "checkout", "-q", "main")
    commit(folder, "a.txt", "two")
    return folder


async def act(
    base: Path, name: str, *, env: dict[str, str] | None = None, cwd: Path | None = None, **inputs: Any
) -> Seen:
    for log in (base / "logs").glob("*"):
        log.unlink()
    made = step("q", f"git.{name}", **inputs)
    if cwd is not None:
        made["working_dir"] = str(cwd)
    return await run(dag(made, env=env or {}), base)


async def ok(base: Path, name: str, **inputs: Any) -> dict[str, Any]:
    seen = await act(base, name, **inputs)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    return dict(json.loads(seen.out("q")))


async def refused(base: Path, name: str, **inputs: Any) -> str:
    seen = await act(base, name, **inputs)
    assert seen.status is RunStatus.FAILED
    return error_of(seen)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("ref", "head", "text"),
    [
        ("", "refs/heads/main", "two"),
        ("main", "refs/heads/main", "two"),
        ("feature/x", "refs/heads/feature/x", "one"),
        ("v1", "", "one"),
        ("SHA", "", "one"),
    ],
)
async def test_a_repository_is_cloned_at_a_ref(
    tmp_path: Path, origin: Path, ref: str, head: str, text: str, depth: int
) -> None:
    ref = git(origin, "rev-parse", "v1") if ref == "SHA" else ref
    said = await ok(tmp_path, "checkout", repository=f"file://{origin}", path="clone", ref=ref, depth=depth)
    clone = tmp_path / "work/clone"
    assert (clone / "a.txt").read_text() == text
    assert list(said) == ["operation", "path", "ref", "commit", "cloned", "changed"]
    assert (said["path"], said["cloned"], said["changed"]) == (str(clone), True, True)
    assert said["commit"] == git(clone, "rev-parse", "HEAD")
    assert (clone / ".git/HEAD").read_text().strip() == (f"ref: {head}" if head else said["commit"])
    assert (clone / ".git/shallow").exists() is (depth > 0)


async def test_a_clone_is_brought_up_to_date(tmp_path: Path, origin: Path) -> None:
    where: dict[str, Any] = {"repository": str(origin), "path": "clone"}
    await ok(tmp_path, "checkout", **where)
    again = await ok(tmp_path, "checkout", **where)
    assert (again["cloned"], again["changed"]) == (False, False)
    newest = commit(origin, "c.txt", "three")
    again = await ok(tmp_path, "checkout", **where)
    assert (again["cloned"], again["changed"], again["commit"]) == (False, True, newest)
    assert (tmp_path / "work/clone/c.txt").read_text() == "three"


async def test_a_shallow_clone_can_become_whole(tmp_path: Path, origin: Path) -> None:
    await ok(tmp_path, "checkout", repository=f"file://{origin}", path="clone", depth=1)
    said = await ok(tmp_path, "checkout", repository=f"file://{origin}", path="clone", ref="v1")
    assert said["commit"] == git(origin, "rev-parse", "v1")


async def test_work_in_the_clone_is_lost_only_by_force(tmp_path: Path, origin: Path) -> None:
    where: dict[str, Any] = {"repository": str(origin), "path": "clone"}
    await ok(tmp_path, "checkout", **where)
    clone = tmp_path / "work/clone"
    (clone / "a.txt").write_text("mine")
    commit(origin, "a.txt", "three")
    await refused(tmp_path, "checkout", **where)
    assert (clone / "a.txt").read_text() == "mine"
    await ok(tmp_path, "checkout", **where, force=True)
    assert (clone / "a.txt").read_text() == "three"
    commit(clone, "own.txt", "mine")
    commit(origin, "a.txt", "four")
    assert "commits of its own" in await refused(tmp_path, "checkout", **where)
    await ok(tmp_path, "checkout", **where, force=True)
    assert (clone / "a.txt").read_text() == "four"


async def test_a_folder_that_is_no_clone_is_left_alone(tmp_path: Path, origin: Path) -> None:
    (tmp_path / "work/full").mkdir(parents=True)
    (tmp_path / "work/full/file").write_text("mine")
    assert "no git repository" in await refused(tmp_path, "checkout", repository=str(origin), path="full")
    git(tmp_path / "work", "init", "-q")  # one further up is none of its own either
    assert "no git repository" in await refused(tmp_path, "checkout", repository=str(origin), path="full")
    await ok(tmp_path, "checkout", repository=str(origin), path="clone")
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", "--bare", str(origin), str(other))
    assert "another repository" in await refused(tmp_path, "checkout", repository=str(other), path="clone")
    await ok(tmp_path, "checkout", repository=str(other), path="clone", force=True)


@pytest.mark.parametrize(("ref", "why"), [("nowhere", "has no 'nowhere'"), ("deadbeef", "has no 'deadbeef'")])
async def test_a_clone_that_fails_leaves_nothing(tmp_path: Path, origin: Path, ref: str, why: str) -> None:
    assert why in await refused(tmp_path, "checkout", repository=str(origin), path="clone", ref=ref)
    assert not (tmp_path / "work/clone").exists()


INJECTIONS = [
    {"repository": "--upload-pack=touch PWNED"},
    {"repository": "ext::sh -c touch% PWNED"},
    {"repository": "ssh://-oProxyCommand=touch PWNED/x"},
    {"repository": "-oProxyCommand=touch PWNED:x"},
    {"ref": "--upload-pack=touch PWNED"},
    {"ref": "-f"},
    {"ref": "main:refs/heads/stolen", "depth": 1},
    {"ref": "+main", "depth": 1},
    {"ref": "main\n--force"},
    {"ref": "a..b"},
]


@pytest.mark.parametrize("inputs", INJECTIONS)
async def test_no_value_is_an_option_or_a_command(tmp_path: Path, origin: Path, inputs: dict[str, Any]) -> None:
    await refused(tmp_path, "checkout", **{"repository": str(origin), "path": "clone", **inputs})
    assert not [name for _, _, files in os.walk(tmp_path) for name in files if "PWNED" in name]


async def test_a_path_that_looks_like_an_option_is_a_path(tmp_path: Path, origin: Path) -> None:
    await ok(tmp_path, "checkout", repository=str(origin), path="--bare")
    assert (tmp_path / "work/--bare/a.txt").exists()


async def test_hooks_of_a_clone_do_not_run(tmp_path: Path, origin: Path) -> None:
    await ok(tmp_path, "checkout", repository=str(origin), path="clone", ref="v1")
    hook = tmp_path / "work/clone/.git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch PWNED\n")
    hook.chmod(0o755)
    await ok(tmp_path, "checkout", repository=str(origin), path="clone", ref="main")
    assert not (tmp_path / "work/clone/PWNED").exists()


# ------------------------------------------------------------------------------------------------------- credentials


@contextmanager
def http_server(root: Path, asked: list[str]) -> Iterator[str]:
    """Serve repositories below `root` to who brings the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _serve(self, body: bytes) -> None:
            given = self.headers.get("Authorization", "")
            asked.append(base64.b64decode(given.removeprefix("Basic ")).decode())
            if not asked[-1].endswith(f":{TOKEN}"):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            env = {
                **IDENTITY, "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": "x",
                "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            }  # fmt: skip
            done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            self.send_response(200)
            for line in head.decode().splitlines():
                self.send_header(*line.split(": ", 1))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("inputs", "user", "userinfo"),
    [
        ({"token": "${TOKEN}"}, "x-access-token", ""),
        ({"username": "bot", "password": "${TOKEN}"}, "bot", ""),
        ({}, "bot", "bot:${TOKEN}@"),
    ],
)
async def test_credentials_reach_the_server_and_stay_nowhere(
    tmp_path: Path, origin: Path, inputs: dict[str, Any], user: str, userinfo: str
) -> None:
    asked: list[str] = []
    with http_server(tmp_path, asked) as server:
        address = server.replace("http://", f"http://{userinfo}") + "/origin/.git"
        seen = await act(tmp_path, "checkout", env={"TOKEN": TOKEN}, repository=address, path="clone", **inputs)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert f"{user}:{TOKEN}" in asked
    for folder, _, files in os.walk(tmp_path / "work"):
        for name in files:
            assert TOKEN.encode() not in (Path(folder) / name).read_bytes()
    assert not list((tmp_path / "logs").glob("git-*"))


async def test_a_wrong_token_fails_at_once_and_is_not_repeated(tmp_path: Path, origin: Path) -> None:
    with http_server(tmp_path, []) as server:
        seen = await act(tmp_path, "checkout", repository=f"{server}/origin/.git", path="clone", token="wrong-token")
    assert seen.status is RunStatus.FAILED
    assert "wrong-token" not in error_of(seen)
    assert b"wrong-token" not in b"".join(seen.logs.values())


async def test_a_server_that_does_not_answer_is_left_when_the_run_is_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        seen = await stopped_at(dag(step("q", "git.checkout", repository=address, path="clone")), tmp_path)
    assert seen.nodes()["q"] == "aborted"
    assert not (tmp_path / "work/clone").exists()


# --------------------------------------------------------------------------------------------------------- worktrees


async def test_a_worktree_is_added_and_removed(tmp_path: Path, origin: Path) -> None:
    tree = "${steps.add.outputs.path}"
    text = dag(
        {**step("add", "git.worktree.add", branch="topic", create_branch=True, base="v1"), "working_dir": str(origin)},
        {
            "id": "see",
            "run": ["echo ${steps.add.outputs.path} ${steps.add.outputs.branch_created}", f"cat {tree}/a.txt"],
        },
        {
            **step("q", "git.worktree.remove", path=tree, delete_branch=True),
            "working_dir": str(origin),
        },
    )
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, seen.details()
    path = tmp_path / "origin.worktrees/topic"
    assert seen.out("see") == f"{path} true\none"
    assert json.loads(seen.out("add")) == {
        "operation": "worktree.add", "path": str(path), "branch": "topic", "commit": git(origin, "rev-parse", "v1"),
        "worktree_created": True, "branch_created": True,
    }  # fmt: skip
    assert json.loads(seen.out("q")) == {
        "operation": "worktree.remove", "path": str(path), "branch": "topic", "worktree_removed": True,
        "branch_deleted": True,
    }  # fmt: skip
    assert not path.exists()
    assert "topic" not in git(origin, "branch")


async def test_a_generated_branch_is_the_same_when_the_run_is_retried(tmp_path: Path, origin: Path) -> None:
    first = await ok(tmp_path, "worktree.add", cwd=origin)
    again = await ok(tmp_path, "worktree.add", cwd=origin)
    assert first["branch"].startswith("dagu/")
    assert again == {**first, "worktree_created": False, "branch_created": False}


async def test_a_branch_that_exists_gets_its_worktree(tmp_path: Path, origin: Path) -> None:
    said = await ok(tmp_path, "worktree.add", cwd=origin, branch="feature/x", path=str(tmp_path / "wt"))
    assert (said["path"], said["branch_created"]) == (str(tmp_path / "wt"), False)
    assert (tmp_path / "wt/b.txt").read_text() == "feature"
    assert "has a working tree" in await refused(tmp_path, "worktree.add", cwd=origin, branch="feature/x")


async def test_a_branch_is_made_only_when_asked(tmp_path: Path, origin: Path) -> None:
    assert "there is no branch" in await refused(tmp_path, "worktree.add", cwd=origin, branch="new")


@pytest.mark.parametrize("branch", ["-b", "--help", "a..b", "a b", "x\ny", "a~1", "@{-1}"])
async def test_what_is_no_branch_is_refused(tmp_path: Path, origin: Path, branch: str) -> None:
    for name in ("worktree.add", "worktree.remove"):
        error = await refused(tmp_path, name, cwd=origin, branch=branch)
        assert "refused" in error or "no name of a branch" in error


async def test_what_is_missing_is_removed_already(tmp_path: Path, origin: Path) -> None:
    said = await ok(tmp_path, "worktree.remove", cwd=origin, branch="nowhere", delete_branch=True)
    assert (said["worktree_removed"], said["branch_deleted"]) == (False, False)
    said = await ok(tmp_path, "worktree.remove", cwd=origin, path="/nowhere")
    assert said["worktree_removed"] is False


async def test_the_main_worktree_is_never_removed(tmp_path: Path, origin: Path) -> None:
    for inputs in ({"branch": "main"}, {"path": "."}):
        assert "never removed" in await refused(tmp_path, "worktree.remove", cwd=origin, force=True, **inputs)
    assert (origin / "a.txt").exists()


async def test_work_is_kept_unless_forced(tmp_path: Path, origin: Path) -> None:
    said = await ok(tmp_path, "worktree.add", cwd=origin, branch="topic", create_branch=True)
    tree = Path(said["path"])
    (tree / "new.txt").write_text("mine")
    await refused(tmp_path, "worktree.remove", cwd=origin, branch="topic")
    assert (tree / "new.txt").exists()
    commit(tree, "new.txt", "mine")
    error = await refused(tmp_path, "worktree.remove", cwd=origin, branch="topic", delete_branch=True)
    assert "not merged" in error
    assert (tree / "new.txt").exists()
    (tree / "more.txt").write_text("mine")
    said = await ok(tmp_path, "worktree.remove", cwd=origin, branch="topic", force=True, force_delete_branch=True)
    assert (said["worktree_removed"], said["branch_deleted"]) == (True, True)


async def test_a_folder_that_is_in_no_repository_is_an_error(tmp_path: Path) -> None:
    assert "git worktree failed" in await refused(tmp_path, "worktree.add", branch="x")

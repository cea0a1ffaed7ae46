"""`git.checkout` and `git.worktree.*` by the git program (workflow language, section 4.6).

What a step says is never an option to git: addresses and references that begin with a dash are refused, and values
stand behind `--` or `--end-of-options`. Credentials travel in the environment of git's own process: they are in no
argument list, no stored address and no file. Hooks of the repository do not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, Unavailable
from secure_dagu.run.machine import Result
from secure_dagu.run.snapshot import encode
from secure_dagu.runner import process
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.files import path_below
from secure_dagu.runner.output import Capture

MAX_OUTPUT = 4 * 2**20
"""Bytes of what git says that are read: a list of many thousand worktrees."""
_PROTOCOLS = "file:git:http:https:ssh"
"""What git may be told to speak; `ext::` would run a command."""
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$_GIT_USERNAME" "$_GIT_PASSWORD"; }; f'
_ASKPASS = '#!/bin/sh\nprintf "%s\\n" "$_GIT_PASSPHRASE"\n'


class _Stopped(Exception):
    """The step was stopped while git ran."""


async def checkout(context: StepContext) -> Done:
    """Clone a repository, or fetch into the one that is there, and check out a reference."""
    return await _done(context, _checkout)


async def worktree_add(context: StepContext) -> Done:
    """Give a branch a working tree of its own."""
    return await _done(context, _worktree_add)


async def worktree_remove(context: StepContext) -> Done:
    """Remove a working tree, and its branch if asked."""
    return await _done(context, _worktree_remove)


async def _done(context: StepContext, work: Any) -> Done:
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    try:
        said: dict[str, Any] = await work(context, options)
    except _Stopped:
        return Done(result=Result.ABORTED)
    context.stdout(f"{formats.compact_json(said)}\n".encode(errors="surrogateescape"))
    if context.step.kind == "git.checkout":
        return Done(result=Result.SUCCEEDED, exit_code=0)
    outputs = {key: formats.as_text(value) for key, value in said.items() if key != "operation"}
    return Done(result=Result.SUCCEEDED, exit_code=0, kept={"stepOutputsValue": encode(outputs)})


# ------------------------------------------------------------------------------------------------------- running git


class _Git(Struct, frozen=True):
    """The git program in one folder."""

    context: StepContext
    folder: Path
    env: Mapping[str, str]

    async def ask(self, *args: str) -> str | None:
        """Return what git answers, None when it refuses; what it says on stderr is dropped."""
        code, text, _ = await self._run(args)
        return text.strip() if code == 0 else None

    async def do(self, *args: str) -> str:
        """Return what git answers.

        Raises:
            DefinitionError: it refuses; says why in its own words, which are also in the step's stderr.
        """
        code, text, complaint = await self._run(args)
        if code != 0:
            (self.context.stderr or self.context.stdout)(complaint.encode(errors="surrogateescape") + b"\n")
            lines = [line for line in complaint.splitlines() if line.startswith(("fatal:", "error:"))]
            why = lines[0].partition(": ")[2] if lines else process.error_text(code)
            raise DefinitionError(f"git {args[0]} failed", why=why)
        return text.strip()

    async def _run(self, args: tuple[str, ...]) -> tuple[int, str, str]:
        if self.context.stop.is_set():
            raise _Stopped
        out, err = Capture(MAX_OUTPUT), Capture(MAX_OUTPUT)
        try:
            code = await process.run(
                ["git", *args],
                env=self.env,
                cwd=self.folder,
                stdout=out.write,
                stderr=err.write,
                marker=self.context.marker,
                stop=self.context.stop,
                stopping=self.context.stopping,
            )
        except process.CannotStart as error:
            raise Unavailable("git cannot be started", why=str(error)) from None
        if self.context.stop.is_set():
            raise _Stopped
        return code, out.text(), "" if err.is_over else err.text()


def _environment(context: StepContext, config: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of git: the step's, without what would point git elsewhere, and our rules."""
    env = {
        key: value
        for key, value in context.env.items()
        if not key.startswith(("GIT_DIR", "GIT_WORK_TREE", "GIT_CONFIG"))
    }
    rules = {"core.hooksPath": os.devnull, "advice.detachedHead": "false", **config}
    for number, (key, value) in enumerate(rules.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env | {
        "GIT_CONFIG_COUNT": str(len(rules)),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "LC_ALL": "C",
        **more,
    }


def _name(text: str, what: str) -> str:
    """Return a reference or address that cannot be taken for an option."""
    if text.startswith("-") or re.search(r"[\x00-\x1f\x7f]", text):
        raise DefinitionError(
            f"{what} {text[:80]!r} is refused", why="it begins with a dash or holds a control character"
        )
    return text


# ---------------------------------------------------------------------------------------------------------- checkout


class _Remote(Struct, frozen=True):
    """A repository's address without credentials, and how git gets in."""

    url: str
    config: Mapping[str, str]
    env: Mapping[str, str]


@contextmanager
def _remote(context: StepContext, options: Options) -> Iterator[_Remote]:
    """Give the repository's address apart from its credentials."""
    url = _name(options.needed("repository"), "the repository")
    username, password = options.text("username"), options.text("token") or options.text("password")
    config: dict[str, str] = {}
    env: dict[str, str] = {}
    if url.startswith(("http://", "https://")):
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        username = username or unquote(parts.username or "")
        password = password or unquote(parts.password or "")
        url = urlunsplit(parts._replace(netloc=host))
        if password:
            # For this host only: a redirect elsewhere finds nobody to ask. The empty one forgets the host's helpers.
            config |= {
                "credential.helper": "",
                f"credential.{parts.scheme}://{quote(host, safe=':[]')}.helper": _HELPER,
            }
            env |= {"_GIT_USERNAME": username or "x-access-token", "_GIT_PASSWORD": password}
            if re.search(r"[\r\n\0]", username + password):
                raise DefinitionError("the credentials of the repository cannot be used", why="they hold a line break")
    with tempfile.TemporaryDirectory(prefix="git-", dir=context.request.folders.logs) as folder:
        if key := options.text("ssh_key_path"):
            path = path_below(context.cwd, key)
            phrase = options.text("ssh_passphrase")
            batch = "" if phrase else " -o BatchMode=yes"
            env["GIT_SSH_COMMAND"] = f"ssh -i {shlex.quote(str(path))} -o IdentitiesOnly=yes{batch}"
            if phrase:
                script = Path(folder) / "askpass"
                script.write_text(_ASKPASS)
                script.chmod(0o700)
                env |= {"_GIT_PASSPHRASE": phrase, "SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force"}
        yield _Remote(url, config, env)


async def _checkout(context: StepContext, options: Options) -> dict[str, Any]:
    path = path_below(context.cwd, options.needed("path")).absolute()
    ref = _name(options.text("ref"), "the ref")
    with _remote(context, options) as remote:
        env = _environment(context, remote.config, {**remote.env, "GIT_CEILING_DIRECTORIES": str(path.parent)})
        is_new = not path.exists()
        if not is_new and not path.is_dir():
            raise DefinitionError("with.path is no folder")
        is_empty = is_new or not any(path.iterdir())
        path.mkdir(parents=True, exist_ok=True)
        git = _Git(context, path, env)
        if not is_empty and await git.ask("rev-parse", "--show-cdup") != "":
            raise DefinitionError("with.path is not empty and is no git repository", fix="choose another folder")
        try:
            return await _brought(git, options, remote, path, ref, is_clone=is_empty)
        except BaseException:
            if is_empty:  # half a clone would be taken for a repository the next time
                _emptied(path, remove=is_new)
            raise


async def _brought(
    git: _Git, options: Options, remote: _Remote, path: Path, ref: str, *, is_clone: bool
) -> dict[str, Any]:
    force = options.boolean("force")
    if is_clone:
        await git.do("init", "--quiet")
        await git.do("remote", "add", "--", "origin", remote.url)
    elif (known := await git.ask("config", "--get", "remote.origin.url")) != remote.url:
        if known is not None and not force:
            raise DefinitionError("with.path is a clone of another repository", why="`force` is false")
        await git.do("config", "--replace-all", "remote.origin.url", remote.url)
    before = None if is_clone else await git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    ref = ref or await _default_branch(git)
    if await git.ask("check-ref-format", "--allow-onelevel", ref) is None:
        raise DefinitionError(f"the ref {ref[:80]!r} is no name of a branch, tag or commit")
    commit, is_branch = await _fetched(git, ref, options.integer("depth"))
    forced = ["--force"] if force else []
    if is_branch:
        mine = await git.ask("rev-parse", "--verify", "--quiet", f"refs/heads/{ref}^{{commit}}")
        if mine and not force and await git.ask("merge-base", "--is-ancestor", mine, commit) is None:
            raise DefinitionError(f"the local branch {ref[:80]!r} has commits of its own", why="`force` is false")
        await git.do("checkout", "--quiet", *forced, "--no-track", "-B", ref, commit)
    else:
        await git.do("checkout", "--quiet", *forced, "--detach", commit)
    return {
        "operation": "checkout",
        "path": str(path),
        "ref": ref,
        "commit": commit,
        "cloned": is_clone,
        "changed": before != commit,
    }


async def _default_branch(git: _Git) -> str:
    said = await git.do("ls-remote", "--symref", "--", "origin", "HEAD")
    found = re.match(r"ref: refs/heads/(\S+)\tHEAD", said)
    if found is None:
        raise DefinitionError("the repository has no default branch", why="it is empty or its HEAD is detached")
    return _name(found[1], "the default branch")


async def _fetched(git: _Git, ref: str, depth: int) -> tuple[str, bool]:
    """Fetch what `ref` needs; return its commit, and whether it is a branch."""
    is_commit = re.fullmatch(r"[0-9a-fA-F]{4,64}", ref) is not None
    if depth:
        specs = [(f"+refs/heads/{ref}:refs/remotes/origin/{ref}", True), (f"refs/tags/{ref}", False)]
        for spec, is_branch in [*specs, *([(ref, False)] if is_commit else [])]:
            if await git.ask("fetch", "--quiet", "--no-tags", f"--depth={depth}", "--", "origin", spec) is not None:
                return await git.do("rev-parse", "--verify", "FETCH_HEAD^{commit}"), is_branch
        # Or the commit is one that the server gives nobody by its number.
        await git.do("ls-remote", "--exit-code", "--", "origin", "HEAD")
    shallow = ["--unshallow"] if await git.ask("rev-parse", "--is-shallow-repository") == "true" else []
    everything = "+refs/heads/*:refs/remotes/origin/*"
    await git.do("fetch", "--quiet", "--force", "--prune", "--tags", *shallow, "--", "origin", everything)
    names = [(f"refs/remotes/origin/{ref}", True), (f"refs/tags/{ref}", False)]
    if is_commit:
        names.append((ref, False))
    for name, is_branch in names:
        commit = await git.ask("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if commit is not None:
            return commit, is_branch
    raise DefinitionError(f"the repository has no {ref[:80]!r}", why="neither a branch, nor a tag, nor a commit")


def _emptied(path: Path, *, remove: bool) -> None:
    if remove:
        shutil.rmtree(path, ignore_errors=True)
        return
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------- worktrees


class _Tree(Struct, frozen=True):
    """One working tree; the first of a repository is its main one."""

    path: Path
    branch: str = ""


async def _repository(context: StepContext) -> tuple[_Git, list[_Tree]]:
    """Return git in the main working tree of the repository that the step's folder is in, and all its trees."""
    env = _environment(context, {}, {})
    said = await _Git(context, context.cwd, env).do("worktree", "list", "--porcelain", "-z")
    trees: list[_Tree] = []
    for record in said.split("\0\0"):
        fields = dict(line.partition(" ")[::2] for line in record.strip("\0").split("\0"))
        if "worktree" in fields:
            trees.append(_Tree(Path(fields["worktree"]), fields.get("branch", "").removeprefix("refs/heads/")))
    return _Git(context, trees[0].path, env), trees


async def _worktree_add(context: StepContext, options: Options) -> dict[str, Any]:
    git, trees = await _repository(context)
    given = options.text("branch")
    branch = await _branch(git, given or _generated(context))
    path = trees[0].path.with_name(f"{trees[0].path.name}.worktrees") / branch
    if options.text("path"):
        path = path_below(context.cwd, options.text("path")).absolute()
    there = next((tree for tree in trees if tree.branch == branch), None)
    has_branch = await _has(git, branch)
    if there is not None and there.path.is_dir():
        if there.path.resolve() != path.resolve():
            raise DefinitionError(f"the branch {branch[:80]!r} has a working tree already", why=f"it is {there.path}")
    else:
        await git.do("worktree", "prune")  # whoever removed a folder by hand meant it
        if has_branch:
            await git.do("worktree", "add", "--quiet", "--", str(path), branch)
        elif given and not options.boolean("create_branch", default="base" in options):
            raise DefinitionError(f"there is no branch {branch[:80]!r}", why="`create_branch` is false")
        else:
            base = _name(options.text("base") or "HEAD", "the base")
            commit = await git.do("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
            await git.do("worktree", "add", "--quiet", "--no-track", "-b", branch, "--", str(path), commit)
    return {
        "operation": "worktree.add",
        "path": str(path),
        "branch": branch,
        "commit": await git.do("rev-parse", "--verify", f"refs/heads/{branch}^{{commit}}"),
        "worktree_created": there is None or not there.path.is_dir(),
        "branch_created": not has_branch,
    }


async def _worktree_remove(context: StepContext, options: Options) -> dict[str, Any]:
    git, trees = await _repository(context)
    if ("branch" in options) == ("path" in options):
        raise DefinitionError("git.worktree.remove needs exactly one of branch and path")
    path, branch = Path(), ""
    if "branch" in options:
        branch = await _branch(git, options.needed("branch"))
        tree = next((tree for tree in trees if tree.branch == branch), None)
    else:
        path = path_below(context.cwd, options.needed("path")).absolute()
        tree = next((tree for tree in trees if tree.path.resolve() == path.resolve()), None)
        branch = tree.branch if tree else ""
    if tree is not None and tree.path == trees[0].path:
        raise DefinitionError("the main working tree is never removed")
    drops = options.boolean("force_delete_branch") or options.boolean("delete_branch")
    drops = drops and bool(branch) and await _has(git, branch)
    is_forced = options.boolean("force_delete_branch")
    # Before anything is removed: a step that fails has lost nothing.
    if drops and not is_forced and not await _is_merged(git, branch):
        raise DefinitionError(f"the branch {branch[:80]!r} is not merged", why="`force_delete_branch` is false")
    if tree is not None:
        forced = ["--force", "--force"] if options.boolean("force") else []  # twice: a locked one too
        await git.do("worktree", "remove", *forced, "--", str(tree.path))
    if drops:
        await git.do("branch", "--quiet", "-D", "--", branch)
    return {
        "operation": "worktree.remove",
        "path": str(tree.path if tree else path if path != Path() else ""),
        "branch": branch,
        "worktree_removed": tree is not None,
        "branch_deleted": drops,
    }


async def _branch(git: _Git, name: str) -> str:
    if await git.ask("check-ref-format", "--branch", _name(name, "the branch")) != name:
        raise DefinitionError(f"{name[:80]!r} is no name of a branch")
    return name


async def _has(git: _Git, branch: str) -> bool:
    return await git.ask("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}") is not None


async def _is_merged(git: _Git, branch: str) -> bool:
    return await git.ask("merge-base", "--is-ancestor", f"refs/heads/{branch}", "HEAD") is not None


def _generated(context: StepContext) -> str:
    """Return a branch of this step of this run: the same again when either is retried."""
    run = context.request.task.run
    words = (run.name, run.run_id, context.env.get("DAG_RUN_STEP_NAME", context.step.name))
    return "/".join(["dagu", *(re.sub(r"[^A-Za-z0-9_-]+", "-", str(word)).strip("-") or "x" for word in words)])

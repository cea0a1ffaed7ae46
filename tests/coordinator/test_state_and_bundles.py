"""Shared state, definitions, managed secrets and bundles."""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.coordinator.bundles import MAX_BUNDLE
from secure_dagu.coordinator.service import Options
from secure_dagu.dispatch.model import BundleRef, Caller, Claim, SecretRequest, StateRef, StateSource, Verdict
from secure_dagu.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, Refused
from tests.coordinator.harness import DEFINITION, DISPATCHER, House, Place, a_task, each, worker

W1, W2 = worker("w1"), worker("w2")
REF = StateRef("dag", "sales", "cursor/last")
CANARY = "s3cr3t-canary"
WITH_SECRET = "secrets:\n  - name: TOKEN\n    ref: api/token\n" + DEFINITION


async def put(house: House, caller: Caller, value: bytes, ref: StateRef = REF, **by: str) -> bytes:
    """Put a value and return what is stored."""
    entry = await house.service.state.put_state(
        caller, ref, value, expected_version=None, create_only=False, updated_by=StateSource(**by)
    )
    return entry.value


async def test_values_are_stored_compact_and_digits_are_kept(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        stored = await put(house, DISPATCHER, b' {"a" : [1.10, 1e400, "x  \\" y", 123456789012345678901234567890 ] }\n')
        assert stored == b'{"a":[1.10,1e400,"x  \\" y",123456789012345678901234567890]}'
        for bad in (b"", b"{", b"NaN", b"\xff", b"[" * 100_000, b'"' + b"x" * 1_048_576 + b'"'):
            with pytest.raises(InvalidRequest):
                await put(house, DISPATCHER, bad)


async def test_a_version_conflict_is_one(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await put(house, DISPATCHER, b"1")
        with pytest.raises(Conflict, match="dag state: conflict"):
            await house.service.state.put_state(
                DISPATCHER, REF, b"2", expected_version=None, create_only=True, updated_by=StateSource()
            )


@pytest.mark.parametrize(
    "ref",
    [
        StateRef("other", "sales", "k"), StateRef("dag", "", "k"), StateRef("dag", "..", "k"),
        StateRef("dag", "a/b", "k"), StateRef("dag", "sales", ""), StateRef("dag", "sales", "/k"),
        StateRef("dag", "sales", "a//b"), StateRef("dag", "sales", "a/../b"), StateRef("dag", "sales", "a\\b"),
        StateRef("dag", "sales", "x" * 513),
    ],
)  # fmt: skip
async def test_references_that_are_no_plain_paths_are_refused(place: Place, ref: StateRef) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        with pytest.raises(InvalidRequest, match="dag state: invalid ref"):
            await put(house, DISPATCHER, b"1", ref)


async def test_a_worker_reaches_the_state_of_the_dags_it_runs(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await put(house, DISPATCHER, b"0")
        state = house.service.state
        with pytest.raises(Refused):
            await state.get_state(W1, REF)
        await house.started(W1)
        assert await state.get_state(W1, REF) is not None
        await put(house, W1, b"1", dag_name="sales", run_id="r1", step="one")
        entry = await state.get_state(W1, REF)
        assert entry is not None
        assert (entry.updated_by.run_id, entry.updated_by.step) == ("r1", "one")
        await put(house, W1, b"1", StateRef("global", "_", "k"))
        for scope, namespace in (("dag", "payments"), ("root_dag", "payments")):
            with pytest.raises(Refused):
                await state.list_state(W1, scope=scope, namespace=namespace, prefix="", limit=0)
        with pytest.raises(Refused):
            await put(house, W1, b"1", dag_name="payments", run_id="r1")
        with pytest.raises(Refused):
            await put(house, W2, b"1", StateRef("global", "_", "k"))
        assert await state.delete_state(W1, REF)
        with pytest.raises(InvalidRequest):
            await state.list_state(DISPATCHER, scope="dag", namespace="sales", prefix="", limit=-1)


# -- definitions ------------------------------------------------------------------------------------------------------


def add_dag(place: Place, name: str, text: str = DEFINITION) -> None:
    """Put a definition into the DAG directory."""
    (place.folder / "dags").mkdir(exist_ok=True)
    (place.folder / "dags" / name).write_text(text)


async def test_names_cannot_leave_the_dag_directory(place: Place) -> None:
    add_dag(place, "load.yaml")
    (place.folder / "outside.yaml").write_text("secret: 1")
    (place.folder / "dags" / "link.yaml").symlink_to(place.folder / "outside.yaml")
    os.mkfifo(place.folder / "dags" / "pipe.yaml")
    async with place.coordinator() as house, asyncio.timeout(60):
        text = house.service.state.dag_text
        assert await text(DISPATCHER, "load") == await text(DISPATCHER, "load.yaml") == DEFINITION
        for name in ("../outside", "/etc/passwd", str(place.folder / "outside.yaml"), "link", "pipe", "", ".", "x\0y"):
            assert await text(DISPATCHER, name) is None, name


async def test_a_worker_reads_only_definitions_that_its_tasks_call(place: Place) -> None:
    add_dag(place, "load.yaml", "steps:\n  - name: deeper\n    call: deep\n")
    add_dag(place, "deep.yaml")
    add_dag(place, "payments.yaml")
    async with place.coordinator() as house, asyncio.timeout(60):
        text = house.service.state.dag_text
        with pytest.raises(Refused):
            await text(W1, "load")
        await house.started(W1, definition="steps:\n  - name: one\n    call: load\n")
        assert await text(W1, "load") is not None
        assert await text(W1, "deep") is not None
        with pytest.raises(Refused):
            await text(W1, "payments")
        assert await text(W1, "missing") is None


# -- secrets ----------------------------------------------------------------------------------------------------------


def add_secret(place: Place, path: str, text: str = CANARY + "\n", mode: int = 0o600) -> None:
    """Put a secret's file into the secrets directory."""
    place.options = Options(secrets_dir=place.folder / "secrets")
    file = place.folder / "secrets" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def asks(claim: Claim, **fields: str) -> SecretRequest:
    """Return the request for the declared secret."""
    request = SecretRequest(
        name="TOKEN", ref="api/token", workspace="", check_only=False, attempt_key=claim.task.attempt_key,
        attempt_id=claim.task.attempt_id,
    )  # fmt: skip
    return replace(request, **fields)  # only the text fields are varied


async def test_a_declared_secret_is_served_to_the_holder_of_the_lease(place: Place) -> None:
    add_secret(place, ".global/api/token")
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition=WITH_SECRET)
        state = house.service.state
        assert await state.resolve_secret(W1, asks(claim)) == CANARY
        assert await state.resolve_secret(W1, replace(asks(claim), check_only=True)) == ""


async def test_every_other_request_for_a_secret_gets_the_same_refusal(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    add_secret(place, ".global/api/token")
    add_secret(place, ".global/other")
    add_secret(place, "payments/api/token")
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition=WITH_SECRET)
        bare = await house.started(W2, "r2")
        unproven = replace(W1, proven=False)
        for caller, request in (
            (W2, asks(claim)), (W1, asks(claim, ref="other")), (W1, asks(claim, name="OTHER")),
            (W1, asks(claim, workspace="payments")), (W1, asks(claim, attempt_id="x")), (unproven, asks(claim)),
            (W1, asks(claim, attempt_key="x")), (W2, asks(bare)),
        ):  # fmt: skip
            with pytest.raises(Refused) as refusal:
                await house.service.state.resolve_secret(caller, request)
            assert str(refusal.value) == "secret reference access denied"
        assert (await house.report(W1, claim, 4)).accepted
        with pytest.raises(Refused):
            await house.service.state.resolve_secret(W1, asks(claim))
        for bad in ("../x", "a/../b", "A", "/a", "a//b"):
            with pytest.raises(InvalidRequest):
                await house.service.state.resolve_secret(W1, asks(claim, ref=bad))
    assert CANARY not in capsys.readouterr().out


async def test_the_workspace_of_the_dag_comes_before_the_global_one(place: Place) -> None:
    add_secret(place, ".global/api/token", "global")
    add_secret(place, "payments/api/token", "ours")
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition="labels: [workspace=payments]\n" + WITH_SECRET)
        state = house.service.state
        assert await state.resolve_secret(W1, asks(claim, workspace="payments")) == "ours"
        (place.folder / "secrets" / "payments" / "api" / "token").unlink()
        assert await state.resolve_secret(W1, asks(claim, workspace="payments")) == "global"
        with pytest.raises(Refused):
            await state.resolve_secret(W1, asks(claim))


async def test_a_secret_that_others_can_read_is_not_served(place: Place) -> None:
    add_secret(place, ".global/api/token", mode=0o640)
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition=WITH_SECRET)
        with pytest.raises(PreconditionFailed):
            await house.service.state.resolve_secret(W1, asks(claim))
        token = place.folder / "secrets" / ".global" / "api" / "token"
        token.unlink()
        with pytest.raises(NotFound):
            await house.service.state.resolve_secret(W1, asks(claim))
        token.symlink_to(place.folder / "elsewhere")
        (place.folder / "elsewhere").write_text(CANARY)
        with pytest.raises(NotFound):
            await house.service.state.resolve_secret(W1, asks(claim))


async def test_a_worker_cannot_grant_itself_secrets_through_a_child(place: Place) -> None:
    """It writes the child's YAML, claims the child, and asks: the way round the declaration check (gap G23)."""
    add_secret(place, ".global/api/token")
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1)
        run = claim.task.run
        child = a_task("c1", name="evil", root=run, parent=run, definition=WITH_SECRET, labels="workspace=payments")
        await house.service.desk.dispatch(W1, child)
        grabbed = await house.take(W1)
        with pytest.raises(Refused):
            await house.service.state.resolve_secret(W1, asks(grabbed))
        # What its parent has, or what stands in the DAG directory word for word, it may have.
        add_dag(place, "load.yaml", WITH_SECRET)
        known = a_task("c2", name="load", root=run, parent=run, definition=WITH_SECRET)
        await house.service.desk.dispatch(W1, known)
        assert await house.service.state.resolve_secret(W1, asks(await house.take(W1))) == CANARY


# -- bundles ----------------------------------------------------------------------------------------------------------


async def store_bundle(house: House, data: bytes, digest: str = "", size: int = -1) -> Verdict:
    """Put a bundle."""
    ref = BundleRef(digest or sha256(data).hexdigest(), len(data) if size < 0 else size, "dag.yaml")
    return await house.service.bundles.put(DISPATCHER, ref, each(data[:3], data[3:]))


async def test_a_bundle_is_stored_once_and_read_back(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        data = b"archive" * 400_000
        digest = sha256(data).hexdigest()
        assert not await house.service.bundles.has(DISPATCHER, digest)
        assert (await store_bundle(house, data)).accepted
        assert (await store_bundle(house, data)).accepted
        assert await house.service.bundles.has(DISPATCHER, digest)
        assert b"".join([p async for p in house.service.bundles.get(DISPATCHER, digest)]) == data
        path = place.folder / "bundles" / digest[:2] / f"{digest}.tar.gz"
        assert path.stat().st_mode & 0o777 == 0o600


async def test_what_is_not_the_promised_bundle_is_not_kept(place: Place) -> None:
    place.options = Options(bundle_store_bytes=100)
    async with place.coordinator() as house, asyncio.timeout(60):
        assert "digest mismatch" in (await store_bundle(house, b"data", digest="0" * 64)).error
        assert "size mismatch" in (await store_bundle(house, b"data", size=5)).error
        assert "full" in (await store_bundle(house, b"x" * 101)).error
        for digest in ("", "x", "../../etc", "A" * 64):
            with pytest.raises(InvalidRequest, match="valid workspace bundle digest is required"):
                await house.service.bundles.has(DISPATCHER, digest)
        with pytest.raises(NotFound, match="workspace bundle not found"):
            await anext(aiter(house.service.bundles.get(DISPATCHER, "0" * 64)))
        assert not [path for path in (place.folder / "bundles").rglob("*") if path.is_file()]


async def test_a_bundle_beyond_the_limit_is_an_error(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        pieces = each(*[b"\0" * (1024 * 1024)] * (MAX_BUNDLE // 1024 // 1024 + 1))
        with pytest.raises(InvalidRequest, match="exceeds"):
            await house.service.bundles.put(DISPATCHER, BundleRef("0" * 64, 0, "d"), pieces)


async def test_a_worker_sees_only_bundles_of_its_tasks(place: Place) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        data = b"archive"
        digest = sha256(data).hexdigest()
        await store_bundle(house, data)
        with pytest.raises(Refused):
            await house.service.bundles.has(W1, digest)
        await house.started(W1, bundle=BundleRef(digest, len(data), "dag.yaml"))
        assert b"".join([p async for p in house.service.bundles.get(W1, digest)]) == data
        with pytest.raises(Refused):
            await anext(aiter(house.service.bundles.get(W2, digest)))


def test_secrets_are_looked_for_below_the_directory_only(tmp_path: Path) -> None:
    from secure_dagu.store.secret_files import SecretFiles

    (tmp_path / "outside").write_text(CANARY)
    (tmp_path / "outside").chmod(0o600)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "link").symlink_to(tmp_path)
    files = SecretFiles(tmp_path / "secrets")
    assert files.get("link", "outside") is None
    assert files.get("..", "outside") is None

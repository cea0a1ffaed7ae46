"""`s3.upload`, `s3.download`, `s3.list`, `s3.delete` (workflow language, section 4.6).

The library blocks, so it works in a thread of its own. A stop does not wait for that thread: it ends the step, and the
thread gives up at its next piece of data or its next request.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded, NotFound, Refused, Unavailable
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below

CONNECT_S = 10.0
READ_S = 60.0
ATTEMPTS = 3
PAGE = 1000
"""Keys of one request, the most that the protocol has."""
MAX_DELETED = 100_000
"""Objects of one delete: what is named on stdout must fit into it."""
DEFAULT_REGION = "us-east-1"

Answer = dict[str, Any]


class _Stopped(Exception):
    """The step is over; whoever still works for it ends."""


async def upload(context: StepContext) -> Done:
    """Put a local file into the bucket."""
    return await _work(context, _upload)


async def download(context: StepContext) -> Done:
    """Get an object; the file appears when it is whole."""
    return await _work(context, _download)


async def list_(context: StepContext) -> Done:
    """List objects."""
    return await _work(context, _list)


async def delete(context: StepContext) -> Done:
    """Delete an object, or with `recursive` all below a prefix."""
    return await _work(context, _delete)


async def _work(context: StepContext, operation: Callable[[Bucket], Answer]) -> Done:
    defaults = context.dag.step_defaults.get("s3", {})
    values = resolve_tree({**defaults, **context.step.inputs}, context.scope, FieldMode.FIELD)
    return await unless_stopped(context.stop, _run(context, Options(values, name="s3"), operation))


async def _run(context: StepContext, options: Options, operation: Callable[[Bucket], Answer]) -> Done:
    started, is_over = time.monotonic(), threading.Event()
    output = options.choice("output_format", ("json", "jsonl"), "json")
    try:
        answer = await _in_thread(lambda: operation(Bucket(context, options, is_over)))
    finally:
        is_over.set()
    took = f"{(time.monotonic() - started) * 1000:.0f}ms"
    if not options.boolean("quiet"):
        context.stdout(_text({**answer, "duration": took}, output).encode())
    return SUCCESS


def _text(answer: Answer, output: str) -> str:
    if output == "jsonl" and "objects" in answer:
        return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in answer["objects"])
    return json.dumps(answer, ensure_ascii=False, indent=None if output == "jsonl" else 2) + "\n"


async def _in_thread(work: Callable[[], Answer]) -> Answer:
    """Do blocking work in a thread that nobody has to wait for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(answer or {})

    def run() -> None:
        answer, problem = None, None
        try:
            answer = work()
        except Exception as error:
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, answer, problem)

    threading.Thread(target=run, name="s3", daemon=True).start()
    return await done


class Bucket:
    """A bucket, and what a step wants of it. All of this blocks."""

    def __init__(self, context: StepContext, options: Options, is_over: threading.Event) -> None:
        self.options, self.name = options, options.needed("bucket")
        self._cwd = context.cwd
        self._is_over = is_over
        self.client = _client(context, options)
        self.client.meta.events.register("before-send.s3", self._check)

    def _check(self, **_: Any) -> None:
        if self._is_over.is_set():
            raise _Stopped

    def moved(self, _size: int) -> None:
        """Take notice that data has moved; the time to give up."""
        self._check()

    def path(self, key: str) -> Path:
        """Return a local path that the author gave."""
        return path_below(self._cwd, self.options.needed(key))

    def about(self, operation: str, key: str) -> Answer:
        """Return how an answer about one object begins."""
        uri = f"s3://{self.name}/{key}"
        return {"operation": operation, "success": True, "bucket": self.name, "key": key, "uri": uri}

    def pages(self, *, limit: int, **query: str) -> Iterator[Answer]:
        """Return pages of a listing, up to `limit` keys."""
        token: dict[str, str] = {}
        while limit > 0:
            page = self.ask("list_objects_v2", MaxKeys=min(limit, PAGE), **query, **token)
            yield page
            limit -= len(page.get("Contents", ())) + len(page.get("CommonPrefixes", ()))
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def ask(self, call: str, *args: Any, **words: Any) -> Any:
        """Call the library about this bucket; its errors become ours."""
        errors = library("botocore.exceptions", extra="s3")
        failures = library("boto3.exceptions", extra="s3")
        named = {} if args else {"Bucket": self.name}
        try:
            return getattr(self.client, call)(*args, **named, **words)
        except errors.ClientError as error:
            raise _told(error.response, self.name) from None
        except failures.Boto3Error as error:
            cause = error.__context__
            raise _told(getattr(cause, "response", {}), self.name) from None
        except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.ProfileNotFound) as error:
            raise Refused("there are no S3 credentials", why=str(error)) from None
        except errors.BotoCoreError as error:
            raise Unavailable("S3 cannot be used", why=type(error).__name__) from None


def _told(response: Answer, bucket: str) -> Exception:
    """Return an error of ours for one of the server's, with its code, which is a word, and nothing else of it."""
    code = str(response.get("Error", {}).get("Code", ""))[:64]
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return NotFound("there is no such object or bucket", why=f"bucket {bucket}: {code}")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        return Refused("S3 refused", why=f"bucket {bucket}: {code}")
    return Unavailable("S3 did not do it", why=f"bucket {bucket}: {code or 'no answer'}")


def _upload(bucket: Bucket) -> Answer:
    options, source = bucket.options, bucket.path("source")
    if not source.is_file():
        raise DefinitionError(f"{source} cannot be uploaded", why="there is no such file")
    key = options.text("key") or options.text("destination") or source.name
    extra: dict[str, Any] = {}
    for name, argument in (("content_type", "ContentType"), ("storage_class", "StorageClass")):
        if options.text(name):
            extra[argument] = options.text(name)
    if metadata := options.any("metadata"):
        extra["Metadata"] = {name: formats.as_text(value) for name, value in metadata.items()}
    if tags := options.any("tags"):
        extra["Tagging"] = urlencode({name: formats.as_text(value) for name, value in tags.items()})
    size = source.stat().st_size
    bucket.ask("upload_file", str(source), bucket.name, key, ExtraArgs=extra, Callback=bucket.moved, Config=_transfer())
    etag = bucket.ask("head_object", Key=key).get("ETag", "").strip('"')
    answer = {**bucket.about("upload", key), "etag": etag, "size": size, "source": str(source)}
    if "ContentType" in extra:
        answer["contentType"] = extra["ContentType"]
    return answer


def _download(bucket: Bucket) -> Answer:
    options, destination = bucket.options, bucket.path("destination")
    key = options.text("key") or options.needed("source")
    if destination.is_dir() or options.text("destination").endswith("/"):
        name = key.rstrip("/").rpartition("/")[2]
        if name in ("", ".", ".."):
            raise DefinitionError("s3.destination must name a file", why=f"the key {key[:100]!r} ends in no file name")
        destination = destination / name
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f"{destination.name}.{secrets.token_hex(6)}.part")
    head = bucket.ask("head_object", Key=key)
    try:
        bucket.ask("download_file", bucket.name, key, str(temporary), Callback=bucket.moved, Config=_transfer())
        bucket.moved(0)
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)
    etag, size = head.get("ETag", "").strip('"'), destination.stat().st_size
    return {**bucket.about("download", key), "etag": etag, "size": size, "destination": str(destination)}


def _list(bucket: Bucket) -> Answer:
    options = bucket.options
    limit = options.integer("max_keys", PAGE, minimum=1, maximum=MAX_DELETED)
    query = {"Prefix": options.text("prefix")}
    if options.text("delimiter") and not options.boolean("recursive"):
        query["Delimiter"] = options.text("delimiter")
    objects: list[Answer] = []
    prefixes: list[str] = []
    for page in bucket.pages(limit=limit, **query):
        objects += (_entry(found) for found in page.get("Contents", ()))
        prefixes += (found["Prefix"] for found in page.get("CommonPrefixes", ()))
    answer = {"operation": "list", "success": True, "bucket": bucket.name, "prefix": query["Prefix"]}
    if "Delimiter" in query:
        answer["commonPrefixes"] = prefixes
    return {**answer, "objects": objects, "totalCount": len(objects)}


def _entry(found: Answer) -> Answer:
    return {
        "key": found["Key"],
        "size": found.get("Size", 0),
        "lastModified": found["LastModified"].strftime("%Y-%m-%dT%H:%M:%SZ") if "LastModified" in found else "",
        "etag": found.get("ETag", "").strip('"'),
        "storageClass": found.get("StorageClass", "STANDARD"),
    }


def _delete(bucket: Bucket) -> Answer:
    options = bucket.options
    key, prefix = options.text("key"), options.text("prefix")
    if bool(key) == bool(prefix):
        raise DefinitionError("s3.delete needs key or prefix", why="exactly one of them")
    if prefix and not options.boolean("recursive"):
        raise DefinitionError("s3.delete of a prefix needs `recursive: true`", why="it deletes all that is below it")
    if key:
        bucket.ask("delete_object", Key=key)
        keys = [key]
    else:
        keys = _delete_below(bucket, prefix)
    return {
        "operation": "delete", "success": True, "bucket": bucket.name, "deletedCount": len(keys), "deletedKeys": keys,
    }  # fmt: skip


def _delete_below(bucket: Bucket, prefix: str) -> list[str]:
    found = [
        entry["Key"]
        for page in bucket.pages(limit=MAX_DELETED + 1, Prefix=prefix)
        for entry in page.get("Contents", ())
    ]
    if len(found) > MAX_DELETED:
        raise LimitExceeded("too many objects to delete in one step", why=f"the limit is {MAX_DELETED}")
    for start in range(0, len(found), PAGE):
        batch = [{"Key": key} for key in found[start : start + PAGE]]
        answer = bucket.ask("delete_objects", Delete={"Objects": batch, "Quiet": True})
        if answer.get("Errors"):
            raise _told({"Error": answer["Errors"][0]}, bucket.name)
    return found


def _transfer() -> Any:
    return library("boto3.s3.transfer", extra="s3").TransferConfig(use_threads=False)


def _client(context: StepContext, options: Options) -> Any:
    """Return a client of the library.

    Credentials are the step's, or those in its environment, or the library's files and instance roles. What this
    process has in its own environment is not the author's to use (configuration reference, section 10).
    """
    library("boto3", extra="s3")
    env, core = context.env, library("botocore.session", extra="s3")
    session = core.Session(profile=options.text("profile") or env.get("AWS_PROFILE") or None)
    session.get_component("credential_provider").remove("env")
    access, secret = options.text("access_key_id"), options.text("secret_access_key")
    token = options.text("session_token")
    if not access and not options.text("profile"):
        access, secret = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
        token = env.get("AWS_SESSION_TOKEN", "")
    is_plain = options.boolean("disable_ssl")
    endpoint = options.text("endpoint")
    if endpoint and "://" not in endpoint:
        endpoint = f"{'http' if is_plain else 'https'}://{endpoint}"
    region = options.text("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    errors = library("botocore.exceptions", extra="s3")
    try:
        return library("boto3", extra="s3").Session(botocore_session=session).client(
            "s3",
            region_name=region or session.get_config_variable("region") or DEFAULT_REGION,
            endpoint_url=endpoint or None,
            use_ssl=not is_plain,
            aws_access_key_id=access or None,
            aws_secret_access_key=secret or None,
            aws_session_token=token or None,
            config=library("botocore.config", extra="s3").Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                s3={"addressing_style": "path" if options.boolean("force_path_style") else "auto"},
                # Other makers' servers do not all know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )  # fmt: skip
    except (errors.BotoCoreError, ValueError) as error:
        raise DefinitionError("the S3 settings cannot be used", why=str(error)[:200]) from None

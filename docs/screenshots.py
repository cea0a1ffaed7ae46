"""Take the pictures of the Web UI that the pages of `docs/` show.

`python docs/screenshots.py` starts a coordinator with its Web UI and a worker over mutual TLS in a temporary home, runs
some workflows, looks at the pages with Chromium and writes `docs/images/web-*.png`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.async_api import Page, async_playwright

IMAGES = Path(__file__).parent / "images"
PROGRAM = Path(sys.executable).with_name("secure-dagu")
WEB, GRPC, HEALTH, WORKER_HEALTH = 18080, 18055, 18091, 18092
URL = f"http://127.0.0.1:{WEB}"
ADA = {"username": "ada", "password": "correct horse battery"}
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}

WORKFLOWS = {
    "etl": """\
description: Nightly load of the warehouse from three sources.
labels: [team=data, nightly]
schedule: "30 2 * * *"
steps:
  - id: customers
    run: sleep 0.4; echo "1,204 customers"
  - id: orders
    run: sleep 0.9; echo "48,113 orders"
  - id: stock
    run: sleep 0.6; echo "7,310 items"
  - id: check
    depends: [customers, orders, stock]
    run: |
      for table in customers orders stock; do printf '\\033[32mok\\033[0m   %s\\n' $table; sleep 0.2; done
      printf '\\033[33mwarn\\033[0m 3 orders without a customer\\n'
  - id: load
    depends: check
    run: sleep 0.5; echo loaded
    retry_policy: {limit: 2, interval_sec: 1}
  - id: report
    depends: load
    run: |
      printf '**48,113** orders, 3 of them without a customer.\\n' > "$DAG_RUN_ARTIFACTS_DIR/report.md"
""",
    "train": """\
description: Trains the model on a machine with a GPU.
labels: [team=ml]
worker_selector: {gpu: "true"}
params:
  - {name: epochs, type: integer, default: 3, minimum: 1, maximum: 50, description: How often over the data}
  - {name: dataset, enum: [small, full], default: small}
steps:
  - id: train
    run: for n in 1 2 3; do echo "epoch $n of ${params.epochs} on ${params.dataset}"; sleep 0.5; done
  - id: evaluate
    depends: train
    run: echo "accuracy 0.97"
""",
    "release": """\
description: Releases what was built, once somebody says so.
labels: [team=ops]
steps:
  - id: build
    run: echo built
  - id: release
    depends: build
    approval: {prompt: "Release build 42?", input: [comment]}
    run: echo released
""",
    "import-partner": """\
description: Fetches the partner's file; it fails when there is none.
labels: [team=data]
schedule: "*/30 * * * *"
steps:
  - id: fetch
    run: sleep 0.3; echo "no file today" >&2; exit 3
  - id: parse
    depends: fetch
    run: echo parsed
""",
    "watch": """\
description: Watches the queue of the shop while it is open.
labels: [team=ops]
steps:
  - id: look
    run: for n in $(seq 1 600); do echo "queue length $((n % 7))"; sleep 0.5; done
  - id: close
    depends: look
    run: echo closed
""",
}


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "DAGU_HOME": str(home), "LANG": "C.UTF-8", "NO_COLOR": "1"}


@contextmanager
def _service(home: Path, *words: str, ready: str) -> Iterator[None]:
    log = home / f"{words[0]}.log"
    with log.open("wb") as sink:
        running = subprocess.Popen([PROGRAM, *words], env=_environment(home), stdout=sink, stderr=sink)
    try:
        until = time.monotonic() + 60
        while ready not in log.read_text():
            if running.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{words[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=60)


@contextmanager
def installation(folder: Path) -> Iterator[Path]:
    """Run `start-all` with a coordinator, and a worker; yield the home."""
    home = folder / "home"
    (home / "dags").mkdir(parents=True)
    for name, text in WORKFLOWS.items():
        (home / "dags" / f"{name}.yaml").write_text(text)
    issued = folder / "gpu-1"
    for words in (
        ("pki", "init", "--advertise", "localhost"),
        ("pki", "issue", "worker", "gpu-1", "--labels", "gpu=true", "--out", str(issued)),
    ):
        subprocess.run([PROGRAM, *words], env=_environment(home), check=True, capture_output=True)
    files = (f"--peer.cert-file={issued}/gpu-1.crt", f"--peer.key-file={issued}/gpu-1.key")
    server = _service(
        home, "start-all", f"--port={WEB}", "--coordinator.host=127.0.0.1", "--coordinator.advertise=localhost",
        f"--coordinator.port={GRPC}", f"--coordinator.health-port={HEALTH}", ready="coordinator.ready",
    )  # fmt: skip
    worker_home = folder / "worker"
    worker_home.mkdir()
    worker = _service(
        worker_home, "worker", "--worker.id=gpu-1", "--worker.labels=gpu=true",
        f"--worker.coordinators=localhost:{GRPC}", f"--worker.health-port={WORKER_HEALTH}", *files,
        f"--peer.client-ca-file={issued}/ca.crt",
        ready="coordinator.reached",
    )  # fmt: skip
    with server, worker:
        yield home


class Api:
    """The REST API, as somebody who is logged in."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self._client, self._headers = client, {"X-CSRF-Token": token}

    async def start(self, name: str) -> str:
        """Start a workflow; return the path of its run's page."""
        answer = await self._client.post(f"/api/v1/dags/{name}/start", json={}, headers=self._headers)
        answer.raise_for_status()
        return f"/dag-runs/{name}/{answer.json()['dagRunId']}"

    async def stop(self, run: str) -> None:
        """Stop a run."""
        (await self._client.post(f"/api/v1{run}/stop", headers=self._headers)).raise_for_status()

    async def wait(self, run: str, *statuses: str) -> None:
        """Wait until a run has one of these statuses."""
        until, said = time.monotonic() + 60, ""
        while said not in statuses:
            if time.monotonic() > until:
                raise RuntimeError(f"{run} is {said}")
            await asyncio.sleep(0.2)
            said = (await self._client.get(f"/api/v1{run}")).json()["dagRunDetails"]["statusLabel"]


async def take() -> None:
    """Run what is shown, then look at it."""
    async with httpx.AsyncClient(base_url=URL, timeout=60) as client:
        (await client.post("/api/v1/auth/setup", json=ADA)).raise_for_status()
        answer = await client.post("/api/v1/auth/login", json={**ADA, "cookie": True})
        answer.raise_for_status()
        api = Api(client, answer.json()["formToken"])
        runs: dict[str, str] = {}
        for name, ends in (
            ("etl", "succeeded"), ("train", "succeeded"), ("import-partner", "failed"), ("etl", "succeeded"),
            ("release", "waiting"), ("watch", "running"),
        ):  # fmt: skip
            runs[name] = await api.start(name)
            await api.wait(runs[name], ends)
        await _look(runs, [{"name": one.name, "value": one.value or "", "url": URL} for one in client.cookies.jar])
        await api.stop(runs["watch"])


async def _look(runs: Mapping[str, str], cookies: list[dict[str, str]]) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for dark in (False, True):
            context = await browser.new_context(viewport=WIDE, color_scheme="dark" if dark else "light")
            await context.add_cookies(cookies)  # type: ignore[arg-type]
            page = await context.new_page()
            if dark:
                await _shoot(page, "/?span=1h", "web-overview-dark")
                continue
            await _shoot(page, "/?span=1h", "web-overview")
            await _shoot(page, "/dags", "web-definitions")
            await _shoot(page, "/dags/etl/edit", "web-editor")
            await _shoot(page, "/dags/train/start", "web-start")
            await _shoot(page, "/dag-runs", "web-runs")
            await _shoot(page, runs["etl"], "web-run")
            await _shoot(page, f"{runs['etl']}/log?step=check", "web-log")
            await _shoot(page, "/workers", "web-workers")
            await _shoot(page, "/audit-logs", "web-audit")
            await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            await _shoot(page, runs["import-partner"], "web-phone")
        await browser.close()


async def _shoot(page: Page, path: str, name: str) -> None:
    await page.goto(URL + path)
    await page.wait_for_timeout(800)  # what scripts add after loading: lines of a log, problems of a text
    await page.screenshot(path=str(IMAGES / f"{name}.png"))


def main() -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-pictures-") as folder, installation(Path(folder)):
        asyncio.run(take())


if __name__ == "__main__":
    main()

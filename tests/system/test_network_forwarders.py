"""Networks with something in between that passes bytes: forwarders, SSH, a proxy, a path that cuts what is idle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from secure_dagu.config.settings import Coordinator
from tests import needs
from tests.system.guide import NETWORKS, Block, guide, until
from tests.system.lab import Lab, Machine

UNITS = Path(__file__).resolve().parents[2] / "deploy/systemd"
NAME = "coordinator.example.com"
SERVE = "serve --yes --tcp=50055 tcp://127.0.0.1:50055"


def two(net: Lab, **names: str) -> tuple[Machine, Machine]:
    """Return a coordinator's and a worker's machine on one network."""
    needs.program("socat", package="socat")
    coordinator = net.machine("coordinator", eth0="lan 10.0.0.5/24", names=names or {NAME: "10.0.0.5"})
    return coordinator, net.machine("worker", eth0="lan 10.0.0.20/24")


def sources(coordinator: Machine) -> set[str]:
    """Return from where workers came, as the audit log has it."""
    shown = json.loads(coordinator.ok("secure-dagu audit show --action link.opened --actor worker/ --json"))
    return {record["address"].rpartition(":")[0] for record in shown["records"]}


def test_tailscale_serve_brings_workers_to_a_coordinator_on_loopback(net: Lab) -> None:
    needs.program("socat", package="socat")
    coordinator = net.machine(
        "coordinator", tailscale0="tailnet 100.64.0.5/10", names={"coordinator.tail1234.ts.net": "100.64.0.5"}
    )
    worker = net.machine("worker", tailscale0="tailnet 100.64.0.20/10")
    forward = "socat TCP-LISTEN:50055,bind=100.64.0.5,fork,reuseaddr TCP:127.0.0.1:50055"
    coordinator.program("tailscale", f'[ "$*" = "{SERVE}" ] && exec {forward}\necho "not known: $*" >&2; exit 64\n')
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "tailscale.md")
        assert "Succeeded" in page.printed["coordinator"]
        assert coordinator.listening() >= {"127.0.0.1:50055", "100.64.0.5:50055"}
    assert f"/tailscale {SERVE}\n" in (UNITS / "secure-dagu-tailscale-serve.service").read_text()


def test_three_forwarders_and_the_true_source_where_the_forwarder_says_it(net: Lab) -> None:
    needs.program("haproxy", package="haproxy")
    needs.program("nginx", package="nginx-light")
    coordinator, worker = two(net)
    seen: dict[str, set[str]] = {}
    with guide(coordinator=coordinator, worker=worker) as page:

        def tried(way: str) -> None:
            seen[way] = sources(coordinator)
            if way == "haproxy":
                # A header of one's own making, from an address that is not listed.
                coordinator.file("~/header", "")
                header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x01\x01\x01\x02\x02\x02\x02\0\x01\0\x02"
                (coordinator.home / "header").write_bytes(header)
                coordinator.sh("socat -t2 OPEN:header TCP:127.0.0.1:50055,bind=127.0.0.2")
                page.service("coordinator", "secure-dagu coordinator").wait_for(
                    r"link.refused.*address=127\.0\.0\.2:.*proxy_header"
                )

        page.follow(NETWORKS / "tcp-forwarder.md", tried=tried)
        assert "Succeeded" in page.printed["coordinator"]
        assert "10.0.0.20:" in page.printed["coordinator"]
    assert seen["socat"] == {"127.0.0.1"}
    assert seen["nginx"] == {"127.0.0.1"}
    assert seen["haproxy"] == {"127.0.0.1", "10.0.0.20"}


@contextmanager
def ssh_server(machine: Machine, *clients: Machine) -> Iterator[None]:
    """Run a real SSH server on a machine, whose key the clients know under both of its names."""
    needs.program("sshd", package="openssh-server")
    machine.ok(f"ssh-keygen -q -t ed25519 -N '' -f {machine.folder}/etc/ssh/host")
    machine.file("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\nHostKey /etc/ssh/host\nUsePAM no\n")
    public = (machine.folder / "etc/ssh/host.pub").read_text()
    for client in clients:
        client.file("~/.ssh/known_hosts", f"{NAME},gate.example.com {public}")
    with machine.stays("/usr/sbin/sshd -D -e") as server:
        server.wait_for("Server listening")
        yield


def with_tunnel_user(machine: Machine) -> None:
    """Add what `useradd` adds."""
    for name, line in (
        ("passwd", "dagu-tunnel:x:64999:64999::/nonexistent:/usr/sbin/nologin"),
        ("group", "dagu-tunnel:x:64999:"),
        ("shadow", "dagu-tunnel:*:20000::::::"),
    ):
        place = machine.folder / "etc" / name
        before = (place if place.exists() else Path("/etc") / name).read_text()
        machine.file(f"/etc/{name}", f"{before}{line}\n")


def test_ssh_brings_a_worker_to_a_coordinator_on_loopback_and_nowhere_else(net: Lab) -> None:
    coordinator, worker = two(net)
    with_tunnel_user(coordinator)
    with ExitStack() as server, guide(coordinator=coordinator, worker=worker) as page:

        def did(block: Block) -> None:
            if "sshd_config.d" in block.words.get("file", ""):
                server.enter_context(ssh_server(coordinator, worker))

        page.follow(NETWORKS / "ssh-forward.md", did=did)
        assert "Succeeded" in page.printed["coordinator"]
        assert sources(coordinator) == {"127.0.0.1"}
        assert not worker.reaches("10.0.0.5:50055")
        other = "ssh -i ~/.ssh/dagu-tunnel -o BatchMode=yes"
        shell = worker.sh(f"{other} dagu-tunnel@{NAME} id")
        assert "uid=" not in shell.stdout
        elsewhere = worker.sh(f"{other} -W 127.0.0.1:8091 dagu-tunnel@{NAME}")
        assert "administratively prohibited" in elsewhere.stderr


def test_a_worker_through_ssh_and_a_direct_one_share_a_coordinator(net: Lab) -> None:
    coordinator = net.machine("coordinator", eth0="lan 10.0.0.5/24", eth1="far 192.0.2.5/24")
    near = net.machine("near", eth0="lan 10.0.0.20/24", names={NAME: "10.0.0.5", "gate.example.com": "192.0.2.5"})
    far = net.machine("far", eth0="far 192.0.2.30/24")
    far.file("/etc/hosts", "127.0.0.1 localhost\n192.0.2.5 gate.example.com\n")  # the inner name means nothing there
    with_tunnel_user(coordinator)
    far.ok("mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/dagu-tunnel")
    (coordinator.folder / "etc/ssh").mkdir()
    coordinator.file("/etc/ssh/dagu-tunnel.keys", (far.home / ".ssh/dagu-tunnel.pub").read_text())
    coordinator.file("/etc/ssh/sshd_config.d/keys.conf", "AuthorizedKeysFile /etc/ssh/dagu-tunnel.keys\n")
    with ssh_server(coordinator, far), guide(coordinator=coordinator, near=near, far=far) as page:
        page.follow(NETWORKS / "mixed.md")
        said = page.printed["coordinator"]
        assert "done near" in said
        assert "done far" in said
        assert not far.reaches("10.0.0.5:50055")
        assert "owner.unreachable" not in page.said("far"), "its certificate proves both names"


def test_a_silent_follower_outlives_a_path_that_cuts_what_is_idle(net: Lab) -> None:
    needs.program("haproxy", package="haproxy")
    coordinator, worker = two(net, **{NAME: "10.0.0.9"})
    balancer = net.machine("balancer", eth0="lan 10.0.0.9/24")
    go = worker.home / "go"
    coordinator.file(
        "~/silent.yaml", f"steps:\n  - run: echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo over\n"
    )
    with guide(coordinator=coordinator, worker=worker, balancer=balancer) as page:
        page.follow(NETWORKS / "idle-paths.md")
        with coordinator.stays("secure-dagu dispatch silent.yaml --follow") as follower:
            follower.wait_for("begun")
            # Nothing comes over this connection; once it is cut, the other one has been silent for longer than allowed.
            with worker.stays("socat -d -d -u TCP:10.0.0.9:50055 STDOUT") as idle:
                assert idle.wait() == 0
            go.write_text("")
            assert follower.wait() == 0, follower.text
            assert "over" in follower.text


def test_without_a_setting_a_connection_is_never_silent_for_a_minute() -> None:
    assert timedelta(seconds=1) < Coordinator().keepalive <= timedelta(seconds=30)


def test_an_http_proxy_passes_mutual_tls_on_unopened(net: Lab) -> None:
    needs.program("tinyproxy", package="tinyproxy")
    coordinator = net.machine("coordinator", eth0="outside 203.0.113.5/24", names={NAME: "203.0.113.5"})
    proxy = net.machine("proxy", eth0="office 10.0.0.9/24", eth1="outside 203.0.113.9/24")
    worker = net.machine("worker", eth0="office 10.0.0.20/24", names={"proxy.example.com": "10.0.0.9"})
    with guide(coordinator=coordinator, proxy=proxy, worker=worker) as page:
        page.follow(NETWORKS / "http-proxy.md")
        assert "Succeeded" in page.printed["coordinator"]
        assert not worker.reaches("203.0.113.5:50055"), "there is no other way"
        assert sources(coordinator) == {"203.0.113.9"}
        until(lambda: f"CONNECT {NAME}:50055" in page.said("proxy"))
        without = worker.sh("DAGU_PEER_NO_PROXY=.example.com secure-dagu doctor --json")
        (failed,) = [check for check in json.loads(without.stdout)["checks"] if check["state"] == "fail"]
        assert (failed["check"], failed["code"]) == ("route", "unreachable")
        asked = worker.sh("DAGU_PEER_PROXY=http://proxy.example.com:8889 secure-dagu doctor --json")
        assert "proxy_refused" in asked.stdout

"""Networks without anything in between: one open port at the coordinator, one interface, an overlay, IPv6."""

from __future__ import annotations

from tests.system.guide import NETWORKS, guide, until
from tests.system.lab import Lab

WORK = """\
artifacts:
  enabled: true
steps:
  - id: a
    run: |
      echo begun
      while [ ! -e go ]; do sleep 0.05; done
      echo from $(cat go) > "$DAG_RUN_ARTIFACTS_DIR/report.md"
"""


def test_over_one_port_everything_works_and_no_worker_is_ever_dialled(net: Lab) -> None:
    coordinator = net.machine("coordinator", eth0="lan 10.0.0.5/24", names={"coordinator.example.com": "10.0.0.5"})
    worker = net.machine("worker", eth0="lan 10.0.0.20/24")
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "direct.md")
        assert "Succeeded" in page.printed["coordinator"]
        go = worker.home / "go"
        coordinator.file("~/work.yaml", WORK.replace("-e go", f"-e {go}").replace("cat go", f"cat {go}"))
        with coordinator.stays("secure-dagu dispatch work.yaml --run-id=r1 --follow") as follower:
            follower.wait_for("begun")  # the step waits for us: what we see, we see while it runs
            go.write_text("gpu-1")
            assert follower.wait() == 0, follower.text
        assert coordinator.ok("secure-dagu logs work -r r1 --step=a") == "begun\n"
        coordinator.ok("secure-dagu artifacts work -r r1 --out=out")
        assert (coordinator.home / "out/report.md").read_text() == "from gpu-1\n"
        go.unlink()
        with coordinator.stays("secure-dagu dispatch work.yaml --run-id=r2 --follow") as follower:
            follower.wait_for("begun")
            coordinator.ok("secure-dagu cancel work -r r2")
            assert follower.wait() == 1
            assert "Aborted" in follower.text
        assert worker.dials().came == 0, "nobody dials a worker"
        assert worker.dials().went > 0, "so the counter counts"
        assert coordinator.dials().went == 0, "a coordinator dials nobody"
        with coordinator.stays("socat TCP-LISTEN:4000,fork,reuseaddr /dev/null"):
            until(lambda: "0.0.0.0:4000" in coordinator.listening())
            assert worker.reaches("10.0.0.5:50055")
            assert not worker.reaches("10.0.0.5:4000"), "the firewall of the page lets one port through"


def test_only_the_interface_of_the_workers_answers(net: Lab) -> None:
    coordinator = net.machine(
        "coordinator", eth0="site 192.0.2.5/24", eth1="lan 10.0.0.5/24", names={"coordinator.internal": "10.0.0.5"}
    )
    worker = net.machine("worker", eth0="lan 10.0.0.20/24")
    neighbour = net.machine("neighbour", eth0="site 192.0.2.66/24")
    neighbour.ok("ip route add 10.0.0.5/32 via 192.0.2.5")
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "one-interface.md")
        assert "Succeeded" in page.printed["coordinator"]
        assert coordinator.listening() & {"10.0.0.5:50055", "0.0.0.0:50055", "*:50055"} == {"10.0.0.5:50055"}
        assert not neighbour.reaches("192.0.2.5:50055")
        assert not neighbour.reaches("10.0.0.5:50055")
        coordinator.ok("nft delete table inet secure_dagu")
        assert not neighbour.reaches("192.0.2.5:50055"), "nothing listens there"
        assert neighbour.reaches("10.0.0.5:50055"), "which is why the page has a rule for the interface"


def test_an_overlay_has_its_own_name_and_nobody_else_gets_in(net: Lab) -> None:
    coordinator = net.machine(
        "coordinator", eth0="site 192.0.2.5/24", wg0="vpn 10.8.0.1/24", names={"coordinator.vpn": "10.8.0.1"}
    )
    worker = net.machine("worker", eth0="home 198.51.100.20/24", wg0="vpn 10.8.0.20/24")
    neighbour = net.machine("neighbour", eth0="site 192.0.2.66/24")
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "overlay-vpn.md")
        assert "Succeeded" in page.printed["coordinator"]
        assert not neighbour.reaches("192.0.2.5:50055")
        page.close()
        coordinator.ok("ip link set wg0 down && ip address flush dev wg0")
        early = coordinator.sh("secure-dagu coordinator")
        assert early.returncode == 3
        told = (NETWORKS / "overlay-vpn.md").read_text().split("```text\n")[1].split("```")[0]
        assert told in early.stdout + early.stderr


def test_addresses_of_ipv6_work_wherever_one_is_written(net: Lab) -> None:
    coordinator = net.machine("coordinator", eth0="lan 2001:db8::5/64")
    worker = net.machine("worker", eth0="lan 2001:db8::20/64")
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "ipv6.md")
        said = page.printed["coordinator"]
        assert "Succeeded" in said
        assert "[2001:db8::20]:" in said, "the audit log has it as well"
        assert "owner.unreachable" not in page.said("worker")

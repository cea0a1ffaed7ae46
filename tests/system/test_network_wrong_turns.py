"""Networks that are set up wrongly: both ends say what is wrong, in the words of the guide."""

from __future__ import annotations

from tests import needs
from tests.system.guide import NETWORKS, guide
from tests.system.lab import Lab


def test_each_wrong_turn_is_named_on_both_ends(net: Lab) -> None:
    needs.program("nginx", package="nginx-light")
    names = {"coordinator.example.com": "10.0.0.5", "old.example.com": "10.0.0.77"}
    coordinator = net.machine("coordinator", eth0="lan 10.0.0.5/24", names=names)
    worker = net.machine("worker", eth0="lan 10.0.0.20/24")
    with guide(coordinator=coordinator, worker=worker) as page:
        page.follow(NETWORKS / "wrong-turns.md")
        assert coordinator.dials().went == 0, "not even now does it dial anybody"

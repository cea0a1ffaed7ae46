"""A section of settings is a value: what is not given is the default, and what is there stays."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from secure_dagu.config.settings import Peer, Settings, Worker


def test_what_is_not_given_is_the_declared_default() -> None:
    assert (Worker(id="w").id, Worker(id="w").max_active_runs) == ("w", Worker.declared["max_active_runs"].default)
    assert Settings(worker=Worker(id="w")).peer.insecure is False


def test_a_copy_keeps_what_it_does_not_replace() -> None:
    first = Peer(insecure=True)
    second = first.replaced(min_tls_version="1.2")
    assert (second.insecure, second.min_tls_version) == (True, "1.2")
    assert first.min_tls_version == "1.3"


def test_a_name_that_is_not_declared_is_refused() -> None:
    with pytest.raises(TypeError, match="Peer has no insecur"):
        Peer(insecur=True)  # type: ignore[call-arg]  # misspelt
    with pytest.raises(TypeError, match="Settings has no pears"):
        Settings().replaced(pears=Peer())


def test_settings_are_never_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Peer().insecure = True  # type: ignore[misc]  # frozen

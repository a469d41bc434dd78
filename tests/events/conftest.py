"""The runs that the tests of the log share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esper_events.keys import SigningKey
from support.event_runs import Run, ended, make_run, opening


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def make(key: SigningKey) -> Callable[..., Run]:
    """Seals groups of events as a run of the session's key."""
    return lambda *groups: make_run(key, groups)


@pytest.fixture(scope="session")
def run(key: SigningKey) -> Run:
    """A whole run: three segments, seven events."""
    return make_run(key, (*opening(key), (ended(),)))


@pytest.fixture(scope="session")
def running(key: SigningKey) -> Run:
    """The same run before its end."""
    return make_run(key, opening(key))

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.log.workspace import Workspace
from esper_events.keys import SigningKey
from support.log_runs import UserServer, user_server


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserServer]:
    """A nats-server for tests that leave it running."""
    yield from user_server(tmp_path_factory.mktemp("nats"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UserServer]:
    """A nats-server of the test's own, to kill, stop and start again."""
    directory = tmp_path / "nats"
    directory.mkdir()
    yield from user_server(directory)


@pytest.fixture(scope="session")
def fresh_log() -> Callable[[], str]:
    """Log ids that no other test uses."""
    numbers = itertools.count()
    return lambda: f"test-{next(numbers)}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import Site, site
from support.log_runs import UserServer, user_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UserServer]:
    directory = tmp_path / "nats"
    directory.mkdir()
    yield from user_server(directory)


@pytest.fixture
def here(tmp_path: Path, server: UserServer) -> Iterator[Site]:
    """A site whose server is somebody else's, and can be tormented."""
    with site(tmp_path / "here", server) as there:
        yield there

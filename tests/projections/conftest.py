"""Databases for audited runs, one of them a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import postgres
from support.audited import SIZES, STORY, emptied
from support.histories import write_log


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "audit.db")
    return emptied(request.getfixturevalue("server"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A log of the story."""
    return write_log(tmp_path / "run", STORY, SIZES)

"""Machines that share a user's server: each a workspace with a key of its own, which one root
certifies, and a directory for its runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from esper.log.event_log import EventLog
from esper.log.keyring import ROOT
from esper.log.takeover import Lease, take_over_run_log
from esper.log.workspace import Workspace


class Machine:
    """One of them; the first makes the root key that the others are certified by."""

    def __init__(self, directory: Path, first: Machine | None = None) -> None:
        self.name = directory.name
        self.directory = directory
        self.workspace = Workspace(directory / "workspace")
        self.run_dir = directory / "run"
        self.workspace.key()
        if first is None:
            self.workspace.keys.create(ROOT)
        else:
            for source in (first.workspace.path / "keys").glob(f"{ROOT}.*"):
                shutil.copy(source, self.workspace.path / "keys")
        self.workspace.keys.certify()

    def take(self, epoch: int, nats: str, log_id: str = "job-1") -> EventLog:
        """The run's log, in that lease epoch."""
        lease = Lease(epoch, self.name, log_id, "the one before is silent")
        return take_over_run_log(
            self.run_dir, lease, workspace=self.workspace, nats=nats, accept_unproved=True
        )

    @property
    def quarantine(self) -> list[str]:
        """The names of what was set aside."""
        return sorted(path.name for path in (self.run_dir / "quarantine").glob("*"))

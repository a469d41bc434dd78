"""What an import costs: who only reads a log, or asks for help, loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.command import environment

HEAVY = {"torch", "nats", "numpy", "scipy", "sklearn", "rich"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("esper", HEAVY),
        ("esper_events", HEAVY | {"esper"}),
        ("esper_events.verify", HEAVY | {"esper"}),
        ("esper.log.run", {"torch"}),
        ("esper.projections.lattice", {"torch", "nats"}),
        ("esper.cli.main", {"torch", "nats"}),
        ("esper.tolaria.daemon.daemon", {"torch", "numpy", "sklearn"}),
        ("esper.tolaria.daemon.child", {"torch", "nats"}),
    ],
)
def test_import_is_light(module: str, forbidden: set[str], tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {forbidden!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_esper_has_what_it_lists() -> None:
    import esper

    for name in esper.__all__:
        assert getattr(esper, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'growth_of_hair'"):
        _ = esper.growth_of_hair

"""The replay campaign in short; ``make replay-campaign`` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.live_digests import LiveDigests, follow
from benchmarks.replay_campaign import REACH, compare, main
from esper.projections.catalogue import PROJECTIONS
from support.command import SMALL

BATCHES = (1, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LiveDigests]:
    """A run that was followed while it trained."""
    directory = tmp_path_factory.mktemp("followed")
    (directory / "small.toml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_WORKSPACE", str(directory / "workspace"))
        return directory / "run", follow(directory / "small.toml", 0, directory / "run")


def test_every_way_of_replaying_gives_the_live_digests(run: tuple[Path, LiveDigests]) -> None:
    run_dir, live = run
    assert live.steps == 420
    assert live.compared > 100
    assert live.differences == []
    found = compare(run_dir, live, BATCHES)
    assert found["problem"] == ""
    ways = len(BATCHES) + 1 + 1 + REACH / 2
    assert found["compared"] > len(PROJECTIONS) * ways * live.records


@pytest.mark.parametrize("name", PROJECTIONS)
def test_one_other_digest_anywhere_is_found(run: tuple[Path, LiveDigests], name: str) -> None:
    run_dir, live = run
    place = live.records // 2
    digests = {**live.digests, name: list(live.digests[name])}
    digests[name][place] = "another"
    found = compare(run_dir, msgspec.structs.replace(live, digests=digests), BATCHES)
    assert found["problem"].startswith(f"{name} at {place} by replay")


def test_a_log_with_other_records_than_were_live_is_told(run: tuple[Path, LiveDigests]) -> None:
    run_dir, live = run
    shorter = {name: digests[:-1] for name, digests in live.digests.items()}
    found = compare(run_dir, msgspec.structs.replace(live, digests=shorter), BATCHES)
    assert found["problem"] == f"{live.records} records, {live.records - 1} live"


def test_the_campaign_ends_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    arguments = ["--config", str(tmp_path / "small.toml"), "--hash-seeds", "random"]
    assert main([*arguments, "--steps", "60"]) == 0
    assert "1 of 1 runs: live, replayed and replayed-from-snapshot" in capsys.readouterr().out

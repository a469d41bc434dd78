"""What the log costs: handing an event over, its acknowledgement, throughput, catching up.

Real journal, real nats-server; every figure beside an fsync probe of the same run, since a disk
has fast and slow moments.

    python benchmarks/bench_log.py [--events N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from esper.log.event_log import EventLog
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from esper_events.events import RunStarted, TrialMeasured
from esper_events.verify import verify_path

MICROSECOND = 1e6


def main() -> None:
    """Print one figure a line, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=5000, help="events of a throughput run")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as name:
        figures = measure(Path(name), options.events)
    if options.json:
        print(json.dumps(figures))
        return
    for label, figure in figures.items():
        print(f"{label:<44} {figure:12.1f}")


def measure(directory: Path, events: int) -> dict[str, float]:
    """All figures; times in microseconds unless the name says otherwise."""
    area = Workspace(directory / "workspace")
    figures = quantiles("fsync of 400 bytes", fsync_probe(directory))
    begin = time.perf_counter()
    log = opened(directory / "single", area)
    while log.replica_state.standing != "level":
        time.sleep(0.001)
    figures["open to level with the embedded server, ms"] = (time.perf_counter() - begin) * 1e3
    figures |= singles(log, 500)
    log.close()
    figures |= bursts(directory / "burst", area, events)
    figures |= catching_up(directory / "behind", area, min(events, 2000))
    return figures


def opened(run_dir: Path, area: Workspace) -> EventLog:
    """A run's log with its first event in it."""
    log = open_run_log(run_dir, log_id=run_dir.name, workspace=area)
    start = RunStarted(
        time=0.0,
        run=run_dir.name,
        trainer_key=area.key().public.raw,
        host_weights="",
        config="",
        seed=0,
        version="0",
        platform={},
    )
    log.append(start).wait(10)
    return log


def trial(step: int) -> TrialMeasured:
    """An event of the common size."""
    figures = {"gain": 0.5, "loss": 0.25, "low": 0.125, "high": 0.75}
    return TrialMeasured(time=time.time(), step=step, seed=1, figures=figures)


def fsync_probe(directory: Path) -> list[float]:
    """Seconds that the disk takes for an append as large as a segment of one event."""
    times = []
    with (directory / "probe").open("wb", buffering=0) as file:
        for _ in range(200):
            begin = time.perf_counter()
            file.write(bytes(400))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return times


def singles(log: EventLog, count: int) -> dict[str, float]:
    """One event at a time, a busy millisecond between: what the calling thread pays."""
    handed, processor, acknowledged = [], [], []
    for step in range(count):
        event = trial(step)
        until = time.perf_counter() + 1e-3
        while time.perf_counter() < until:
            sum(range(100))
        used, begin = time.thread_time(), time.perf_counter()
        ticket = log.append(event)
        handed.append(time.perf_counter() - begin)
        processor.append(time.thread_time() - used)
        ticket.wait(10)
        acknowledged.append(time.perf_counter() - begin)
    return {
        **quantiles("append, wall", handed),
        **quantiles("append, processor time of the caller", processor),
        **quantiles("append to acknowledgement", acknowledged),
    }


def bursts(run_dir: Path, area: Workspace, events: int) -> dict[str, float]:
    """Everything at once: group commit at work."""
    log = opened(run_dir, area)
    batch = [trial(step) for step in range(events)]
    begin = time.perf_counter()
    for event in batch:
        log.append(event)
    handed = time.perf_counter() - begin
    log.flush(60)
    durable = time.perf_counter() - begin
    segments = log.close().segments
    begin = time.perf_counter()
    report = verify_path(run_dir)
    verified = time.perf_counter() - begin
    return {
        "burst, handed over, events/s": events / handed,
        "burst, durable in the journal, events/s": events / durable,
        "burst, events a segment": events / segments,
        "verify, events/s": report.events / verified if report.ok else 0.0,
    }


def catching_up(run_dir: Path, area: Workspace, segments: int) -> dict[str, float]:
    """The server is killed; the replica starts it again and ships what gathered."""
    log = opened(run_dir, area)
    while log.replica_state.standing != "level":
        time.sleep(0.001)
    endpoint = json.loads((area.path / "server" / "endpoint.json").read_text())
    os.kill(endpoint["pid"], 9)
    begin = time.perf_counter()
    while log.replica_state.standing == "level":
        log.append(trial(0)).wait(10)
    while log.replica_state.standing != "level":
        time.sleep(0.001)
    restarted = time.perf_counter() - begin
    for step in range(segments):
        log.append(trial(step)).wait(10)
    behind = log.replica_state.behind
    begin = time.perf_counter()
    log.close(60)
    return {
        "killed server back and level, ms": restarted * 1e3,
        "segments behind after one event a segment": behind,
        "catching up, segments/s": behind / (time.perf_counter() - begin),
    }


def quantiles(label: str, times: list[float]) -> dict[str, float]:
    """Median and 99th percentile in microseconds."""
    times = sorted(times)
    return {
        f"{label}, p{q}": times[min(len(times) - 1, len(times) * q // 100)] * MICROSECOND
        for q in (50, 99)
    }


if __name__ == "__main__":
    main()

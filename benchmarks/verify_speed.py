"""How fast a log is verified on all cores, beside the bare rate of signatures on as many.

Bare is one process for each core that does nothing but check signatures of as many bytes. Both are
timed by the wall, in turns; the ratio is the median of pairs with its 95 % interval.

    python -m benchmarks.verify_speed [--pairs N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from benchmarks.paired import Ratio, in_turns
from esper_events.ahead import cores
from esper_events.codec import encode_event
from esper_events.events import GateMeasured, RunStarted
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.segment import GENESIS, seal, segment_hash, signature_fits
from esper_events.stages import Gate
from esper_events.verify import verify_path

KEY = SigningKey.generate()
START = RunStarted(
    time=0.0,
    run="speed",
    trainer_key=KEY.public.raw,
    host_weights="",
    config="",
    seed=0,
    version="",
    platform={},
)
EVENT = GateMeasured(
    time=0.0,
    step=1000,
    seed=1,
    gate=Gate.SHADOW,
    passed=True,
    reason="predicts 12.5% less held-out loss",
    figures={"gain": 0.125, "lower": 0.08, "batches": 16.0},
)


def write_log(directory: Path, per_segment: int, segments: int) -> int:
    """Write the journal of a run of ``segments`` equal segments; the number of its events."""
    journal = directory / JOURNAL
    journal.parent.mkdir(parents=True)
    body, events, previous = [encode_event(EVENT)] * per_segment, 0, GENESIS
    with journal.open("wb") as file:
        for batch in ([encode_event(START)], *([body] * segments)):
            data = seal(batch, log="speed", first_index=events, previous=previous, key=KEY)
            file.write(frame(data))
            events, previous = events + len(batch), segment_hash(data)
    return events


def check(count: int) -> None:
    """Check as many signatures, of segments with one event."""
    data = seal([encode_event(EVENT)], log="speed", first_index=1, previous=GENESIS, key=KEY)
    for _ in range(count):
        if not signature_fits(data, KEY.public):
            raise SystemExit("a good signature is refused")


def bare(segments: int) -> float:
    """Seconds to check so many signatures on all cores, the start of processes left out."""
    with Pool(cores()) as pool:
        pool.map(check, [1] * cores(), chunksize=1)
        start = time.perf_counter()
        pool.map(check, [segments // cores()] * cores(), chunksize=1)
        return time.perf_counter() - start


def verified(path: Path, events: int) -> float:
    """Seconds to verify the log."""
    start = time.perf_counter()
    report = verify_path(path)
    if (report.ok, report.events) != (True, events):
        raise SystemExit(report.message)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    print(f"{cores()} cores, events of {len(encode_event(EVENT))} bytes, by the wall")
    print("events a segment   events a second   signatures / bare")
    for per_segment, segments in ((1, 40_000), (10, 20_000), (100, 5_000)):
        with tempfile.TemporaryDirectory() as name:
            events = write_log(Path(name), per_segment, segments)
            own = partial(verified, Path(name), events)
            times = in_turns(own, partial(bare, segments), pairs)
        rate = events / statistics.median(first for first, _ in times)
        ratio = Ratio.of([other / first for first, other in times])
        print(f"{per_segment:>16} {rate:>17,.0f}   {ratio}")


if __name__ == "__main__":
    main()

"""How fast a log is verified, beside the bare rate of its two parts: signatures and decoding.

Run with ``python -m benchmarks.verify_speed``. Processor time of one core, best of three.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from esper_events.codec import decode_event, encode_event
from esper_events.events import GateMeasured, RunStarted
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.segment import GENESIS, seal, segment_hash
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


def seconds(work: Callable[[], object]) -> float:
    """Processor time of ``work``, best of three."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    """Print the table."""
    data, count = encode_event(EVENT), 5_000
    signature = KEY.sign(data)
    bare = seconds(lambda: [KEY.public.verify(signature, data) for _ in range(count)])
    decoding = seconds(lambda: [decode_event(data) for _ in range(count)])
    print(f"bare signatures {count / bare:>12,.0f} a second")
    print(f"bare decoding   {count / decoding:>12,.0f} events a second, {len(data)} bytes each")
    print("events a segment   events a second   segments a second")
    for per_segment, segments in ((1, 5_000), (10, 4_000), (100, 1_000), (1000, 100)):
        with tempfile.TemporaryDirectory() as name:
            events = write_log(Path(name), per_segment, segments)
            report = verify_path(Path(name))
            if (report.ok, report.events) != (True, events):
                raise SystemExit(report.message)
            taken = seconds(lambda path=Path(name): verify_path(path))  # type: ignore[misc]
        print(f"{per_segment:>16} {events / taken:>17,.0f} {(segments + 1) / taken:>19,.0f}")


if __name__ == "__main__":
    main()

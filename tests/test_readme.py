"""The README says what works: its code runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from esper_events.events import TransitionApplied, TransitionDecided
from esper_events.reader import LogReader
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.command import ROOT, environment


def test_the_code_of_the_readme_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (tmp_path / "loop.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "loop.py"],
        cwd=tmp_path,
        env=environment(tmp_path / ".esper"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Linear(in_features=64, out_features=6" in done.stdout
    assert re.search(r"isolation: (\d+) of \1 slots ok", done.stdout)
    (run,) = (tmp_path / "runs").iterdir()
    report = verify_path(run)
    assert report.ok, report.messages
    assert report.ended
    told = [record.event for record in LogReader(run).records()]
    decided = {event.decision: event for event in told if isinstance(event, TransitionDecided)}
    applied = [event.decision for event in told if isinstance(event, TransitionApplied)]
    assert Stage.FOSSILIZED in {decided[number].target for number in applied}, "nothing has grown"

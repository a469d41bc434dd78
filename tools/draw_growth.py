"""Draw the picture of the README: one run of the digits example and its two controls.

Everything drawn is what the run reports: held-out accuracy as it trains, and the steps at which
the log says that a seed was grafted and became part of the host.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from esper.tolaria.config import read
from esper.tolaria.observer import Part, Silent
from esper.tolaria.trainer import train
from esper_events.events import Record, TransitionApplied, TransitionDecided
from esper_events.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
STYLE: dict[Part, tuple[str, str]] = {
    "host alone": ("#9a9a9a", "host alone"),
    "grown shape from the start": ("#4c78a8", "the grown shape, trained from the start"),
    "grown": ("#d1495b", "grown while it trains"),
}
MARKED = {Stage.GRAFTING: "grafted", Stage.FOSSILIZED: "kept"}


class Recorder(Silent):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.curves: defaultdict[Part, list[tuple[int, float]]] = defaultdict(list)
        self.marks: list[tuple[int, str]] = []
        self._part: Part = "grown"
        self._decided: dict[int, TransitionDecided] = {}

    def part(self, name: Part, steps: int) -> None:
        """A training begins."""
        self._part = name

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """Keep the held-out accuracy."""
        if accuracy is not None:
            self.curves[self._part].append((step, accuracy))

    def event(self, record: Record) -> None:
        """Keep the steps at which a seed was grafted and kept."""
        match record.event:
            case TransitionDecided() as decided:
                self._decided[decided.decision] = decided
            case TransitionApplied(decision=number, step=step):
                decided = self._decided[number]
                if decided.target in MARKED:
                    self.marks.append((step, MARKED[decided.target]))


def draw(axes: Axes, recorder: Recorder) -> None:
    """The curves, and a line for each mark."""
    for part, (colour, label) in STYLE.items():
        steps, accuracies = zip(*recorder.curves[part], strict=True)
        axes.plot(steps, accuracies, color=colour, label=label, linewidth=1.6)
    for step, word in recorder.marks:
        axes.axvline(step, color="#d1495b", linewidth=0.8, linestyle=":")
        axes.annotate(word, (step, 52), rotation=90, fontsize=8, ha="right", color="#d1495b")
    axes.set(ylim=(50, 100), xlabel="optimizer step", ylabel="held-out accuracy, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main(target: Path) -> None:
    """Run the example and write the picture to ``target``."""
    recorder = Recorder()
    config = read(ROOT / "examples" / "digits.toml")
    with tempfile.TemporaryDirectory() as directory:
        train(config, run_dir=Path(directory), nats=None, seed=config.run.seed, observer=recorder)
    mpl.rcParams["svg.hashsalt"] = "esper"
    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    draw(axes, recorder)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Checks the models of the log's protocol in ``models`` with Spin, and that Spin would find faults.

Each model is explored exhaustively within the bounds that are printed: its assertions, states
without a way on, and (in a smaller one) cycles. Then one rule of the protocol at a time is taken
out, and Spin must find a history that breaks an assertion. Spin is the system's, or comes from
Debian's package into ``build/spin`` (no root needed). Usage: ``python tools/model_check.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from debian_package import FetchError, unpack

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
CACHE = ROOT / "build" / "spin"
MEMORY_MIB = 3000
SECONDS = 240

SOUND = (
    ("journal", {"FAULTS": 1, "DECISIONS": 2}),
    ("journal", {"FAULTS": 3, "DECISIONS": 1}),
    ("takeover", {"FAULTS": 1, "DECISIONS": 2, "EPOCHS": 2}),
    ("takeover", {"FAULTS": 2, "DECISIONS": 1, "EPOCHS": 3}),
)
FINITE = (
    ("journal", {"FAULTS": 1, "DECISIONS": 1}),
    ("takeover", {"FAULTS": 1, "DECISIONS": 1, "EPOCHS": 2}),
)
"""Bounds of the search for cycles, which takes twice the states."""
BOUNDS_OF_MUTANTS = {"FAULTS": 2, "DECISIONS": 1, "EPOCHS": 2}
MUTANTS = (
    ("journal", "NO_LOCK"),
    ("journal", "APPLY_BEFORE_ACKNOWLEDGEMENT"),
    ("journal", "ACKNOWLEDGE_BEFORE_SYNC"),
    ("journal", "SYNC_AGAIN"),
    ("journal", "TRUST_THE_PAGE_CACHE"),
    ("journal", "CHECKPOINT_WITHOUT_LOG"),
    ("journal", "SHIP_BEFORE_SYNC"),
    ("journal", "NO_EXPECTED_SEQUENCE"),
    ("takeover", "APPLY_BEFORE_ACKNOWLEDGEMENT"),
    ("takeover", "NO_EXPECTED_SEQUENCE"),
    ("takeover", "NO_FENCE"),
    ("takeover", "UNKNOWN_IS_FAILURE"),
    ("takeover", "UNKNOWN_IS_SUCCESS"),
    ("takeover", "EAGER_RESUME"),
    ("takeover", "FORGETFUL"),
)
"""Each is a macro in the model that takes one rule out of it."""


class CheckError(Exception):
    """Spin could not be had or could not be run."""


@dataclass(frozen=True)
class Verdict:
    """What a search found: ``fault`` is empty where nothing is wrong; memory in MiB."""

    fault: str
    states: int
    depth: int
    memory: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.states:>9,} states, depth {self.depth:>3}, {self.memory:>5.0f} MiB, "
            f"{self.seconds:>5.1f} s"
        )


def find_spin() -> str:
    """The system's Spin, or the one in the cache, which is filled when it is empty.

    Raises:
        CheckError: there is none, and why.
    """
    kept = CACHE / "usr" / "bin" / "spin"
    found = shutil.which("spin") or (str(kept) if kept.exists() else None)
    if found is not None:
        return found
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as place:
        try:
            unpack("spin", Path(place))
        except FetchError as error:
            raise CheckError(f"spin is not here ({error}); install it, then try again") from None
        shutil.rmtree(CACHE, ignore_errors=True)
        shutil.copytree(place, CACHE)
    return str(kept)


def search(
    spin: str,
    model: str,
    bounds: Mapping[str, int],
    *,
    mutant: str = "",
    cycles: bool = False,
) -> Verdict:
    """Let Spin explore ``model`` within ``bounds``, with the rule that ``mutant`` names taken out,
    until it is through or has found a fault.

    Raises:
        CheckError: something did not run to its end.
    """
    macros = [f"-D{name}={value}" for name, value in bounds.items()]
    macros += [f"-D{mutant}"] * bool(mutant)
    kind, options = ("-DNP", ["-l"]) if cycles else ("-DSAFETY", [])
    compiler = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _run(place, spin, "-a", *macros, str(MODELS / f"{model}.pml"))
        flags = ("-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}", kind)
        _run(place, compiler, *flags, "-o", "pan", "pan.c")
        return _read(_run(place, "./pan", "-m20000", "-w22", *options))


def _run(place: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        told = f"{error.stdout}\n{error.stderr}".strip()
        raise CheckError(f"{command[0]}: {told}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckError(f"{command[0]}: {error}") from None
    return done.stdout


def _read(told: str) -> Verdict:
    def figure(pattern: str) -> str:
        found = re.search(pattern, told, re.MULTILINE)
        if found is None:
            raise CheckError(f"pan: no {pattern!r} in what it printed:\n{told}")
        return found[1]

    errors = int(figure(r"errors: (\d+)"))
    fault = figure(r"^pan:1: (.*) \(at depth") if errors else ""
    if "Search not completed" in told and not errors:
        raise CheckError(f"pan: the search was cut short:\n{told}")
    return Verdict(
        fault,
        int(figure(r"^\s*(\d+) states, stored")),
        int(figure(r"depth reached (\d+)")),
        float(figure(r"([\d.]+)\s+total actual memory")),
        float(figure(r"elapsed time ([\d.]+)")),
    )


def check_sound(spin: str) -> int:
    """Explore the models as they are; the number of faults found."""
    faults = 0
    searches = [(*entry, False) for entry in SOUND] + [(*entry, True) for entry in FINITE]
    for model, bounds, cycles in searches:
        verdict = search(spin, model, bounds, cycles=cycles)
        told = ", ".join(f"{name.lower()} {value}" for name, value in bounds.items())
        what = "no cycle" if cycles else "invariants hold"
        faults += bool(verdict.fault)
        print(f"{model:<8} {told:<36} {verdict}: {verdict.fault or what}", flush=True)
    return faults


def check_mutants(spin: str) -> int:
    """Explore the models without one rule each; the number of those that Spin took for sound."""
    missed = 0
    for model, mutant in MUTANTS:
        verdict = search(spin, model, BOUNDS_OF_MUTANTS, mutant=mutant)
        missed += not verdict.fault
        told = f"found: {verdict.fault}" if verdict.fault else "NOT FOUND"
        print(f"{model:<8} {mutant:<36} {verdict}: {told}", flush=True)
    return missed


def main() -> int:
    """Exit 1 when a model breaks an invariant, or a broken model does not; 2 without Spin."""
    try:
        spin = find_spin()
        faults = check_sound(spin)
        missed = check_mutants(spin)
    except CheckError as error:
        print(f"model_check: {error}", file=sys.stderr)
        return 2
    print(f"{faults} faults in the models; {len(MUTANTS) - missed} of {len(MUTANTS)} mutants found")
    return 1 if faults or missed else 0


if __name__ == "__main__":
    sys.exit(main())

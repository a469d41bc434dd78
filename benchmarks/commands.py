"""What the campaigns share: the examples, and ``esper`` as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Popen = subprocess.Popen[str]
EXAMPLES = tuple(
    ROOT / "examples" / f"{name}.toml" for name in ("digits", "fashion_mnist", "characters")
)


def parser(document: str | None, configs: Sequence[Path] = EXAMPLES) -> argparse.ArgumentParser:
    """The options that every campaign has; ``document`` is its module's docstring."""
    options = argparse.ArgumentParser(description=(document or "").partition("\n\n")[0])
    options.add_argument("--config", type=Path, nargs="+", default=list(configs), metavar="FILE")
    options.add_argument(
        "--steps", type=int, help="optimizer steps of each run; the config's own by default"
    )
    return options


def copied(config: Path, directory: Path, steps: int | None) -> Path:
    """A copy of ``config`` in ``directory``, its runs ``steps`` long where that is given."""
    text = config.read_text()
    if steps is not None:
        text = re.sub(r"(?m)^steps = [\d_]+", f"steps = {steps}", text)
    copy = directory / config.name
    copy.write_text(text)
    return copy


def esper(directory: Path, *arguments: str | Path) -> Popen:
    """Start ``esper`` in ``directory`` with a workspace there."""
    return python(directory, "esper.cli.main", *arguments)


def python(
    directory: Path,
    module: str,
    *arguments: str | Path,
    interpreter: str = sys.executable,
    **more: str,
) -> Popen:
    """Start a module in ``directory`` with a workspace there; ``more`` joins the environment."""
    paths = [str(ROOT), str(ROOT / "events"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "ESPER_WORKSPACE": str(directory / "workspace"),
        **more,
    }
    return subprocess.Popen(
        [interpreter, "-m", module, *(str(argument) for argument in arguments)],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: Popen, good: Sequence[int] = (0,)) -> dict[str, Any]:
    """The JSON object that a command ends with.

    Raises:
        RuntimeError: it ended with another exit code than the ``good`` ones.
    """
    out, err = process.communicate()
    if process.returncode not in good:
        raise RuntimeError(f"exit code {process.returncode}: {err[-500:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result

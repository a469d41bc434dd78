"""Where a run's own config, kept in its log, says that its server is."""

from __future__ import annotations

from pathlib import Path


def recorded_place(
    path: Path, nats: str | None, workspace: Path | None
) -> tuple[str | None, Path | None]:
    """URL and workspace of the run at ``path``, a directory or an exported file; what the user gave
    comes before what the config says, and None is what neither says."""
    from esper.tolaria.config import ConfigError, parse
    from esper_events.errors import ChainError
    from esper_events.events import RunStarted
    from esper_events.reader import LogReader

    try:
        first = next(LogReader(path).records()).event
        if not isinstance(first, RunStarted):
            return nats, workspace
        log = parse(first.config, path if path.is_dir() else path.parent).log
    except (ChainError, ConfigError, OSError, StopIteration):
        return nats, workspace
    return nats or log.nats, workspace or (Path(log.workspace) if log.workspace else None)

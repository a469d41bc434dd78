"""``esper verify --registry``: is the registry whole, and is every run there that it names?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED
from esper.cli.options import registry_of
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.log.census import Found
    from esper.log.shared_log import SharedLog

_ONLY_REGISTERED = (
    "a run that was never registered, such as one whose server was away to its end, leaves no "
    "trace here"
)


def verify_registry(nats: str | None, workspace: Path | None, as_json: bool) -> int:
    """Check the registry and the server's copy of each of its runs, say what was found, and return
    the exit code."""
    from esper.log.census import audit

    with registry_of(nats, workspace) as (registry, _):
        registry.verify()
        found = [audit(registry, run) for run in registry.runs.values()]
        events, notes = len(registry.records()), (reach(registry), _ONLY_REGISTERED)
    good = not any(each.fault for each in found)
    if as_json:
        rows = [_row(each) for each in found]
        told = {"registry": registry.name, "ok": good, "events": events, "runs": rows}
        click.echo(json.dumps({**told, "notes": notes}))
    else:
        _show(registry.name, events, found, notes)
    return GOOD if good else VERIFICATION_FAILED


def reach(registry: SharedLog) -> str:
    """What may have been taken back from the registry itself."""
    total, seen = len(registry.records()), registry.remembered
    if seen == total:
        return f"the registry on {registry.name} holds all that this workspace has seen of it"
    return (
        f"of the {total} events of the registry on {registry.name} this workspace had seen "
        f"{seen or 'none'} before: that later ones were taken back is not excluded"
    )


def _row(found: Found) -> dict[str, object]:
    return {
        "run": found.run.log,
        "ok": not found.fault,
        "registered": found.run.events,
        "events": found.events,
        "outcome": found.outcome or None,
        "fault": found.fault or None,
    }


def _show(name: str, events: int, found: list[Found], notes: tuple[str, ...]) -> None:
    bad = sum(bool(each.fault) for each in found)
    verdict = f"FAILED: {bad} of {len(found)} runs" if bad else f"ok: {len(found)} runs"
    lines = [f"registry on {name}: {verdict}; the registry itself is whole: {events} events"]
    for each in found:
        if each.fault:
            lines.append(f"  {each.run.log}: FAILED: {each.fault}")
            continue
        outcome = f"ended ({each.outcome})" if each.outcome else "not ended"
        lines.append(f"  {each.run.log}: ok: {each.events} events, {outcome}")
    for line in (*lines, *(f"  note: {note}" for note in notes)):
        click.echo(printable(line))

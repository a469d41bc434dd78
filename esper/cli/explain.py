"""``esper explain``: what the controller saw, and whether it would decide the same again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED, UserError, reading
from esper.cli.options import key_option
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.tamiyo.explain import Elsewhere, Explanation, Reasons, Verdict
    from esper.tamiyo.interface import Observation, Policy, Proposal, SeedView
    from esper_events.events import Record
    from esper_events.keys import PublicKey

_LAST = 5
"""Measurements and candidates that are told; ``--json`` has them all."""


@click.command(
    short_help="Show why, and compute a decision again.",
    epilog="Example:  esper explain runs/digits 143",
)
@click.argument("path", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), required=False)
@click.option("--all", "everything", is_flag=True, help="Every decision, one line each.")
@click.option(
    "--objects",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the digest-named files lie; RUN/objects by default.",
)
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    path: Path,
    number: int | None,
    everything: bool,
    objects: Path | None,
    key_file: Path | None,
    as_json: bool,
) -> int:
    """Show what the controller saw when it decided event N, and compute its answer again.

    RUN is a run directory, or an exported file with --objects; events are numbered as by
    `esper show --all`. The log is verified first.

    Exit code 0: nothing speaks against it. 1: the recomputed answer is another, what was seen is
    missing or is not what the log names, or the log is damaged or missing.
    """
    from esper.tamiyo.explain import HOLDS, Explanation
    from esper_events.command import trusted_key

    if (number is None) != everything:
        raise click.UsageError("wanted either the number of an event or --all")
    reasons = _reasons(path, trusted_key(key_file), objects)
    if number is not None and number >= len(reasons):
        raise UserError(f"{path} has no event {number}, its last is {len(reasons) - 1}")
    told: dict[str, Any] | list[str]
    if number is None:
        explained = list(reasons.all())
        told = _all_as_dict(explained) if as_json else _all_in_words(explained)
    else:
        found = reasons.explain(number)
        explained = [found] if isinstance(found, Explanation) else []
        told = _as_dict(found) if as_json else _in_words(found)
    if isinstance(told, dict):
        click.echo(json.dumps({"path": str(path), **told}))
    else:
        click.echo("\n".join(map(printable, told)))
    holds = all(explanation.answer.verdict in HOLDS for explanation in explained)
    return GOOD if holds else VERIFICATION_FAILED


def _reasons(path: Path, trusted: PublicKey | None, objects: Path | None) -> Reasons:
    from esper.log.objects import DIRECTORY, ObjectMissingError, read_object
    from esper.tamiyo.explain import Reasons
    from esper_events.reader import LogReader

    def read(digest: str) -> bytes:
        if objects is None and not path.is_dir():
            raise ObjectMissingError(
                "it is not in an export: give the directory of the run's objects (--objects)"
            )
        return read_object(objects or path / DIRECTORY, digest)

    with reading(path):
        return Reasons(LogReader(path, trusted).records(), read)


def _all_in_words(explained: list[Explanation]) -> list[str]:
    from esper_events.words import describe

    lines = []
    for explanation in explained:
        answer = explanation.answer
        reason = "" if answer.verdict in ("same", "not asked") else f" ({answer.reason})"
        lines.append(f"{describe(explanation.record)}: {answer.verdict}{reason}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(explained).items())
    return [*lines, f"{len(explained)} consultations and decisions: {counts or 'none'}"]


def _all_as_dict(explained: list[Explanation]) -> dict[str, Any]:
    events = []
    for explanation in explained:
        answer = explanation.answer
        told = {"verdict": answer.verdict, "reason": answer.reason, "consultation": answer.index}
        events.append({**_event(explanation.record), **told})
    return {"counts": _counts(explained), "events": events}


def _counts(explained: list[Explanation]) -> dict[Verdict, int]:
    return dict(Counter(explanation.answer.verdict for explanation in explained))


def _event(record: Record) -> dict[str, Any]:
    from esper_events.words import describe

    words = describe(record).strip().partition("  ")[2]
    kind = str(type(record.event).__struct_config__.tag)
    step = getattr(record.event, "step", None)
    return {"index": record.index, "kind": kind, "step": step, "words": words}


def _as_dict(found: Explanation | Elsewhere) -> dict[str, Any]:
    from esper.projections.canonical import as_json
    from esper.tamiyo.explain import Elsewhere

    told: dict[str, Any] = {"event": _event(found.record)}
    if isinstance(found, Elsewhere):
        return {**told, "decision": found.decision}
    answer = found.answer
    told |= {"verdict": answer.verdict, "reason": answer.reason, "consultation": answer.index}
    if answer.event is not None:
        told["digests"] = {
            "policy": answer.event.policy,
            "consultation": answer.event.consultation,
        }
    if answer.policy is not None:
        told["policy"] = as_json(answer.policy)
    if answer.asked is not None:
        told["observation"] = as_json(answer.asked.observation)
        told["memory"] = as_json(answer.asked.remembered)
        told["proposals"] = as_json(answer.asked.proposals)
    told["recomputed"] = as_json(answer.recomputed)
    told["proposal"] = as_json(found.proposal)
    return told


def _in_words(found: Explanation | Elsewhere) -> list[str]:
    from esper.tamiyo.explain import Elsewhere

    lines = [f"event {found.record.index}: {_event(found.record)['words']}"]
    if isinstance(found, Elsewhere):
        where = found.decision
        belongs = "no decision" if where is None else f"the decision of event {where}"
        return [*lines, f"it is no decision of the controller; it belongs to {belongs}"]
    answer = found.answer
    if answer.index not in (None, found.record.index):
        lines.append(f"it follows from event {answer.index}, a consultation")
    if answer.event is not None:
        lines += _policy(answer.policy, answer.event.policy)
        seen = None if answer.asked is None else answer.asked.observation
        lines += _observation(seen, answer.event.consultation)
    if answer.asked is not None:
        lines += _proposals("answer on record", answer.asked.proposals, found.proposal)
    if answer.recomputed is not None and answer.verdict == "differs":
        lines += _proposals("recomputed answer", answer.recomputed, None)
    return [*lines, f"{answer.verdict}: {answer.reason}"]


def _policy(policy: Policy | None, digest: str) -> list[str]:
    if policy is None:
        return [f"policy {digest}: cannot be read"]
    name = policy.name or "of a controller without a name"
    settings = ", ".join(f"{key} {value}" for key, value in policy.settings.items())
    return [f"policy {name}, version {policy.version}, {digest}", f"  {settings or 'no settings'}"]


def _observation(seen: Observation | None, digest: str) -> list[str]:
    if seen is None:
        return [f"observation {digest}: cannot be read"]
    held_out = " ".join(f"{loss:.4g}" for _, loss in seen.held_out[-_LAST:])
    lines = [
        f"observation of step {seen.step}, {digest}",
        f"  held-out loss, {len(seen.held_out)} measurements, the last: {held_out or '-'}",
        *(f"  {_seed(seed)}" for seed in seen.seeds),
    ]
    if seen.candidates:
        places = [f"{c.blueprint} in {c.slot}" for c in seen.candidates[:_LAST]]
        more = len(seen.candidates) - len(places)
        lines.append(f"  could grow: {', '.join(places)}{f' and {more} more' if more else ''}")
    return [*lines, f"  fossils: {seen.fossils}"]


def _seed(seed: SeedView) -> str:
    gain = f", gain {seed.gains[-1]:.4g}" if seed.gains else ""
    marks = [name for name in ("ready", "pending") if getattr(seed, name)]
    return (
        f"seed {seed.id}, {seed.blueprint} in {seed.slot}: {seed.stage.value} for {seed.age} steps"
        f"{gain}{''.join(f', {mark}' for mark in marks)}"
    )


def _proposals(title: str, proposals: tuple[Proposal, ...], led: Proposal | None) -> list[str]:
    lines = [f"{title}:" if proposals else f"{title}: to wait"]
    for proposal in proposals:
        mark = "*" if proposal is led else " "
        kind = str(type(proposal).__struct_config__.tag)
        fields = ((name, getattr(proposal, name)) for name in proposal.__struct_fields__)
        lines.append(f"  {mark} {kind} " + ", ".join(f"{name} {value}" for name, value in fields))
    return lines

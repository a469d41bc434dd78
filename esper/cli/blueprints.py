"""``esper blueprints``: the recipes of seeds, drawn, and how they fared in a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, UserError, reading
from esper.cli.options import key_option
from esper.cli.table import aligned
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.blueprints.ir import Blueprint
    from esper_events.keys import PublicKey

_MAX_DIMENSIONS = 4


def _shape(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """``64`` or ``16x8x8``: the shape of an activation, without the batch dimension."""
    if value is None:
        return None
    parts = value.split("x")
    if len(parts) > _MAX_DIMENSIONS or not all(p.isascii() and p.isdigit() for p in parts):
        raise click.BadParameter(f"got {value!r}, wanted a width (64), or sizes such as 16x8x8")
    return tuple(map(int, parts))


run_option = click.option(
    "--run",
    "run",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="Those that this run (a directory or an export) knew, not those that ship.",
)


@click.group(
    short_help="List and draw the recipes of seeds.",
    epilog="Example:  esper blueprints show gated_mlp --shape 64",
)
def blueprints() -> None:
    """List the blueprints that seeds are made from, and draw their graphs."""


@blueprints.command("list", epilog="Example:  esper blueprints list --run runs/digits")
@run_option
@key_option
def list_(run: Path | None, key_file: Path | None) -> None:
    """List the blueprints that ship, or those of a run, with how their seeds fared there."""
    table: list[tuple[str, ...]]
    if run is None:
        table = [("name", "reads", "nodes", "id")]
        table += [(b.name, b.source, str(len(b.nodes)), b.id[:12]) for b in _shipped().values()]
    else:
        table = _fared(run, key_file)
    for line in aligned(table):
        click.echo(printable(line))


@blueprints.command(epilog="Example:  esper blueprints show squeeze_excite --shape 16x8x8")
@click.argument("name", metavar="NAME")
@click.option(
    "--shape",
    callback=_shape,
    metavar="SHAPE",
    help="Of the slot's output: 64, 32x64 or 16x8x8 (plane).",
)
@click.option(
    "--in-shape", callback=_shape, metavar="SHAPE", help="Of what a span reads (default: --shape)."
)
@run_option
@key_option
def show(
    name: str,
    shape: tuple[int, ...] | None,
    in_shape: tuple[int, ...] | None,
    run: Path | None,
    key_file: Path | None,
) -> None:
    """Draw the graph of the blueprint NAME (or the beginning of its id).

    With --shape each node tells the shape and the parameters that it has in such a slot. The
    features of three sizes are the first, as those of a convolution are, else the last.
    """
    from esper.blueprints.drawing import draw
    from esper.blueprints.ir import BlueprintError
    from esper.blueprints.shapes import Step, plan

    blueprint = _named(name, _shipped() if run is None else _of_run(run, key_file))
    steps: tuple[Step, ...] = ()
    if in_shape is not None and shape is None:
        raise click.UsageError("--in-shape needs --shape: what the slot gives out")
    if shape is not None:
        inside = shape if in_shape is None else in_shape
        try:
            steps = plan(blueprint, inside, _axis(inside), shape, _axis(shape))
        except BlueprintError as error:
            raise UserError(f"{blueprint.name} does not fit such a slot: {error}") from error
    click.echo(printable(f"{blueprint.name}  reads the {blueprint.source}  {blueprint.id}"))
    for line in draw(blueprint, steps):
        click.echo(f"  {printable(line)}")
    if steps:
        click.echo(f"  {sum(step.parameters for step in steps):,} parameters in all")


def _axis(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 3 else len(shape) - 1


def _named(name: str, known: dict[str, Blueprint]) -> Blueprint:
    found = [b for b in known.values() if b.name == name or (name and b.id.startswith(name))]
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(sorted({b.name for b in known.values()})) or "there are none"
    what = "is the name of several, give the beginning of an id" if found else "is none of them"
    raise UserError(f"{name!r} {what}; wanted one of: {wanted}")


def _shipped() -> dict[str, Blueprint]:
    from esper.blueprints.library import LIBRARY

    return {blueprint.id: blueprint for blueprint in LIBRARY.values()}


def _of_run(run: Path, key_file: Path | None) -> dict[str, Blueprint]:
    from esper.blueprints.ir import BlueprintError, from_bytes
    from esper_events.events import BlueprintRegistered
    from esper_events.reader import LogReader

    try:
        with reading(run):
            events = [record.event for record in LogReader(run, _trusted(key_file)).records()]
        bodies = [event.body for event in events if isinstance(event, BlueprintRegistered)]
        return {blueprint.id: blueprint for blueprint in map(from_bytes, bodies)}
    except BlueprintError as error:
        raise NotWholeError(run, error) from error


def _fared(run: Path, key_file: Path | None) -> list[tuple[str, ...]]:
    from esper.projections.catalogue import COMPILER
    from esper.projections.lattice import ProjectionError
    from esper.projections.replay import replay

    try:
        with reading(run):
            state = replay(run, COMPILER, trusted=_trusted(key_file)).state
    except ProjectionError as error:
        raise NotWholeError(run, error) from error
    rows = [
        (b.name, str(b.germinated), str(b.live), str(b.kept), str(b.culled), digest[:12])
        for digest, b in state.blueprints.items()
    ]
    return [("name", "tried", "live", "kept", "culled", "id"), *rows]


def _trusted(key_file: Path | None) -> PublicKey | None:
    from esper_events.command import trusted_key

    return trusted_key(key_file)

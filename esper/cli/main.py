"""The command ``esper`` itself."""

from __future__ import annotations

import sys

import click

from esper.cli.audit import audit
from esper.cli.diff import diff
from esper.cli.explain import explain
from esper.cli.export_log import export_log
from esper.cli.failures import run
from esper.cli.keys import keys
from esper.cli.prove import prove
from esper.cli.repair import repair
from esper.cli.replay import replay
from esper.cli.rerun import rerun
from esper.cli.show import show
from esper.cli.train import train
from esper.cli.verify import verify

_EPILOG = "Example:  esper train examples/digits.toml    (exit codes: docs/cli.md)"


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        click.echo(f"esper {metadata.version('esper-morph')}")
    except metadata.PackageNotFoundError:
        click.echo("esper (not installed)")
    context.exit()


class _Verbs(click.Group):
    """Lists its verbs in the order in which a person comes to need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Verbs, epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def esper() -> None:
    """Grow a PyTorch model while it trains, keep what earns its place, prove it."""


_VERBS = (
    train,
    verify,
    show,
    explain,
    replay,
    diff,
    rerun,
    repair,
    export_log,
    prove,
    audit,
    keys,
)
for _verb in _VERBS:
    esper.add_command(_verb)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(esper))


if __name__ == "__main__":
    main()

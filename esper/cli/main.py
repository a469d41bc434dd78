"""The command ``esper`` itself."""

from __future__ import annotations

import sys

import click

from esper.cli.audit import audit
from esper.cli.blueprints import blueprints
from esper.cli.cancel import cancel
from esper.cli.daemon import daemon
from esper.cli.diff import diff
from esper.cli.explain import explain
from esper.cli.export_log import export_log
from esper.cli.failures import run
from esper.cli.import_log import import_log
from esper.cli.keys import keys
from esper.cli.logs import logs
from esper.cli.prove import prove
from esper.cli.repair import repair
from esper.cli.replay import replay
from esper.cli.rerun import rerun
from esper.cli.runs import runs
from esper.cli.show import show
from esper.cli.status import status
from esper.cli.submit import submit
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


_SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Train": (train, rerun),
    "Let a daemon train": (daemon, submit, status, logs, cancel),
    "Read a run's log": (show, explain, replay, diff, audit, blueprints),
    "Prove it": (verify, prove, keys),
    "Keep it": (runs, repair, export_log, import_log),
}
"""The verbs, in the order in which a person comes to need them."""


class _Verbs(click.Group):
    """Lists its verbs in sections."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in _SECTIONS.items():
            with formatter.section(title):
                rows = [(str(verb.name), verb.get_short_help_str(60)) for verb in verbs]
                formatter.write_dl(rows, col_spacing=14 - max(len(name) for name, _ in rows))


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


for _verb in (verb for verbs in _SECTIONS.values() for verb in verbs):
    esper.add_command(_verb)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(esper))


if __name__ == "__main__":
    main()

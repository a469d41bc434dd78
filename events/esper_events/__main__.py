"""``python -m esper_events``: the same as ``esper-verify``."""

from esper_events.command import main

main(prog_name="esper-verify")

"""README and schemas say what the structs say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from esper_events import schemas
from esper_events.certificate import Certificate
from esper_events.codec import encode_event
from esper_events.events import SlotDeclared
from esper_events.revocation import Revocation
from esper_events.stages import TRANSITIONS, Gate
from support.event_runs import Run

EVENTS = Path(__file__).resolve().parents[2] / "events"
README = (EVENTS / "README.md").read_text(encoding="utf-8")


STRUCTS = {SlotDeclared: "slot", Certificate: "certificate", Revocation: "revocation"}
"""What events hold besides plain fields, and its name in the catalogue."""


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below ``heading``, up to the next one: rows of cells, without backticks."""
    start = re.search(rf"^#+ {re.escape(heading)}$", README, re.MULTILINE)
    assert start is not None, f"no heading {heading}"
    body = re.split(r"^#+ ", README[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", body + "\n", re.MULTILINE):
        lines = block.splitlines()[2:]
        found.append([[c.strip() for c in line.strip("|").split("|")] for line in lines])
    return found


def spelt(kind: inspect.Type) -> str:
    """A type as the catalogue spells it."""
    match kind:
        case inspect.LiteralType(values=values):
            first, *rest = [f"`{value}`" if value else "empty" for value in values]
            return ", ".join([first, *rest[:-1]]) + f" or {rest[-1]}"
        case inspect.DictType(key_type=key, value_type=value):
            return f"map of {spelt(key)} to {spelt(value)}"
        case inspect.VarTupleType(item_type=item):
            return f"list of {spelt(item)}"
        case inspect.EnumType(cls=cls):
            return cls.__name__.lower()
        case inspect.StructType(cls=cls):
            return STRUCTS[cls]
    names = {"Int": "integer", "Float": "float", "Str": "text", "Bytes": "bytes", "Bool": "boolean"}
    return names[type(kind).__name__.removesuffix("Type")]


def rows(struct: type[msgspec.Struct]) -> list[tuple[str, str]]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return [(f"`{field.name}`", spelt(field.type)) for field in info.fields]


@pytest.mark.parametrize("kind", schemas.all_kinds())
def test_the_readme_lists_every_field_of_every_event(kind: str) -> None:
    table = tables(f"`{kind}`")[0]
    assert [(name, type_) for name, type_, _ in table] == rows(schemas.all_kinds()[kind])
    assert all(meaning for _, _, meaning in table)


@pytest.mark.parametrize("struct", STRUCTS)
def test_the_readme_describes_what_events_are_made_of(struct: type[msgspec.Struct]) -> None:
    table = tables(STRUCTS[struct])[0]
    assert [(name, type_) for name, type_, _ in table] == rows(struct)


def test_the_readme_has_no_event_that_is_none() -> None:
    assert re.findall(r"^### `(.*)`$", README, re.MULTILINE) == list(schemas.all_kinds())


def test_the_readme_has_the_transition_table_and_every_gate() -> None:
    wanted = [(t.source.value, t.target.value, t.gate.value) for t in TRANSITIONS]
    table = tables("The life of a seed")[0]
    assert [tuple(cell.strip("`") for cell in row) for row in table] == wanted
    gates = tables("`gate.measured`")[1]
    assert [row[0].strip("`") for row in gates] == [gate.value for gate in Gate]


def test_the_schema_files_are_those_of_the_structs(tmp_path: Path) -> None:
    schemas.main(tmp_path / "new")
    written = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    kept = {path.name: path.read_text() for path in (EVENTS / "schemas").iterdir()}
    again = "run: python -m esper_events.schemas events/schemas"
    assert kept == written, again


def test_a_schema_has_the_fields_that_an_event_has_on_the_wire(run: Run) -> None:
    for event in (event for group in run.groups for event in group):
        wire = msgspec.msgpack.decode(encode_event(event))
        schema = json.loads(schemas.files()[f"{wire['kind']}.json"])
        (name,) = (n for n in schema["$defs"] if schema["$ref"].endswith(f"/{n}"))
        described = list(schema["$defs"][name]["properties"])
        left_out = [field for field in described if field not in wire]
        assert left_out in ([], ["certificate", "next_key"], ["objective", "consulted"])
        assert [field for field in described if field not in left_out] == list(wire)


def test_the_example_of_the_readme_runs(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    run.write(tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("True whole: 7 events")
    assert len(out) == 8

"""A drawing shows what each node reads: every edge can be followed by eye."""

from __future__ import annotations

import pytest

from esper.blueprints.drawing import draw
from esper.blueprints.ir import Activation, Add, Blueprint, Linear, Multiply, Size, operands
from esper.blueprints.library import LIBRARY
from esper.blueprints.shapes import plan

ZERO = Linear(6, Size("out"), init="zero")
KNOT = Blueprint(
    "knot",
    "output",
    (
        Linear(0, Size("out")),  # 1
        Activation(0, "relu"),  # 2
        Add(1, 2),  # 3
        Multiply(3, 1),  # 4: 1 once more, behind 3
        Add(0, 4),  # 5
        Multiply(5, 5),  # 6: the same value twice
        ZERO,  # 7
    ),
)


def test_rails_part_cross_and_join() -> None:
    assert draw(KNOT) == [
        "○        in",
        "├─╮",
        "│ ●      linear, size out",
        "├─┼─╮",
        "│ │ ●    activation, function relu",
        "│ ├─┼─╮",
        "│ │ ╰─●  add",
        "│ ╰───●  multiply",
        "●─────╯  add",
        "●        multiply",
        "●        linear, size out, init zero",
    ]


@pytest.mark.parametrize("name", LIBRARY)
def test_every_node_of_the_library_is_drawn_once(name: str) -> None:
    lines, nodes = draw(LIBRARY[name]), LIBRARY[name].nodes
    assert sum(line.count("●") for line in lines) == len(nodes)
    joined = sum(line.count(mark) for line in lines for mark in "╯╰┤")
    assert joined == sum(len(set(operands(node))) - 1 for node in nodes)


def test_a_node_tells_its_shape_and_parameters() -> None:
    blueprint = LIBRARY["gated_mlp"]
    steps = plan(blueprint, (64,), 0, (64,), 0)
    assert draw(blueprint, steps) == [
        "○    in",
        "├─╮",
        "│ ●  linear, size out/2 (at least 8)  features 32  2,080 parameters",
        "│ ●  activation, function silu        features 32",
        "● │  linear, size out/2 (at least 8)  features 32  2,080 parameters",
        "╰─●  multiply                         features 32",
        "  ●  linear, size out, init zero      features 64  2,112 parameters",
    ]

"""Every projection by its name."""

from __future__ import annotations

from typing import Any

from esper.projections import audit, compiler, controller, lattice, words
from esper.projections.projection import Projection

LATTICE = Projection("lattice", lattice.LatticeState(), lattice.fold, words.lattice_words)
CONTROLLER = Projection(
    "controller", controller.ControllerState(), controller.fold, words.controller_words
)
COMPILER = Projection("compiler", compiler.CompilerState(), compiler.fold, words.compiler_words)
AUDIT = Projection("audit", audit.AuditState(), audit.fold, words.audit_words)

PROJECTIONS: dict[str, Projection[Any]] = {
    projection.name: projection for projection in (LATTICE, CONTROLLER, COMPILER, AUDIT)
}

"""Running an exported model where Esper does not exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ALONE = """
import sys, torch

class NoEsper:
    # Esper may be installed where the tests run.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("esper", "esper_events"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoEsper())
model = torch.load(sys.argv[1], weights_only=False)
x, wanted = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    assert torch.equal(model(x), wanted)
program = torch.export.export(
    model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
).module()
with torch.no_grad():
    torch.testing.assert_close(program(x), wanted)
    torch.testing.assert_close(program(x[:3]), wanted[:3])
try:
    import esper
except ModuleNotFoundError:
    assert not [name for name in sys.modules if name.startswith("esper")]
    print("no esper, same outputs")
"""


def run_alone(model: nn.Module, x: Tensor, where: Path) -> None:
    """Run the pickled ``model`` in a process that cannot import Esper."""
    torch.save(model, where / "model.pt")
    with torch.no_grad():
        torch.save((x, model(x)), where / "run.pt")
    assert b"esper" not in (where / "model.pt").read_bytes()
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, where / "model.pt", where / "run.pt"],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no esper, same outputs\n"), done.stderr

"""Loads the compiled operators; what is missing is said together with its remedy."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import torch

from esper.kasmina.errors import KasminaError

_FOLDER = Path(__file__).resolve().parent
CPU_LIBRARY = _FOLDER / "libesper_ops.so"
CUDA_LIBRARY = _FOLDER / "libesper_ops_cuda.so"
_NODES = "libesper_autograd-{}.so"
_logger = logging.getLogger("esper.kasmina")


class NativeLibraryError(KasminaError, ImportError):
    """A compiled library is missing or does not load; the message tells what to do."""


def load() -> None:
    """Register the operators with torch; later calls do nothing.

    Raises:
        NativeLibraryError: the CPU library is missing or does not load. A missing CUDA library
            disables CUDA tensors only, see :func:`require_cuda`.
    """
    global _cuda_problem
    if hasattr(torch.ops.esper, "graft_blend"):
        return
    _load(CPU_LIBRARY)
    if torch.version.cuda is not None:
        try:
            _load(CUDA_LIBRARY)
            _cuda_problem = None
        except NativeLibraryError as error:
            _cuda_problem = str(error)


def require_cuda() -> None:
    """Check that the operators take CUDA tensors.

    Raises:
        NativeLibraryError: they do not, with the reason.
    """
    if _cuda_problem is not None:
        raise NativeLibraryError(_cuda_problem)


def load_nodes(folder: Path = _FOLDER) -> Any | None:
    """The autograd nodes in C++, or None where ``folder`` has none for exactly this torch.

    They use what torch does not keep stable, so each is named after the torch that it was built
    with. Nodes in Python serve in their place: they compute the same bits and cost some
    microseconds more.
    """
    library = folder / _NODES.format(torch.__version__)
    if not library.is_file():
        others = ", ".join(sorted(path.name for path in folder.glob(_NODES.format("*"))))
        _logger.debug(
            "autograd nodes in Python serve: got %s, wanted %s; run `make build` in a checkout, or "
            "reinstall, beside torch %s",
            others or "none that is compiled",
            library.name,
            torch.__version__,
        )
        return None
    try:
        _load(library)
    except NativeLibraryError as error:
        _logger.warning("autograd nodes in Python serve: %s", error)
        return None
    return torch.ops.esper_autograd


def cpu_isa() -> str:
    """The instruction set of the CPU kernels in use: ``baseline``, ``avx2`` or ``avx512``.

    ``ESPER_CPU_ISA`` in the environment asks for one of them; all compute the same bits.
    """
    load()
    function = ctypes.CDLL(str(CPU_LIBRARY)).esper_cpu_isa
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def _load(library: Path) -> None:
    remedy = "run `make build` in a checkout, or reinstall with `pip install .`"
    if library == CUDA_LIBRARY:
        remedy = f"with nvcc on PATH and ESPER_CUDA=on, {remedy}"
    if not library.is_file():
        raise NativeLibraryError(
            f"got no {library.name} in {library.parent}, wanted the compiled operators; {remedy}"
        )
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise NativeLibraryError(
            f"{library.name} does not load beside torch {torch.__version__} "
            f"(wanted 2.11 or later): {error}; {remedy}"
        ) from error


_cuda_problem: str | None = "this torch has no CUDA; install a CUDA build of torch"

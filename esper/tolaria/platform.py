"""Where a run runs: the preconditions under which its bits can be had again."""

from __future__ import annotations

import platform

import numpy as np
import torch


def describe_platform() -> dict[str, str]:
    """Versions, processor and thread count, as named texts."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": str(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

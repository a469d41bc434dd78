"""The user's own module, whatever torch has wrapped around it for training."""

from __future__ import annotations

import sys

import torch
from torch import nn

from esper.kasmina.errors import KasminaError


def own_module(model: nn.Module) -> nn.Module:
    """``model`` itself, or the module inside ``torch.compile``, DataParallel or DDP.

    Raises:
        KasminaError: it is trained on several devices or in several processes at once.
    """
    _refuse_several_processes()
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    if "torch._dynamo" in sys.modules and "_orig_mod" in model._modules:
        return model.get_submodule("_orig_mod")
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise KasminaError(
            f"nn.DataParallel copies the model to {len(model.device_ids)} devices at every step, "
            "and a seed would be shared by all copies: train on one device while it grows"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = model.module
        return inner
    return None


def _refuse_several_processes() -> None:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    processes = distributed.get_world_size()
    if processes > 1:
        raise KasminaError(
            f"{processes} processes train this model together: each would decide on its own what "
            "grows, and what has grown would not be averaged between them; grow in one process, "
            "then train what esper.export gives in all"
        )

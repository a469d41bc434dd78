"""A grown model as an ordinary module: nothing of Esper is left in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn

from esper.kasmina.graft import GraftedSeed, GraftPoint
from esper.portable.errors import ExportError
from esper.portable.tracing import carries_growth, is_ours, plain_module


def export(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which whatever has grown is plain torch; ``model`` does not change.

    A module with growth on its output becomes a ``torch.fx.GraphModule`` of the same place, whose
    parts are torch's own modules and functions; the smallest module around a span of several
    modules becomes one as a whole, of which the forward is kept and other methods are not. All
    else is a copy of the user's own. The operations and their order are those of the grown model,
    so outputs equal its outputs bit for bit. Parameters keep their names, except that those of a
    host which stays a module of its own (BatchNorm, one with hooks) stand behind ``host``. The
    result pickles, deep-copies, trains on and goes through ``torch.export``, also where Esper is
    not installed.

    Raises:
        ExportError: a seed is still on trial, the model cannot be copied, or the module around a
            span cannot be traced; the message says which and what to do.
    """
    source = getattr(model, "_orig_mod", model)
    _refuse_trials(source)
    holder = nn.Module()
    holder.add_module("model", _copied(source))
    for path in _regions(source):
        place = f"model.{path}" if path else "model"
        parent_path, _, name = place.rpartition(".")
        plain = plain_module(holder.get_submodule(place), path)
        holder.get_submodule(parent_path)._modules[name] = plain
    result = holder.get_submodule("model")
    _keep_to_the_slow_path(source, result)
    _refuse_remains(result)
    return result


def _refuse_trials(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, GraftedSeed) and module.isolated:
            raise ExportError(
                f"{name} is a seed on trial (alpha {float(module.alpha):.3g}), which may yet be "
                "taken out again; export when it has been decided, at the latest after "
                "growth.close()"
            )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ExportError(
            f"the model cannot be copied, so it cannot be exported: {error}; keep what "
            "copy.deepcopy refuses outside the model"
        ) from error


def _grown_places(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """For every graft point with seeds: its path and the paths where its spans start."""
    points = [(n, m) for n, m in model.named_modules() if isinstance(m, GraftPoint)]
    starts = {id(r): name for name, point in points for r in point.recorders.values()}
    for name, point in (entry for entry in points if entry[1].seeds):
        yield (name, *(starts[id(r)] for r in point.span_inputs.values()))


def _regions(model: nn.Module) -> list[str]:
    """The paths of the modules to rewrite, inner ones first.

    A module that a span leaves or enters is rewritten with what surrounds it.
    """
    spans = [(paths, _region(model, paths)) for paths in _grown_places(model)]
    regions = {
        region
        for _, region in spans
        if not any(
            _inside(region, wider)
            and any(path == region or _inside(path, region) for path in paths)
            for paths, wider in spans
        )
    }
    return sorted(regions, key=lambda path: -len(path.split(".")) if path else 0)


def _inside(path: str, outer: str) -> bool:
    """Whether ``path`` names a part of ``outer``."""
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _region(model: nn.Module, paths: tuple[str, ...]) -> str:
    """The path of the smallest module that is called and has all of ``paths`` inside."""
    common = paths[0].split(".") if paths[0] else []
    for path in paths[1:]:
        steps = path.split(".") if path else []
        same = [a == b for a, b in zip(common, steps, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    while common and not _is_called(model.get_submodule(".".join(common))):
        common = common[:-1]
    return ".".join(common)


def _is_called(module: nn.Module) -> bool:
    """Whether the module has a forward of its own: lists and dictionaries of modules have none."""
    return type(module).forward is not nn.Module.forward


def _keep_to_the_slow_path(source: nn.Module, result: nn.Module) -> None:
    """Keep stock encoder layers from running a fused kernel on weights that have grown since.

    In the grown model a hook does that; this flag of theirs does the same and needs no code.
    """
    for name, module in source.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and carries_growth(module):
            layer = _submodule(result, name)
            if isinstance(layer, nn.TransformerEncoderLayer):
                layer.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and carries_growth(module):
            encoder = _submodule(result, name)
            if isinstance(encoder, nn.TransformerEncoder):
                encoder.enable_nested_tensor = encoder.use_nested_tensor = False


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _refuse_remains(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if is_ours(module):
            raise ExportError(
                f"{name or 'the model'} is still a {type(module).__qualname__} of Esper; please "
                "report this"
            )

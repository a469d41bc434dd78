"""Rewriting the module around some growth as a graph of torch's own modules and functions."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from esper.kasmina.graft import GraftedSeed, GraftPoint, _seen, host_of
from esper.kasmina.random_state import RandomState
from esper.portable.errors import ExportError
from esper.portable.hooked import Addition, fits_a_graph, hook_in
from esper.portable.stock import passes_options, straight

_INLINE = (
    *(nn.Linear, nn.Conv2d, nn.Conv1d, nn.LayerNorm),
    *(nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
)
"""Hosts whose forward is one function of their own parameters: these keep their names."""

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)

_KEPT_BY_COPIES = "_user_preserved_attributes"
"""Where ``copy.deepcopy`` of a graph module looks for attributes besides those of the graph."""

_PLAIN = (bool, int, float, str, tuple, torch.dtype, torch.device, type(None))


class _Tracer(fx.Tracer):
    """Goes into what has grown and what surrounds it, and into nothing else."""

    proxy_buffer_attributes = True  # Or arithmetic on buffers would be done once, while tracing.

    def __init__(self, region: nn.Module, inlined: nn.Module | None) -> None:
        super().__init__()
        self._inlined = inlined
        points = [module for module in region.modules() if isinstance(module, GraftPoint)]
        self._outputs = {host_of(point): point.outputs for point in points}

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Give a graft point, which takes anything, the arguments of its host."""
        if not isinstance(self.root, GraftPoint):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        arguments: list[Any] = [self.root]
        for name, parameter in inspect.signature(host_of(self.root).forward).parameters.items():
            default = () if parameter.default is parameter.empty else (parameter.default,)
            arguments.append(self.create_proxy("placeholder", name, default, {}))
        return root_fn, arguments

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Take apart what a host returns as a tuple, as the graft point around it does."""
        result = super().call_module(m, forward, args, kwargs)
        count = self._outputs.get(m, 0)
        return tuple(result[i] for i in range(count)) if count else result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self._inlined and not carries_growth(m) and not _any_of_ours(m)


def is_ours(module: nn.Module) -> bool:
    """Whether the class of ``module`` belongs to Esper."""
    return type(module).__module__.partition(".")[0] == "esper"


def _any_of_ours(module: nn.Module) -> bool:
    return any(is_ours(part) for part in module.modules())


def carries_growth(module: nn.Module) -> bool:
    """Whether a graft point stands in ``module`` or is it."""
    return any(isinstance(part, GraftPoint) for part in module.modules())


def plain_module(region: nn.Module, path: str) -> nn.Module:
    """``region``, which the caller owns, as a graph module; ``path`` is its name in messages.

    A graft point on a module whose arguments no graph can hold becomes that module with a graph
    behind it.

    Raises:
        ExportError: its forward cannot be traced, or a trace would not stand for all of it.
    """
    if isinstance(region, GraftPoint) and not fits_a_graph(host_of(region)):
        hooks = {name: _users_own(region, name) for name in _HOOKS}
        return hook_in(region, _graph_module(Addition(region), path), hooks)
    return _graph_module(region, path)


def _graph_module(region: nn.Module, path: str) -> fx.GraphModule:
    root = host_of(region) if isinstance(region, GraftPoint) else None
    inlined = root if root is not None and _is_inline(root) else None
    graph = _traced(region, inlined, path)
    kept = {id(t) for t in (*region.parameters(), *_lasting_buffers(region))}
    names = _new_names(region, inlined)
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            new = _renamed(str(node.target), names)
            parts[new] = _attribute(region, str(node.target))
            node.target = new
        node.meta.clear()
        node.type = None  # An annotation that is text would make the module unpicklable.
    graph._tracer_cls = None
    _require_all_growth(region, path, names, parts)
    module = fx.GraphModule(parts, graph, f"Grown{type(root or region).__name__}")
    _make_fleeting(module, kept)
    _carry_over(region, root or region, module)
    return module


def _is_inline(host: nn.Module) -> bool:
    return type(host) in _INLINE and not any(getattr(host, name) for name in _HOOKS)


def _traced(region: nn.Module, inlined: nn.Module | None, path: str) -> fx.Graph:
    """One graph for training and evaluation; where they differ, the graph would lie."""
    random_state, drawn, state = RandomState(), _random_bits(), _state(region)
    first = _trace_once(region, inlined, path, training=True)
    graph = _trace_once(region, inlined, path, training=False)
    if drawn != _random_bits():
        random_state.restore()
        raise ExportError(_refusal(path, region, "its forward draws random numbers by itself"))
    if state != _state(region):
        raise ExportError(_refusal(path, region, "its forward changes its own buffers or counters"))
    if _shape(first) != _shape(graph):
        raise ExportError(
            _refusal(
                path,
                region,
                "its forward does one thing in training and another in evaluation (self.training); "
                "use modules such as nn.Dropout in place of functions",
            )
        )
    return graph


def _trace_once(
    region: nn.Module, inlined: nn.Module | None, path: str, *, training: bool
) -> fx.Graph:
    for name in [name for name in vars(region) if name.startswith("_tensor_constant")]:
        delattr(region, name)  # of an earlier trace
    try:
        with _mode(region, inlined, training), straight(region):
            return _Tracer(region, inlined).trace(region, _switched_off(region))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(_refusal(path, region, f"torch.fx cannot trace it ({reason})")) from error


def _switched_off(region: nn.Module) -> dict[str, Any]:
    """Optional arguments, fixed at their defaults: a trace cannot ask whether one was given.

    The graph checks them at each call.
    """
    if passes_options(region):
        return {}
    parameters = inspect.signature(type(region).forward).parameters.values()
    return {
        p.name: p.default for p in parameters if p.default is None or p.default in (True, False)
    }


def _random_bits() -> tuple[object, ...]:
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else repr(numpy.random.get_state(legacy=False))
    return torch.default_generator.get_state().numpy().tobytes(), random.getstate(), drawn


def _state(region: nn.Module) -> list[object]:
    """What a forward pass may have changed in the modules that were traced."""
    opened = [module for module in region.modules() if carries_growth(module)]
    buffers = [(id(b), b._version) for m in opened for b in m._buffers.values() if b is not None]
    plain = (bool, int, float, str)
    counters = [
        (name, value)
        for module in opened
        for name, value in vars(module).items()
        if isinstance(value, plain)
    ]
    return [buffers, counters]


def _refusal(path: str, region: nn.Module, reason: str) -> str:
    place = path or "the model"
    if isinstance(region, GraftPoint):
        return f"what has grown on {place} cannot be made plain: {reason}"
    return (
        f"a seed spans several modules of {place} ({type(region).__name__}), and that cannot be "
        f"made plain: {reason}. Put the modules of the span into an nn.Sequential or a module with "
        "a straight forward, or keep the grown model with esper.save"
    )


def _shape(graph: fx.Graph) -> list[tuple[str, str, str, str, str]]:
    return [
        (node.name, node.op, str(node.target), repr(node.args), repr(node.kwargs))
        for node in graph.nodes
    ]


@contextmanager
def _mode(region: nn.Module, inlined: nn.Module | None, training: bool) -> Iterator[None]:
    """Set the mode of every module that the tracer goes into; each one's own returns."""
    opened = [m for m in region.modules() if carries_growth(m) or is_ours(m) or m is inlined]
    modes = [(module, module.training) for module in opened]
    for module in opened:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _new_names(region: nn.Module, inlined: nn.Module | None) -> dict[str, str]:
    """Prefixes of old paths and what stands for them: hosts keep the names that they had."""
    names: dict[str, str] = {}
    for path, module in region.named_modules():
        if isinstance(module, GraftPoint):
            if path:
                names[f"{path}.host"] = _renamed(path, names)
            elif host_of(module) is inlined:
                names["host"] = ""
        elif isinstance(module, GraftedSeed):
            place, _, key = f".{path}".rpartition(".seeds.")
            fossil = f"{place.lstrip('.')}.fossil_{key}".lstrip(".").replace(".", "_")
            names[f"{path}.body"] = fossil
    return names


def _require_all_growth(
    region: nn.Module, path: str, names: dict[str, str], parts: dict[str, Any]
) -> None:
    for name, module in region.named_modules():
        if isinstance(module, GraftedSeed):
            body = names[f"{name}.body"]
            if not any(part == body or part.startswith(f"{body}.") for part in parts):
                raise ExportError(_refusal(path, region, f"its forward does not reach {name}"))


def _renamed(target: str, names: dict[str, str]) -> str:
    for old in sorted(names, key=len, reverse=True):
        if target == old or target.startswith(f"{old}."):
            return (names[old] + target[len(old) :]).lstrip(".")
    return target


def _attribute(root: nn.Module, target: str) -> Any:
    found: Any = root
    for name in target.split("."):
        found = getattr(found, name)
    return found


def _lasting_buffers(region: nn.Module) -> list[Tensor]:
    """Buffers that belong into the ``state_dict``."""
    return [
        buffer
        for module in region.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def _make_fleeting(module: nn.Module, kept: set[int]) -> None:
    """Keep out of the ``state_dict`` what was not in it before: constants of the trace, too."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in kept:
                part._non_persistent_buffers_set.add(name)


def _users_own(region: nn.Module, hooks: str) -> dict[int, Any]:
    return {key: hook for key, hook in getattr(region, hooks).items() if hook is not _seen}


def _carry_over(region: nn.Module, host: nn.Module, new: fx.GraphModule) -> None:
    """Give ``new`` the mode and hooks of ``region`` and the plain public attributes of ``host``."""
    for part in new.modules():
        if type(part) is nn.Module or part is new:
            part.training = region.training
    for name in _HOOKS:
        getattr(new, name).update(_users_own(region, name))
    kept: dict[str, Any] = {
        name: value
        for name, value in vars(host).items()
        if not name.startswith("_") and name not in vars(new) and isinstance(value, _PLAIN)
    }
    if isinstance(host, nn.MultiheadAttention):
        kept["in_proj_bias"] = None  # Stock layers ask for it; without, they take the slow path.
    if isinstance(host, nn.TransformerEncoderLayer) and not hasattr(new, "self_attn"):
        # The encoder around it asks its first layer.
        kept["self_attn"] = SimpleNamespace(batch_first=host.self_attn.batch_first)
    vars(new).update(kept)
    new.meta[_KEPT_BY_COPIES] = kept

"""One question to a controller as bytes that are kept: what it was shown, what it remembered, what
it proposed; and the same question put again.
"""

from __future__ import annotations

import logging
import numbers
from typing import Annotated, Any, TypeVar

import msgspec

from esper.tamiyo import rules
from esper.tamiyo.interface import (
    UNNAMED,
    Controller,
    Described,
    Observation,
    Policy,
    Proposal,
    Restorable,
)

T = TypeVar("T")

_logger = logging.getLogger("esper.tamiyo")

_NOTHING = b"\xc0"


class ConsultationError(Exception):
    """Bytes that are no consultation or policy of a kind known here."""


class NotComputableError(Exception):
    """No controller is known here that decides by such a policy."""


class Consultation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a controller was shown, its state right before (nil where it tells none), and all that
    it proposed."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    observation: Observation
    memory: msgspec.Raw
    proposals: tuple[Proposal, ...]

    @property
    def remembered(self) -> Any:
        """The state as plain values, its tuples as lists."""
        return msgspec.msgpack.decode(self.memory)


def _plain(value: object) -> int | float:
    """Numbers of other libraries as those of Python."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"got a {type(value).__name__}, wanted numbers, text, lists and mappings")


_encoder = msgspec.msgpack.Encoder(order="deterministic", enc_hook=_plain)
_REFUSED = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class Questioner:
    """Asks a controller, and keeps the question as it stood before."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._forgetful = False

    @property
    def policy(self) -> Policy:
        """What the controller says that it decides by."""
        controller = self._controller
        return controller.policy if isinstance(controller, Described) else UNNAMED

    def ask(self, observation: Observation) -> Consultation:
        """Put ``observation`` before the controller."""
        memory = msgspec.Raw(self._memory())
        return Consultation(1, observation, memory, tuple(self._controller.decide(observation)))

    def _memory(self) -> bytes:
        """The controller's state, before it changes it."""
        if self._forgetful or not isinstance(self._controller, Restorable):
            return _NOTHING
        try:
            return _encoder.encode(self._controller.state())
        except _REFUSED as error:
            self._forgetful = True
            _logger.warning("the controller's state is not on record: %s", error)
            return _NOTHING


def canonical(told: Policy | Consultation) -> bytes:
    """The canonical bytes of what a controller told.

    Raises:
        ValueError: settings or a proposal hold what they never hold.
    """
    try:
        return _encoder.encode(told)
    except _REFUSED as error:
        raise ValueError(f"the controller tells what cannot be put on record: {error}") from error


def read_policy(data: bytes) -> Policy:
    """The policy whose canonical bytes are ``data``. Raises ``ConsultationError``."""
    return _decoded(data, Policy)


def read_consultation(data: bytes) -> Consultation:
    """The consultation whose canonical bytes are ``data``. Raises ``ConsultationError``."""
    asked = _decoded(data, Consultation)
    _decoded(bytes(asked.memory), object)
    return asked


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        value = msgspec.msgpack.decode(data, type=kind, strict=True)
        again = _encoder.encode(value)
    except _REFUSED as error:
        raise ConsultationError(f"cannot be read here: {error}") from error
    if again != data:
        raise ConsultationError("cannot be read here: it holds more than this version knows")
    return value


def same_answer(one: tuple[Proposal, ...], other: tuple[Proposal, ...]) -> bool:
    """Whether the proposals are the same to the bit, in the same order."""
    return _encoder.encode(one) == _encoder.encode(other)


def recompute(policy: Policy, asked: Consultation) -> tuple[Proposal, ...]:
    """What a controller of ``policy`` that remembers what it did then proposes now.

    Raises:
        NotComputableError: no such controller is known here.
        ConsultationError: settings or state are not those of one.
    """
    if policy.name != rules.NAME:
        name = policy.name or "without a name"
        raise NotComputableError(f"the controller is one of the user's own ({name})")
    if policy.version != rules.VERSION:
        here = f"version {policy.version}, here is {rules.VERSION}"
        raise NotComputableError(f"the controller is {policy.name} of {here}")
    try:
        controller = rules.RuleController(msgspec.convert(policy.settings, rules.Rules))
        controller.restore(asked.remembered)
        return tuple(controller.decide(asked.observation))
    except (*_REFUSED, ArithmeticError, LookupError, MemoryError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ConsultationError(f"no rule-based controller was asked this: {told}") from error

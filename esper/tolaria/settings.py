"""Settings of growth: what a user may tune, with the bounds that keep a run sane."""

from __future__ import annotations

from typing import Annotated

import msgspec

from esper_events.events import Objective

Count = Annotated[int, msgspec.Meta(ge=1)]
Steps = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]


class GrowthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All counts are optimizer steps unless a field says otherwise.

    - ``observe_every``: held-out loss is measured this often while nothing is on trial (each
      measurement costs a few steps), and ``measure_every`` at most while something is.
    - ``warmup``: no growth before this step.
    - ``patience``, ``plateau``: growth is considered when the best held-out loss of the last
      ``patience`` observations is less than the fraction ``plateau`` better than the best before.
    - ``max_growths``: fossils after which the run only trains.
    - ``trials``: seeds that one tournament germinates; ``trial_steps``: shadow steps of the
      longest trial; ``rungs``: times that a tournament halves; ``shadow_every``: a shadow pass
      is run at every n-th step; ``share``: seeds that share one, at most. Downstream of its slot
      each has activations of its own, so a large host may want fewer; 1 keeps them apart.
    - ``seed_lr_scale``: learning rate of a seed in TRAINING, as a multiple of its host group's.
    - ``max_added_parameters``: budget of all fossils and the seed being grafted.
    - ``blend_steps``, ``stabilize_steps``, ``evaluate_steps``: lengths of the blended stages.
    - ``stability_band``: STABILIZING ends when the held-out loss is at most this multiple of
      what it was when grafting began.
    - ``explosion``: a training loss above this multiple of its running mean culls the seed.
      A held-out loss above this multiple of the worst before counts as a spoilt host.
    - ``rollbacks``: times that a spoilt host goes back to one checkpoint, where the run keeps any,
      before the one before that is taken; with none left the run fails. Where there never was one,
      and with 0, it goes on as it is.
    - ``min_effect``: relative reduction of held-out loss that the fork gate asks for.
    - ``error_budget``: chance that a run keeps any seed that is worth nothing; test ``k`` spends
      ``6 / (pi * k)**2`` of it.
    - ``shadow_confidence``: one-sided confidence of the shadow gate.
    - ``fold``: let a fossil become part of its module's weights where both compose to one module.
    - ``embargo``: cool-down of a slot after a cull.
    - ``lead``: steps between a decision and the step at which it takes effect; a log that has
      not acknowledged it by then delays it, and lets it lapse after ``ack_timeout`` seconds.
    - ``sync_decisions``: wait for the acknowledgement at that step, so that every change takes
      effect at exactly the step that its decision names.
    - ``breaker_limit``: lapses in a row that open the log's circuit breaker;
      ``breaker_cooldown``: steps until it is tried again.
    - ``record_every``: steps, at least, between two records of the host's bits in the log.
    - ``step_statistics``: keep figures of every layer's input and gradient at every step, and
      ``sample_every``: measure all layers as ``esper.inspect`` does every so many steps (0: never);
      both are read through ``Growth.telemetry``.
    - ``blueprints``: names from the library; empty means all that apply.
    - ``objectives``: what seeds in TRAINING learn from; several are given to the seeds of a
      tournament in turn. ``shadow`` is the host's own loss with the seed switched on; for
      ``reconstruction``, ``negative_gradient`` and ``next_layer`` see
      :mod:`esper.kasmina.objectives`. The gates are the same for all.
    """

    observe_every: Count = 1000
    measure_every: Count = 50
    warmup: Steps = 400
    patience: Count = 4
    plateau: Fraction = 0.02
    max_growths: Steps = 2
    trials: Count = 8
    trial_steps: Count = 200
    rungs: Steps = 2
    shadow_every: Count = 1
    share: Count = 16
    seed_lr_scale: Positive = 1.0
    max_added_parameters: Count = 1_000_000
    blend_steps: Count = 200
    stabilize_steps: Count = 100
    evaluate_steps: Count = 400
    stability_band: Positive = 1.25
    explosion: Positive = 15.0
    rollbacks: Steps = 2
    min_effect: Fraction = 0.15
    error_budget: Fraction = 0.05
    shadow_confidence: Fraction = 0.95
    fold: bool = True
    embargo: Steps = 400
    lead: Count = 20
    sync_decisions: bool = False
    ack_timeout: Positive = 5.0
    breaker_limit: Count = 3
    breaker_cooldown: Count = 500
    record_every: Count = 1000
    step_statistics: bool = False
    sample_every: Steps = 0
    blueprints: tuple[str, ...] = ()
    objectives: Annotated[tuple[Objective, ...], msgspec.Meta(min_length=1)] = ("shadow",)

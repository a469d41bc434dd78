from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo.interface import (
    Advance,
    Candidate,
    Cull,
    Germinate,
    Observation,
    Plateau,
    Proposal,
    SeedView,
)
from esper.tamiyo.rules import RuleController, Rules, has_plateaued
from esper_events.events import Objective
from esper_events.stages import LIVE, Stage

RULES = Rules(
    warmup=100,
    patience=3,
    plateau=0.02,
    max_growths=2,
    trials=8,
    trial_steps=90,
    rungs=2,
)
CANDIDATES = tuple(
    Candidate(slot, blueprint, 10) for slot in ("a", "b", "c") for blueprint in ("x", "y", "z")
)
losses = st.floats(1e-3, 1e3)


def flat(start: int, count: int, loss: float = 1.0) -> tuple[tuple[int, float], ...]:
    return tuple((start + 10 * n, loss) for n in range(count))


def at_rest(
    step: int = 1000,
    held_out: tuple[tuple[int, float], ...] = flat(100, 20),
    fossils: int = 0,
    candidates: tuple[Candidate, ...] = CANDIDATES,
) -> Observation:
    return Observation(step, held_out, candidates, (), fossils)


def view(
    number: int,
    stage: Stage = Stage.TRAINING,
    gain: float | None = 0.1,
    shadow_steps: int = 0,
    **more: object,
) -> SeedView:
    seed = SeedView(
        id=number,
        slot="a",
        blueprint="x",
        stage=stage,
        age=10,
        shadow_steps=shadow_steps,
        gains=() if gain is None else (0.9 - number, gain),
        ready=True,
        pending=False,
        refusals=0,
    )
    return replace(seed, **more)  # type: ignore[arg-type]


def asked(*seeds: SeedView, controller: RuleController | None = None) -> list[Proposal]:
    ours = controller or RuleController(RULES)
    return ours.decide(Observation(500, flat(100, 20), (), seeds, 0))


def culled(proposals: list[Proposal]) -> list[int]:
    return [p.seed for p in proposals if isinstance(p, Cull)]


def advanced(proposals: list[Proposal]) -> list[int]:
    return [p.seed for p in proposals if isinstance(p, Advance)]


def germinated(proposals: list[Proposal]) -> list[tuple[str, str]]:
    return [(p.slot, p.blueprint) for p in proposals if isinstance(p, Germinate)]


def test_the_seeds_of_a_tournament_get_the_objectives_in_turn() -> None:
    def objectives(*wanted: Objective) -> list[Objective]:
        rules = replace(RULES, objectives=wanted) if wanted else RULES
        proposals = RuleController(rules).decide(at_rest())
        return [p.objective for p in proposals if isinstance(p, Germinate)]

    assert objectives() == ["shadow"] * 8
    assert objectives("shadow", "next_layer") == ["shadow", "next_layer"] * 4


@pytest.mark.parametrize(
    ("seen", "plateaued"),
    [
        ([], False),
        ([1.0, 1.0, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.99, 0.99, 0.985], True),
        ([1.0, 0.99, 0.99, 0.97], False),
        ([1.0, 0.5, 0.9, 0.9], False),
        ([0.5, 1.0, 1.0, 1.0], True),
        ([2.0, 1.0, 1.0, 1.0, 0.99], True),
        ([2.0, 1.0, 1.0, 1.0, 0.97], False),
        ([-1.0, -1.0, -1.0, -1.0], True),
        ([-1.0, -1.0, -1.0, -1.5], False),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([math.nan, 1.0, 1.0, 1.0, 1.0], True),
        ([1.0, math.nan, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, math.nan, math.inf, math.nan], False),
        ([math.nan, math.inf, 1.0, 1.0, 1.0], False),
    ],
)
def test_a_plateau_is_no_progress_over_the_last_observations(
    seen: list[float], plateaued: bool
) -> None:
    assert has_plateaued(seen, 3, 0.02) is plateaued


@given(st.lists(losses, min_size=5, max_size=40), st.integers(1, 4), st.floats(0.001, 0.5))
def test_a_plateau_is_a_matter_of_bests_and_of_scale_alone(
    seen: list[float], patience: int, threshold: float
) -> None:
    expected = min(seen[-patience:]) > (1 - threshold) * min(seen[:-patience])
    found = has_plateaued(seen, patience, threshold)
    close = math.isclose(
        min(seen[-patience:]), (1 - threshold) * min(seen[:-patience]), rel_tol=1e-9
    )
    assert found is expected or close
    assert has_plateaued([4.0 * loss for loss in seen], patience, threshold) is found
    assert not has_plateaued([*seen, min(seen) * (1 - threshold) * 0.99], patience, threshold)


@given(st.lists(losses, min_size=1, max_size=30), st.integers(1, 5))
def test_standing_still_is_a_plateau_once_there_is_enough_to_see(
    seen: list[float], patience: int
) -> None:
    still = [min(seen)] * patience
    assert has_plateaued([*seen, *still], patience, 0.02)
    assert not has_plateaued([min(seen)] * patience, patience, 0.02)


def test_nothing_grows_in_warmup_while_improving_or_beyond_the_last_growth() -> None:
    falling = tuple((100 + 10 * n, 0.9**n) for n in range(20))
    for observation in (
        at_rest(step=99),
        at_rest(held_out=falling),
        at_rest(held_out=flat(100, 3)),
        at_rest(fossils=2),
    ):
        assert RuleController(RULES).decide(observation) == []


def test_a_plateau_is_told_and_answered_with_a_portfolio() -> None:
    plateau, *rest = RuleController(RULES).decide(at_rest())
    assert plateau == Plateau(1.0)
    assert len(germinated(rest)) == len(rest) == RULES.trials
    assert len(set(germinated(rest))) == RULES.trials


def test_a_plateau_without_candidates_is_told_all_the_same() -> None:
    assert RuleController(RULES).decide(at_rest(candidates=())) == [Plateau(1.0)]


@given(st.integers(0, 1000), st.integers(1, 9))
def test_a_portfolio_spreads_over_slots_and_blueprints(seed: int, trials: int) -> None:
    chosen = germinated(RuleController(replace(RULES, trials=trials), seed).decide(at_rest()))
    assert len(chosen) == trials
    for names in ([slot for slot, _ in chosen], [blueprint for _, blueprint in chosen]):
        counts = [names.count(name) for name in set(names)]
        assert len(counts) == min(3, trials)
        assert max(counts) - min(counts) <= 2


def test_what_was_tried_least_comes_first() -> None:
    ours = RuleController(replace(RULES, trials=3), 5)
    seen: list[tuple[str, str]] = []
    for round_ in range(3):
        seen += germinated(ours.decide(at_rest(held_out=flat(100, 100))))
        assert len(seen) == len(set(seen)) == 3 * (round_ + 1)
    assert germinated(ours.decide(at_rest(held_out=flat(100, 100))))[0] in seen


def test_patience_doubles_with_each_fruitless_tournament_and_returns_with_a_fossil() -> None:
    ours, step = RuleController(RULES), 0
    for expected in (3, 6, 12, 24):
        history = flat(step + 10, expected + 1)
        assert ours.decide(at_rest(step + 500, history[:-1])) == []
        assert germinated(ours.decide(at_rest(step + 500, history)))
        step += 1000
        ours.decide(Observation(step, history, (), (view(0),), 0))
        assert ours.decide(at_rest(step, history)) == []
    history = flat(step + 10, RULES.patience + 1)
    assert ours.decide(at_rest(step + 500, history)) == []
    assert germinated(ours.decide(at_rest(step + 500, history, fossils=1)))


@pytest.mark.parametrize(
    ("done", "left"), [(0, 8), (29, 8), (30, 4), (59, 4), (60, 2), (89, 2), (90, 1), (500, 1)]
)
def test_a_tournament_halves_on_schedule(done: int, left: int) -> None:
    seeds = [view(n, gain=n / 10, shadow_steps=done) for n in range(8)]
    proposals = asked(*seeds)
    assert sorted(culled(proposals)) == list(range(8 - left))
    assert advanced(proposals) == []


@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=8), st.integers(0, 120))
def test_only_the_worse_seeds_are_culled_and_one_always_stays(
    gains: list[float], done: int
) -> None:
    seeds = [view(n, gain=gain, shadow_steps=done) for n, gain in enumerate(gains)]
    gone = culled(asked(*seeds))
    stays = [n for n in range(len(gains)) if n not in gone]
    assert stays
    assert all(gains[one] >= gains[other] for one in stays for other in gone)


def test_the_youngest_seed_sets_the_pace() -> None:
    late = view(0, gain=-0.5, shadow_steps=10)
    assert asked(late, *(view(n, shadow_steps=400) for n in range(1, 8))) == []


def test_a_seed_that_measured_as_broken_loses() -> None:
    assert culled(asked(view(0, gain=-math.inf, shadow_steps=90), view(1, shadow_steps=90))) == [0]


def test_nothing_is_judged_before_all_are_measured_and_in_training() -> None:
    done = view(0, shadow_steps=90)
    assert asked(done, view(1, gain=None, shadow_steps=90)) == []
    assert asked(done, view(1, shadow_steps=90, pending=True)) == []
    assert asked(done, view(1, Stage.DORMANT, None, pending=True)) == []
    assert advanced(asked(done, view(1, Stage.GERMINATED, None))) == [1]


def test_the_winner_asks_once_for_every_new_measurement_and_then_leaves() -> None:
    ours = RuleController(RULES)
    winner = view(0, shadow_steps=90)
    for refusals in range(RULES.max_refusals):
        asking = asked(replace(winner, refusals=refusals), controller=ours)
        assert (advanced(asking), culled(asking)) == ([0], [])
        waiting = replace(winner, refusals=refusals, ready=False)
        assert asked(waiting, controller=ours) == []
    gone = asked(replace(winner, refusals=RULES.max_refusals), controller=ours)
    assert (advanced(gone), culled(gone)) == ([], [0])


@pytest.mark.parametrize("stage", [Stage.GRAFTING, Stage.STABILIZING, Stage.EVALUATING])
def test_a_graft_goes_on_whenever_it_is_ready(stage: Stage) -> None:
    assert advanced(asked(view(0, stage))) == [0]
    assert asked(view(0, stage, ready=False)) == []


views = st.builds(
    view,
    st.integers(0, 5),
    st.sampled_from(sorted(LIVE | {Stage.DORMANT}, key=lambda stage: stage.value)),
    st.one_of(st.none(), st.floats(-1.0, 1.0)),
    st.integers(0, 200),
    ready=st.booleans(),
    pending=st.booleans(),
    refusals=st.integers(0, 5),
)


@given(st.lists(views, min_size=1, max_size=6, unique_by=lambda seed: seed.id))
def test_nothing_is_proposed_about_what_is_pending_nor_anything_new_meanwhile(
    seeds: list[SeedView],
) -> None:
    proposals = asked(*seeds)
    free = {seed.id for seed in seeds if not seed.pending}
    ready = {seed.id for seed in seeds if seed.ready}
    named = culled(proposals) + advanced(proposals)
    assert germinated(proposals) == []
    assert len(named) == len(set(named)) == len(proposals)
    assert set(named) <= free
    assert set(advanced(proposals)) <= ready


@given(st.integers(0, 2**32))
def test_the_same_seed_makes_the_same_proposals(seed: int) -> None:
    one, two = RuleController(RULES, seed), RuleController(RULES, seed)
    for _ in range(3):
        observation = at_rest(held_out=flat(100, 60))
        assert one.decide(observation) == two.decide(observation)


def test_another_seed_chooses_otherwise() -> None:
    few = replace(RULES, trials=2)
    chosen = {str(RuleController(few, seed).decide(at_rest())) for seed in range(20)}
    assert len(chosen) > 5

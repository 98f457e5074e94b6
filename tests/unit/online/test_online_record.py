"""When rounds end, which policy is the best, and where the time went."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.config.job import StoppingConfig
from raydpo.core.errors import ConfigError
from raydpo.online import record as online_record
from raydpo.online.record import (
    Ledger,
    RoundRecord,
    best_record,
    describe_record,
    describe_seconds,
    displacement,
    overhead_share,
    refuse_spent_budget,
    stop_reason,
)


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "standard_error": 0.01}


def records(*rewards: float, **last: Any) -> list[RoundRecord]:
    """Policies with these held-out rewards; `last` changes the newest one's numbers."""
    made = [
        RoundRecord(
            rounds_done=number,
            policy=f"policy-{number}",
            policy_weights=str(number),
            evaluation={
                "reward": estimate(reward),
                "kl_nats_per_completion": estimate(float(number)),
                "completion_tokens": estimate(30.0),
                "gain": {"mean": 0.1, "z": 4.0} if number else None,
            },
        )
        for number, reward in enumerate(rewards)
    ]
    assert made[-1].evaluation is not None
    made[-1].evaluation.update({k: estimate(v) for k, v in last.items() if k != "fall"})
    if "fall" in last:
        made[-1] = RoundRecord(**{**vars(made[-1]), "displacement_nats": last["fall"]})
    return made


def test_nothing_stops_by_default() -> None:
    worst = records(0.5, 0.1, kl_nats_per_completion=1e3, completion_tokens=1e3, fall=1e3)
    assert stop_reason(worst, StoppingConfig()) is None


@pytest.mark.parametrize(
    ("rewards", "stops"),
    [((0.5, 0.6, 0.7), False), ((0.5, 0.7, 0.6), False), ((0.5, 0.7, 0.6, 0.65), True)],
)
def test_patience_counts_rounds_without_a_new_best(rewards, stops) -> None:
    reason = stop_reason(records(*rewards), StoppingConfig(patience_rounds=2))
    assert (reason is not None) == stops
    if reason:
        assert "patience_rounds" in reason


def test_the_original_model_counts_as_a_best() -> None:
    assert stop_reason(records(0.5, 0.4), StoppingConfig(patience_rounds=1)) is not None


@pytest.mark.parametrize(
    ("limit", "value", "named"),
    [
        ({"max_kl_nats": 5.0}, {"kl_nats_per_completion": 5.1}, "max_kl_nats"),
        ({"max_length_growth": 1.5}, {"completion_tokens": 45.1}, "max_length_growth"),
        ({"max_displacement_nats": 2.0}, {"fall": 2.1}, "max_displacement_nats"),
    ],
)
def test_each_limit_stops_above_itself_only(limit, value, named) -> None:
    stopping = StoppingConfig(**limit)
    assert named in str(stop_reason(records(0.5, 0.6, **value), stopping))
    below = {name: number - 0.2 for name, number in value.items()}
    assert stop_reason(records(0.5, 0.6, **below), stopping) is None


def test_without_an_evaluation_only_displacement_can_stop() -> None:
    plain = [RoundRecord(0, "a", "a"), RoundRecord(1, "b", "b", displacement_nats=3.0)]
    assert "displacement" in str(stop_reason(plain, StoppingConfig(max_displacement_nats=1.0)))
    assert stop_reason(plain, StoppingConfig(max_displacement_nats=4.0)) is None
    assert best_record(plain, StoppingConfig()).policy == "b"


def test_the_best_policy_is_the_one_with_the_highest_reward_within_the_budget() -> None:
    found = records(0.5, 0.7, 0.6, 0.9)
    assert best_record(found, StoppingConfig()).rounds_done == 3
    assert best_record(found, StoppingConfig(max_kl_nats=2.5)).rounds_done == 1


def test_where_no_policy_is_within_the_budget_the_nearest_is_the_best() -> None:
    found = records(0.5, 0.7, 0.9)[1:]
    assert best_record(found, StoppingConfig(max_kl_nats=0.5)).rounds_done == 1


def test_a_model_that_starts_outside_the_budget_is_refused() -> None:
    [model] = records(0.5, kl_nats_per_completion=6.0)
    refuse_spent_budget(model, StoppingConfig(max_kl_nats=7))
    refuse_spent_budget(RoundRecord(0, "a", "a"), StoppingConfig())
    with pytest.raises(ConfigError, match=r"6\.00 nats per completion away .*max_kl_nats is 5"):
        refuse_spent_budget(model, StoppingConfig(max_kl_nats=5))


def test_displacement_is_the_fall_of_chosen_log_probs_from_first_to_last_tenth() -> None:
    rows = [{"logps/chosen": -10.0 - step} for step in range(20)]
    assert displacement(rows) == pytest.approx(18.0)
    assert displacement([{"loss": 1.0}]) is None
    assert displacement(rows[:1]) == 0


def test_a_ledger_counts_every_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(online_record, "monotonic", lambda: now[0])
    ledger = Ledger(_started=now[0])
    with ledger.of("sampling"):
        now[0] += 0.02
        with ledger.of("weight push"):
            now[0] += 0.03
    with ledger.of("training start-up"):
        now[0] += 0.03
    ledger.move(0.01, "training start-up", "training")
    ledger.move(1e6, "sampling", "scoring")  # never more than there is
    seconds = ledger.close()
    assert seconds["weight push"] == pytest.approx(0.03)
    assert seconds["total"] == pytest.approx(0.08)
    assert seconds["training"] == pytest.approx(0.01)
    assert seconds["sampling"] == 0
    assert sum(v for k, v in seconds.items() if k != "total") == pytest.approx(seconds["total"])
    assert min(seconds.values()) >= 0


def test_what_is_outside_work_is_start_up_pushes_and_the_rest() -> None:
    seconds = {"sampling": 2.0, "training": 3.0, "training start-up": 4.0, "other": 1.0}
    assert overhead_share({**seconds, "total": 10.0}) == pytest.approx(0.5)
    text = describe_seconds({**seconds, "weight push": 0.0, "total": 10.0})
    assert "training start-up 4.0 s (40 %)" in text
    assert "outside work 50 %" in text


def test_a_record_reads_in_one_line() -> None:
    text = describe_record(records(0.5, 0.625)[-1])
    assert text.startswith("held-out reward 0.6250 ± 0.0100 (+0.1000, +4.0 standard errors)")
    assert "KL 1.00 ± 0.01 nats" in text

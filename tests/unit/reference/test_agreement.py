"""Log-probs of one model agree; those of two do not, and the error says by how much."""

from __future__ import annotations

import math

import pytest

from raydpo.config.job import EnginesConfig, ModelConfig
from raydpo.core.errors import EngineError, NumericsError
from raydpo.reference.agreement import (
    Agreement,
    check_agreement,
    check_ratios,
    compare_logps,
    sampler_tolerance,
)

FLOAT32 = ModelConfig(path="m")
BFLOAT16 = ModelConfig(path="m", precision="bfloat16")


def test_differences_are_absolute_and_of_tokens() -> None:
    found = compare_logps([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.75]])
    assert found == Agreement(3, 0.75, 0.5)
    assert found.mean_nats == 0.25
    assert found.as_json() == {"tokens": 3, "mean_nats": 0.25, "largest_nats": 0.5}
    assert compare_logps([], []).mean_nats == 0.0


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_never_agrees(value: float) -> None:
    found = compare_logps([[-1.0, value]], [[-1.0, value]])
    for model in (FLOAT32, BFLOAT16):
        with pytest.raises(EngineError, match="sampler and scorer give different log-probs"):
            check_agreement(found, sampler_tolerance(model, EnginesConfig()), "the model 'm'")


@pytest.mark.parametrize(
    ("model", "engines", "token", "largest"),
    [
        (FLOAT32, {}, 1e-3, 1e-2),
        (BFLOAT16, {}, 0.25, math.inf),
        (FLOAT32, {"dtype": "float16"}, 0.25, math.inf),
        (BFLOAT16, {"dtype": "float32"}, 0.25, math.inf),
        (FLOAT32, {"probe_tolerance": 0.01}, 0.01, 0.1),
        (BFLOAT16, {"probe_tolerance": 0.5}, 0.5, math.inf),
    ],
)
def test_the_coarser_dtype_sets_what_rounding_explains(
    model: ModelConfig, engines: dict[str, object], token: float, largest: float
) -> None:
    tolerance = sampler_tolerance(model, EnginesConfig.model_validate(engines))
    assert (tolerance.token_nats, tolerance.largest_nats) == pytest.approx((token, largest))


def test_the_mean_of_few_tokens_may_be_larger_than_that_of_many() -> None:
    tolerance = sampler_tolerance(FLOAT32, EnginesConfig())
    found = [tolerance.mean_nats(tokens) for tokens in (1, 100, 10**6)]
    assert found == pytest.approx([1.2e-3, 3e-4, 2.01e-4])


def test_both_the_mean_and_a_single_token_are_held() -> None:
    tolerance = sampler_tolerance(FLOAT32, EnginesConfig())
    check_agreement(Agreement(10_000, 2.0, 9e-3), tolerance, "the model 'm'")
    with pytest.raises(EngineError, match=r"mean difference 0\.34 nats a token") as raised:
        check_agreement(Agreement(1000, 340.0, 0.9), tolerance, "the model 'm'")
    assert "the model 'm', so in float32 the mean is within 0.00023 nats" in raised.value.rule
    assert "safetensors" in raised.value.way_out
    with pytest.raises(EngineError, match=r"largest 0\.011"):
        check_agreement(Agreement(1000, 0.011, 0.011), tolerance, "the model 'm'")
    in_half = sampler_tolerance(BFLOAT16, EnginesConfig())
    check_agreement(Agreement(1000, 50.0, 1.5), in_half, "the model 'm'")
    with pytest.raises(EngineError, match=r"mean difference 0\.06"):
        check_agreement(Agreement(1000, 60.0, 0.1), in_half, "the model 'm'")


def test_a_policy_trains_on_samples_only_if_step_zero_gives_them_their_sampler_logps() -> None:
    tolerance = sampler_tolerance(FLOAT32, EnginesConfig())
    check_ratios(tolerance, "m", 1000, 0.2, 9e-3)
    with pytest.raises(NumericsError, match=r"mean difference 0\.34 nats a token") as raised:
        check_ratios(tolerance, "m", 1000, 340.0, 0.9)
    assert "the model 'm' sampled these completions" in raised.value.rule
    with pytest.raises(NumericsError, match=r"largest 0\.011"):
        check_ratios(tolerance, "m", 1000, 0.011, 0.011)
    check_ratios(sampler_tolerance(BFLOAT16, EnginesConfig()), "m", 1000, 50.0, 1.5)

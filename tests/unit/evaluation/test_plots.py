"""Figures are complete PNG files that show their input."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from raydpo.evaluation import plots

pytestmark = pytest.mark.thorough

LOG = [
    {"step": step, "loss": 0.69 / (step + 1), "rewards/margins": step, "rewards/accuracies": 0.5}
    for step in range(6)
]
ESTIMATE = {"mean": 0.5, "ci95": [0.4, 0.6]}


def picture(content: bytes | None) -> np.ndarray:
    assert content is not None
    return imread(io.BytesIO(content), format="png")


def coloured(image: np.ndarray, colour: str) -> int:
    """Pixels that have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int((np.abs(image[:, :, :3] - wanted).max(axis=2) < 0.01).sum())


def test_both_models_are_drawn_in_their_colours():
    for image in (
        plots.score_distributions([0.1, 0.2], [0.6, 0.9], "reward"),
        plots.lengths([3, 4], [10, 12], limit=12),
        plots.score_against_kl(ESTIMATE, ESTIMATE, {"mean": 3.0, "ci95": None}, "reward"),
    ):
        assert coloured(picture(image), plots.REFERENCE_COLOUR) > 50
        assert coloured(picture(image), plots.POLICY_COLOUR) > 50


def test_best_of_n_is_drawn_with_and_without_a_policy():
    rows = [
        {"n": n, "score": ESTIMATE, "kl_nats_per_completion": {"mean": float(n)}} for n in (1, 4)
    ]
    kl = {"mean": 3.0, "ci95": None}
    alone = plots.best_of_against_kl(rows, None, None, "reward")
    assert coloured(picture(alone), plots.REFERENCE_COLOUR) > 50
    assert coloured(picture(alone), plots.POLICY_COLOUR) == 0
    beside = plots.best_of_against_kl(rows, ESTIMATE, kl, "reward")
    assert coloured(picture(beside), plots.POLICY_COLOUR) > 50


def test_steps_that_were_done_twice_count_once_as_done_last():
    replayed = [{**LOG[2], "loss": 50.0}, *LOG]
    assert plots.training_curves(replayed) == plots.training_curves(LOG)
    assert plots.training_curves([*LOG, {**LOG[2], "loss": 50.0}]) != plots.training_curves(LOG)


def test_a_log_without_curves_gives_no_figure():
    assert plots.training_curves([]) is None
    assert plots.training_curves([{"step": 1, "learning_rate": 0.1}]) is None


def test_a_log_with_some_curves_shows_those():
    assert picture(plots.training_curves([{"step": 1, "loss": 0.7}])).shape[0] > 100


@pytest.mark.parametrize("scores", [[0.5, 0.5], [0.0], [-1e9, 1e9]])
def test_any_scores_can_be_drawn(scores: list[float]):
    assert picture(plots.score_distributions(scores, scores, "reward")).shape[0] > 100
    assert picture(plots.scores_by_prompt(scores, scores, "reward")).shape[0] > 100


def test_bars_reach_as_far_as_the_interval_and_no_further():
    """Those of a share near 1 are longer below than above it."""
    near_one = {"mean": 0.98, "ci95": [0.9, 0.995]}
    assert plots._bar(near_one) == pytest.approx(np.array([[0.08], [0.015]]))
    rounds = [{"reward": near_one, "kl_nats_per_completion": {"mean": 0.0, "ci95": None}}] * 2
    assert picture(plots.rewards_by_round({"": rounds}, "reward")).shape[0] > 100


def test_a_dollar_sign_in_a_label_is_no_formula():
    plots.score_distributions([0.1], [0.2], r"probability of “$\frac{$”")


def test_drawing_changes_no_global_state():
    before = dict(matplotlib.rcParams)
    plots.score_distributions([0.1], [0.2], "reward")
    assert dict(matplotlib.rcParams) == before

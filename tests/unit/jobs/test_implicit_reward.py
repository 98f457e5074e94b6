"""The study of implicit rewards: its estimates, and the jobs that it starts."""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raydpo
from raydpo.core.errors import NumericsError
from tests.conftest import ROOT
from tests.unit.jobs.job_modules import modules_of

MODEL = ROOT / "assets" / "review-lm"


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    with modules_of("implicit", ("measures", "page", "runs", "scores")) as found:
        yield found


def scores(jobs: Any, margins: dict[str, list[float]], seed: int = 0, pairs: int = 2) -> Any:
    """Scores whose prompts have `pairs` pairs each."""
    count = len(next(iter(margins.values())))
    prompts = [str(n // pairs) for n in range(count)]
    return jobs.scores.Scores("made up", seed, prompts, margins, 10, 0.6, {})


def drawn(count: int, temperature: float, seed: int) -> list[float]:
    """Margins of which a share of sigmoid(|margin| / T) is positive."""
    rng = random.Random(seed)
    found: list[float] = []
    for _ in range(count):
        size = abs(rng.gauss(0, 3))
        right = rng.random() < 1 / (1 + math.exp(-size / temperature))
        found.append(size if right else -size)
    return found


def test_an_accuracy_counts_ties_half_and_differences_are_paired(jobs: Any) -> None:
    one = scores(jobs, {"a": [1.0, 1.0, -1.0, 0.0], "b": [1.0, -1.0, -1.0, -1.0]})
    other = scores(jobs, {"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0, 1.0]}, seed=1)
    found = jobs.measures.accuracy([one, other], "a")
    assert (found.mean, found.prompts, found.share) == (6.5 / 8, 2, True)
    gain = jobs.measures.difference([one], "a", "b")
    assert gain.mean == pytest.approx(1.5 / 4)
    assert gain.standard_error == pytest.approx(0.125)  # prompts gain 0.5 and 0.25


def test_a_temperature_is_found_again(jobs: Any) -> None:
    temperature = jobs.measures.temperature
    assert temperature(drawn(20_000, 2.5, 0)) == pytest.approx(2.5, rel=0.06)
    assert temperature([-margin for margin in drawn(200, 1.0, 0)]) == math.inf
    assert temperature([0.0, 0.0]) == math.inf


def test_overconfidence_is_seen_and_a_temperature_takes_it_away(jobs: Any) -> None:
    calibration = jobs.measures.calibration
    honest = scores(jobs, {"a": drawn(6000, 1.0, 1)})
    found = calibration([honest], "a", fitted=False)
    assert found.ece < 2 * found.chance < 0.04
    assert found.ci95[0] < found.ci95[1]
    assert sum(count for _, _, count in found.bins) == len(honest.prompts) - sum(
        map(jobs.measures.fits_temperature, honest.prompts)
    )
    sure = scores(jobs, {"a": drawn(6000, 4.0, 2)})
    raw, fitted = (calibration([sure], "a", fitted=one) for one in (False, True))
    assert raw.ci95[0] > 0.1
    assert fitted.ece < 0.04
    assert fitted.log_loss < raw.log_loss
    # What knows nothing is told so.
    nothing = scores(jobs, {"a": [-margin for margin in drawn(600, 1.0, 3)]})
    assert calibration([nothing], "a", fitted=True).log_loss == pytest.approx(math.log(2))


def test_a_policy_that_orders_pairs_in_another_way_than_in_training_is_refused(jobs: Any) -> None:
    class Measured:
        def heldout_metrics(self) -> list[dict[str, float]]:
            return [{"rewards/accuracies": 0.0}, {"rewards/accuracies": 0.75}]

    assert jobs.scores._checked("policy", Measured(), [1.0, 2.0, 3.0, -1.0]) == 0.75
    with pytest.raises(NumericsError, match=r"policy: 0\.5000 of the held-out pairs"):
        jobs.scores._checked("policy", Measured(), [1.0, -2.0, 3.0, -1.0])


def test_the_human_pairs_of_helpful_base_are_read(
    jobs: Any, shared_data: Path, tmp_path: Path
) -> None:
    pairs = shared_data / "hh_rlhf" / "helpful-base.test.jsonl.gz"
    assert len(gzip.decompress(pairs.read_bytes()).splitlines()) == 2354
    shared = jobs.runs.human_job(tmp_path, pairs, MODEL, 0, 100)
    job = jobs.runs._job(shared, "policy", str(MODEL), jobs.runs._DPO)
    assert raydpo.check_job(raydpo.load_job(job)) == []

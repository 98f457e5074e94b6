"""The report of online rounds: verdict, numbers of each round, and one page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydpo.config.job import Config
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.evaluation.metrics import clustered_mean
from raydpo.evaluation.samples import Sample, ScoredCompletions
from raydpo.online.measure import PolicyMeasures, reward_difference
from raydpo.online.record import RoundRecord, best_record
from raydpo.online.summary import publish
from raydpo.online.tensorboard import scalars
from raydpo.show.listing import show_run

HOSTILE = "<script>alert('x')</script><img src=https://example.com/x.png>"


def job(**online: Any) -> Config:
    return Config.model_validate(
        {
            "name": "rounds",
            "model": "models/base",
            "prompts": "prompts.jsonl",
            "labeling": {"reward": [{"function": "own:a", "weight": 2.0}, {"function": "own:b"}]},
            "training": {"objective": {"beta": 0.1}},
            "evaluation": {
                "prompts": "heldout.jsonl",
                "judge": {"function": "judges:other"},
                "report_samples": 3,
            },
            "online": {"rounds": 3, **online},
        }
    )


def samples(score: float, seed: int, text: str = " fine") -> list[Sample]:
    """Two completions of each of twenty prompts, of ten random tokens."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            prompt_id=f"p{prompt}",
            candidate=candidate,
            prompt=f"The film {prompt} was",
            completion=text,
            completion_ids=tuple(int(i) for i in rng.integers(0, 900, 10)),
            finish_reason="stop",
            score=float(score + rng.normal(0, 0.1)),
            values={"judges:other": 0.0, "own:a": 0.0, "own:b": 0.0},
        )
        for prompt in range(20)
        for candidate in range(2)
    ]


def measured(score: float, kl: float, reward: float, seed: int, text: str = "x") -> PolicyMeasures:
    judged = samples(score, seed, text)
    prompts = [sample.prompt_id for sample in judged]
    logps = [[-1.0] * 10 for _ in judged], [[-1.0 - kl / 10] * 10 for _ in judged]
    values = {
        "reward": clustered_mean([s.score for s in judged], prompts).as_json(),
        "kl_nats_per_completion": clustered_mean([kl] * len(prompts), prompts).as_json(),
        "completion_tokens": clustered_mean([10.0] * len(prompts), prompts).as_json(),
        "finished_share": 1.0,
    }
    rewarded = [
        replace(s, values={"own:a": s.score / 2, "own:b": 0.0}) for s in samples(reward, seed + 50)
    ]
    return PolicyMeasures(judged, values, ScoredCompletions(prompts, *logps), rewarded)


def records_of(measures: list[PolicyMeasures]) -> list[RoundRecord]:
    found: list[RoundRecord] = []
    for number, of in enumerate(measures):
        gain = reward_difference(of, measures[number - 1]) if number else None
        found.append(
            RoundRecord(
                number,
                f"policy-{number}",
                f"weights-{number}" * 4,
                samples=80 if number else 0,
                groups=40 if number else 0,
                replayed=10 if number == 3 else 0,
                displacement_nats=1.5 if number else None,
                evaluation={**of.values, "gain": gain},
            )
        )
    return found


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run directory with what three rounds left: steps, scores and seconds."""
    for index, steps in enumerate((4, 3, 2)):
        folder = tmp_path / f"round-{index:03d}"
        policy = Stage(Place(Folder(str(folder / "policy")), "test"), "train", None, {}, {})
        open_stage(policy)
        rows = [{"step": n, "loss": 0.7 - n / 100} for n in range(1, steps + 1)]
        policy.folder.write_bytes(
            "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode()
        )
        commit_files(policy, "hash")
        scores = Stage(Place(Folder(str(folder / "scores")), "test"), "scores", "scores", {}, {})
        open_stage(scores)
        values = [("a", 0, 1.0 + index), ("a", 1, 2.0), ("b", 0, 3.0)]
        write_part(
            scores,
            0,
            PartResult(
                [
                    {"prompt_id": p, "candidate": c, "scorer": s, "value": v, "rationale": None}
                    for p, c, v in values
                    for s, v in (("own:a", v), ("own:b", 10.0))
                ],
                counts={"input": 3},
            ),
        )
        commit(scores, {})
        seconds = {"training": 3.0, "other": 1.0, "total": 4.0}
        Folder(str(folder)).write_json("round.json", {"seconds": seconds})
    return Folder(str(tmp_path))


Published = Callable[..., dict[str, Any]]


@pytest.fixture
def published(run: Folder) -> Published:
    def publishes(
        measures: list[PolicyMeasures], stopped: str | None = None, **online: Any
    ) -> dict[str, Any]:
        config = job(**online)
        assert config.online is not None
        records = records_of(measures)
        best = best_record(records, config.online.stopping)
        verdict = publish(config, run, records, measures, stopped, best)
        found = run.read_json("online.json")
        assert found["verdict"] == verdict.line
        return found

    return publishes


def rising() -> list[PolicyMeasures]:
    return [measured(0.4 + 0.1 * n, 0.8 * n, 1.0 + n, seed=n) for n in range(4)]


def test_the_verdict_is_of_the_best_policy_against_the_original_model(published) -> None:
    found = published(rising())
    assert re.match(
        r"Training helped: of 3 rounds the best policy is that of round 2; its held-out reward on 20 "
        r"prompts is 0\.\d+ \[0\.\d+, 0\.\d+\] above the original model's \(\d+\.\d standard errors\)\.$",
        found["verdict"],
    )
    score = found["against_original"][3]["difference"]["score"]
    assert f" {score['mean']:.3f} [" in found["verdict"]
    gains = [policy["evaluation"]["gain"]["mean"] for policy in found["policies"][1:]]
    assert score["mean"] == pytest.approx(sum(gains))
    assert found["speaks_against_it"] == []
    assert "chosen by the same held-out prompts" in found["notes"][0]


def test_rounds_after_the_best_that_made_it_worse_are_an_objection(published) -> None:
    measures = rising()
    measures[3] = measured(0.5, 3.0, 4.0, seed=3)
    found = published(measures)
    assert "the best policy is that of round 1" in found["verdict"]
    assert found["verdict"].startswith("Training helped, with reservations: ")
    [objection] = found["speaks_against_it"]
    assert objection.startswith("rounds after round 1 made it worse: ")
    assert re.search(r"reward is 0\.1\d+ \[0\.\d+, 0\.\d+\] below that of the best", objection)


def test_over_optimization_is_named_in_its_round(published) -> None:
    measures = [measured(0.4, 0.0, 1.0, seed=0), measured(0.6, 1.0, 2.0, seed=1)]
    measures += [measured(0.41, 4.0, 9.0, seed=2)]
    found = published(measures)
    flags = [
        {check["name"] for check in of["checks"] if check["flagged"]} if of else None
        for of in found["against_original"]
    ]
    assert flags[0] is None
    assert flags[1] == set()
    assert "training reward" in flags[2]


def test_no_round_that_beats_the_original_model_is_no_effect_or_harm(published) -> None:
    same = [measured(0.4, 0.0, 1.0, seed=0), measured(0.1, 1.0, 1.0, seed=1)]
    found = published(same)
    assert found["verdict"].startswith(
        "Training did harm: after 1 round no policy beats the original model;"
    )
    assert re.search(r"is 0\.\d+ \[0\.\d+, 0\.\d+\] below the original's", found["verdict"])
    equal = [measured(0.4, 0.0, 1.0, seed=0), measured(0.4, 1.0, 1.0, seed=0)]
    assert published(equal)["verdict"].startswith("Training showed no effect: ")


def test_a_stop_and_a_budget_that_no_policy_kept_are_objections(published) -> None:
    measures = [measured(0.4 + 0.1 * n, 2.0 + n, 1.0 + n, seed=n) for n in range(3)]
    found = published(measures, "KL budget: 4.00 nats", stopping={"max_kl_nats": 1.5})
    assert any(
        "no policy is within the KL budget: 2.00 nats" in o for o in found["speaks_against_it"]
    )
    assert "the rounds ended early: KL budget: 4.00 nats" in found["speaks_against_it"]


def test_each_round_has_its_staleness_its_replay_and_the_reward_of_its_samples(published) -> None:
    rounds = published(rising())["rounds"]
    assert [of["steps"] for of in rounds] == [4, 3, 2]
    assert [of["updates_behind"] for of in rounds] == [
        {"first": 0, "last": 3}, {"first": 0, "last": 2}, {"first": 0, "last": 1},
    ]  # fmt: skip
    assert [of["replay_share"] for of in rounds] == [0, 0, 0.25]
    # 2 × own:a + own:b, over three completions.
    assert rounds[0]["sampled_reward"]["mean"] == pytest.approx((2 * (1 + 2 + 3) + 30) / 3)
    assert rounds[1]["sampled_reward"]["mean"] == pytest.approx((2 * (2 + 2 + 3) + 30) / 3)


def test_with_lookahead_the_sampler_is_a_round_behind(published) -> None:
    rounds = published(rising(), lookahead=1)["rounds"]
    assert [of["updates_behind"]["first"] for of in rounds] == [0, 4, 3]
    assert [of["updates_behind"]["last"] for of in rounds] == [3, 6, 4]


class Page(HTMLParser):
    """The tags and the addresses of a page, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(v) for k, v in attrs if k in ("src", "srcset", "action")]
        self.links += [str(v) for k, v in attrs if k == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(run: Folder) -> Page:
    return Page(run.read_bytes("online.html").decode())


def test_the_page_shows_the_same_prompts_by_round_and_links_into_each_round(
    published, run: Folder
) -> None:
    published([measured(0.4 + 0.1 * n, n, 1.0, seed=n, text=f"text {n}") for n in range(4)])
    shown = page(run)
    assert [shown.text.count(f"text {n}") for n in range(4)] == [3, 3, 3, 3]
    assert {f"round-00{n}/round.json" for n in range(3)} <= set(shown.links)
    assert not any(link.startswith(("http", "/")) for link in shown.links)
    assert "0 to 3" in shown.text
    assert "25.0 %" in shown.text
    assert run.exists("online.png")
    assert run.exists("rounds.png")


def test_texts_of_models_are_escaped_and_nothing_is_loaded(published, run: Folder) -> None:
    published([measured(0.4 + n, n, 1.0, seed=n, text=HOSTILE) for n in range(2)])
    shown = page(run)
    assert "script" not in shown.tags
    assert all(address.startswith("data:image/png;base64,") for address in shown.loaded)
    assert shown.text.count(HOSTILE) == 6


def test_rounds_without_an_evaluation_have_a_page_of_their_trainings(run: Folder) -> None:
    config = job().model_copy(update={"evaluation": None})
    records = [replace(r, evaluation=None) for r in records_of(rising())]
    verdict = publish(config, run, records, [], None, records[-1])
    assert verdict.line == (
        "3 rounds done; nothing was measured, as the job has no evaluation section."
    )
    shown = page(run)
    assert "Training by round" in shown.text
    assert "Held-out numbers" not in shown.text
    assert run.read_json("online.json")["against_original"] == []


def test_one_tensorboard_run_counts_updates_over_all_rounds(published, run: Folder) -> None:
    published(rising())
    published(rising())  # written again, not added to
    events = EventAccumulator(f"{run.uri}/tensorboard")
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))
    rewards = events.Scalars("heldout_prompts/reward")
    assert [event.step for event in rewards] == [0, 4, 7, 9]
    assert rewards[-1].value == pytest.approx(rising()[3].values["reward"]["mean"], abs=1e-6)
    assert "heldout_prompts/0/text_summary" in events.Tags()["tensors"]
    assert [step for name, _, step in scalars(run, records_of(rising())) if name == "loss"] == [
        *range(1, 10)
    ]


def test_no_tensorboard_is_written_without_the_tracker(run: Folder) -> None:
    config = job()
    assert config.training is not None
    training = config.training.model_copy(update={"trackers": ()})
    measures = rising()
    records = records_of(measures)
    other = config.model_copy(update={"training": training})
    publish(other, run, records, measures, None, records[-1])
    assert not run.exists("tensorboard")


def test_show_says_what_the_rounds_were_worth(published, run: Folder) -> None:
    found = published(rising())
    run.write_bytes("config.yaml", b"name: rounds\n")
    lines = list(show_run(run.uri, 0))
    assert lines[1].startswith("verdict:     Training helped: of 3 rounds")
    assert f"report:      {run.uri}/online.html" in lines
    assert found["verdict"].endswith("standard errors).")

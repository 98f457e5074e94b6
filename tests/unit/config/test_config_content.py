"""Every field of a section that a stage reads makes it stale, unless the field is marked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, create_model

from raydpo.config.base import PositiveInt, Section
from raydpo.config.content import Placement, Resolved, content_of
from raydpo.config.evaluation import BestOfConfig
from raydpo.config.file import config_from_values
from raydpo.config.http import HttpConfig
from raydpo.config.job import (
    Config,
    EarlyStoppingConfig,
    PeopleConfig,
    PromptsConfig,
    RewardConfig,
)
from raydpo.config.judges import JudgeConfig
from raydpo.config.mixtures import PromptsSource
from raydpo.config.sampling import SamplerFunctionConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import Stage
from raydpo.core.storage import Folder
from raydpo.evaluation.stage import evaluation_stage
from raydpo.labeling.implicit import implicit_stage
from raydpo.labeling.people import people_stage
from raydpo.labeling.preferences import preferences_stage
from raydpo.labeling.stage import scores_stage
from raydpo.online.prompts import round_prompts_stage
from raydpo.online.replay import training_groups_stage
from raydpo.prompts.examples import examples_stage
from raydpo.prompts.preferences import existing_preferences_stage
from raydpo.prompts.stage import prompts_stage
from raydpo.reference.sequences import sequences_stage
from raydpo.reference.stage import reference_stage
from raydpo.sampling.stage import sampling_work
from raydpo.training.stage import policy_stage, sft_stage

pytestmark = pytest.mark.thorough

ASSETS = Path(__file__).parents[3] / "assets"
FOLDER = Folder("/nothing/is/written/here")
PLACE = Place(FOLDER, "test")
JUDGE = {"classifier": str(ASSETS / "sentiment-judge"), "label": "positive"}


class Inner(Section):
    size: PositiveInt = 1
    workers: Placement[PositiveInt] = 1


class Outer(Section):
    path: Resolved[str] = "here"
    several: tuple[Inner, ...] = (Inner(), Inner(size=2))
    batch: Placement[Inner | None] = None
    limit: Placement[float] | None = None


def test_fields_count_unless_they_are_marked() -> None:
    assert content_of(Inner(size=3, workers=7)) == {"size": 3}
    assert content_of(Outer()) == {"several": [{"size": 1}, {"size": 2}], "limit": None}


def table(name: str) -> Table:
    return Table(
        FOLDER.child(name),
        {"fingerprint": f"content of {name}", "inputs": {}, "table": "preferences"},
    )


def job(**sections: object) -> Config:
    values = {
        "name": "job",
        "model": str(ASSETS / "review-lm"),
        "prompts": str(ASSETS / "prompts.jsonl"),
        "sampling": {"max_completion_tokens": 64},
        "labeling": {"reward": JUDGE},
        "training": {"lora": {}},
        "evaluation": {"prompts": str(ASSETS / "heldout-prompts.jsonl"), "judge": JUDGE},
        "sft": {"data": str(ASSETS / "prompts.jsonl")},
        "online": {"replay": {"share": 0.5}},
        **sections,
    }
    return config_from_values(values, "a test")


def at(config: Config, round_index: int = 0) -> Place:
    return Place(FOLDER, "test", seed=config.seed, round_index=round_index)


def existing(config: Config) -> Stage:
    assert config.preferences is not None
    return existing_preferences_stage(config, config.preferences, at(config))


def sampling(config: Config) -> Stage:
    work = sampling_work(
        at(config),
        table("prompts"),
        model=config.model,
        sampling=config.sampling,
        max_prompt_tokens=8,
    )
    return work.stages[0].stage


def evaluation(config: Config) -> Stage:
    models = {"policy": config.model, "reference": config.model}
    return evaluation_stage(config, at(config), table("prompts"), models, table("heldout"), {})


#: Each stage that reads sections, as it is made of a configuration.
STAGES: dict[str, Callable[[Any], Stage]] = {
    "prompts": lambda c: prompts_stage(c, c.prompts, at(c)),
    "held-out prompts": lambda c: prompts_stage(c, c.evaluation.prompts, at(c)),
    "examples": lambda c: examples_stage(c, c.sft, at(c)),
    "round prompts": lambda c: round_prompts_stage(at(c), table("p"), c.online, 8),
    "sampling": sampling,
    "scores": lambda c: scores_stage(at(c), table("candidates"), c.labeling.reward),
    "preferences": lambda c: preferences_stage(
        at(c), table("candidates"), table("scores"), c.labeling, c.model
    ),
    "training groups": lambda c: training_groups_stage(
        at(c, 1), table("own"), {0: table("earlier")}, c.online
    ),
    "reference": lambda c: reference_stage(at(c), table("groups"), c.model, c.reference),
    "score": lambda c: sequences_stage(at(c), table("groups"), c.model, c.reference),
    "policy": lambda c: policy_stage(c, at(c), table("preferences"), table("reference")),
    "sft": lambda c: sft_stage(c, at(c), table("examples")),
    "evaluation": evaluation,
}

#: Each section, and the stages that read it.
READERS = {
    "model": {
        *("prompts", "held-out prompts", "examples", "sampling", "reference", "score"),
        *("policy", "sft", "evaluation"),
    },
    "prompts": {"prompts"},
    "sampling": {"sampling", "evaluation"},
    "sampling.engines": {"sampling", "evaluation"},
    "labeling": {"preferences"},
    "labeling.reward.0": {"scores", "evaluation"},
    "labeling.combine": {"preferences", "evaluation"},
    "labeling.pairs": {"preferences"},
    "reference": {"reference", "score", "evaluation"},
    "training": {"policy"},
    "training.objective": {"policy"},
    "training.lora": {"policy"},
    "sft": {"examples", "sft"},
    "evaluation": {"evaluation"},
    "evaluation.prompts": {"held-out prompts"},
    "evaluation.judge.0": {"evaluation"},
    "online": {"round prompts", "training groups"},
    "online.replay": {"training groups"},
}
#: How rounds go on; the stages of each are made from their own inputs and sections.
WITHOUT_CONTENT = {"online.stopping"}


def sections(value: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """All sections inside one, by their dotted paths."""
    for name, inner in value:
        items = enumerate(inner) if isinstance(inner, tuple) else [(None, inner)]
        for index, item in items:
            if isinstance(item, BaseModel):
                place = ".".join(str(p) for p in (path, name, index) if p not in ("", None))
                yield place, item
                yield from sections(item, place)


def replaced(value: Any, path: str, new: BaseModel) -> Any:
    """A copy of a section with another one at a path inside it; nothing is checked."""
    name, _, rest = path.partition(".")
    if isinstance(value, tuple):
        index = int(name)
        inner = replaced(value[index], rest, new) if rest else new
        return (*value[:index], inner, *value[index + 1 :])
    inner = replaced(getattr(value, name), rest, new) if rest else new
    return value.model_copy(update={name: inner})


def extended(section: BaseModel, annotation: Any = str) -> BaseModel:
    """The section as a later version may have it: with one option more."""
    added: Any = (annotation, "x")
    later = create_model("Later", __base__=type(section), added_later=added)
    return later.model_construct(**{name: getattr(section, name) for name, _ in section})


@cache
def keys() -> dict[str, str]:
    return {name: make(job()).key for name, make in STAGES.items()}


def changed_stages(other: Config, among: Collection[str] = STAGES) -> set[str]:
    """Those whose key is another than the job's."""
    return {name for name in among if STAGES[name](other).key != keys()[name]}


def test_training_rewards_that_are_not_evaluated_are_not_in_the_key_of_the_evaluation() -> None:
    one = job(evaluation={**job_evaluation(), "training_rewards": False})
    reward = {**JUDGE, "output": "logit"}
    other = job(
        evaluation={**job_evaluation(), "training_rewards": False}, labeling={"reward": reward}
    )
    assert STAGES["evaluation"](one).key == STAGES["evaluation"](other).key
    assert STAGES["evaluation"](one).key != keys()["evaluation"]


def test_what_a_judges_function_is_called_with_is_in_the_key_of_the_evaluation() -> None:
    def key(**more: Any) -> str:
        judge = {"function": "tests.integration.rewards:scaled", **more}
        return STAGES["evaluation"](job(evaluation={**job_evaluation(), "judge": judge})).key

    options = {"options": {"factor": 2.0}}
    assert len({key(**options), key(options={"factor": 3.0})}) == 2
    others = [{"columns": {"letter": "wanted"}}, {"as_messages": True}]
    assert key(**options) not in {key(**options, **other) for other in others}


def job_evaluation() -> dict[str, Any]:
    return {"prompts": str(ASSETS / "heldout-prompts.jsonl"), "judge": JUDGE}


def test_every_section_has_readers() -> None:
    with_content = {path for path, _ in sections(job())} - WITHOUT_CONTENT
    assert with_content == set(READERS)


@pytest.mark.parametrize("path", READERS)
def test_an_option_that_is_added_to_a_section_changes_the_keys_of_its_readers(path: str) -> None:
    config = job()
    section = dict(sections(config))[path]
    assert READERS[path] == changed_stages(replaced(config, path, extended(section)))
    marked = extended(section, Placement[str])
    assert changed_stages(replaced(config, path, marked), READERS[path]) == set()


def test_an_option_that_is_added_changes_the_key_of_data_that_exists_already() -> None:
    config = job(prompts=None, labeling=None, preferences={"path": str(ASSETS / "prompts.jsonl")})
    for path in ("preferences", "model"):
        later = replaced(config, path, extended(dict(sections(config))[path]))
        assert existing(config).key != existing(later).key


def test_an_option_that_is_added_changes_the_key_of_labels_by_people() -> None:
    tables, people = (table("candidates"), table("votes")), PeopleConfig()
    later: Any = extended(people)
    assert people_stage(PLACE, *tables, people).key != people_stage(PLACE, *tables, later).key


@pytest.mark.parametrize(
    "reward",
    [{"function": "tests.integration.rewards:count_e"}, {"implicit": True}],
    ids=["function", "implicit"],
)
def test_an_option_that_is_added_changes_the_key_of_any_scorer(reward: dict[str, object]) -> None:
    scorer = RewardConfig.model_validate(reward)
    tables = table("candidates"), table("policy"), table("reference")

    def key(one: Any) -> str:
        if one.implicit:
            return implicit_stage(PLACE, *tables, one).key
        return scores_stage(PLACE, tables[0], (one,)).key

    assert key(scorer) != key(extended(scorer))
    assert key(scorer) == key(scorer.model_copy(update={"output": "logit"})), "of classifiers only"


def other_than(value: Any, name: str) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if value is None and name == "limit":  # it is read up to there
        return 1
    return "another" if value is None or isinstance(value, str) else (*value, "another")


def kind(section: BaseModel, name: str) -> str:
    """What a field says of itself: content, placement or resolved."""
    said = [m.value for m in type(section).model_fields[name].metadata if isinstance(m, Enum)]
    return said[0] if said else "content"


def is_section(value: Any) -> bool:
    return any(
        isinstance(one, BaseModel) for one in (value if isinstance(value, tuple) else [value])
    )


def fields(wanted: str) -> list[tuple[str, str]]:
    """Paths and names of the fields of a kind; sections have fields of their own."""
    return [
        (path, name)
        for path, section in sections(job())
        for name, value in section
        if not is_section(value) and kind(section, name) == wanted and path not in WITHOUT_CONTENT
    ]


def changed_by(path: str, name: str, among: Collection[str], value: Any = None) -> set[str]:
    """The stages whose keys change with a field."""
    section = dict(sections(job()))[path]
    new = other_than(getattr(section, name), name) if value is None else value
    other = replaced(job(), path, section.model_copy(update={name: new}))
    return changed_stages(other, among)


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, name in fields("content") if name != "split"]
)
def test_every_field_that_is_not_marked_is_in_a_key(path: str, name: str) -> None:
    assert changed_by(path, name, READERS[path])


def test_the_split_of_a_source_is_in_a_key(tmp_path) -> None:
    for name in ("train-0.jsonl", "test-0.jsonl"):
        shutil.copy(ASSETS / "prompts.jsonl", tmp_path / name)
    section = PromptsConfig(path=str(tmp_path))
    other = section.model_copy(update={"split": "test"})
    one, two = (prompts_stage(job(), split, PLACE) for split in (section, other))
    assert one.inputs == two.inputs
    assert one.key != two.key


@pytest.mark.parametrize(("path", "name"), fields("placement"))
def test_no_field_that_is_placement_is_in_a_key(path: str, name: str) -> None:
    assert changed_by(path, name, READERS[path]) == set()


def test_the_job_itself_has_no_content_but_its_sections() -> None:
    bare = {name for name, value in job() if not is_section(value) and name != "preferences"}
    assert {name for name in bare if kind(job(), name) == "content"} == set()


#: Fields whose value says where to look, and what is found there counts.
ASKED = JudgeConfig(url="http://h/v1/chat/completions", model="m", rubric="summary")
MIXED = (
    PromptsSource(path=str(ASSETS / "prompts.jsonl"), weight=1),
    PromptsSource(path=str(ASSETS / "heldout-prompts.jsonl"), weight=2),
)
ELSEWHERE: dict[str, Any] = {
    "model.path": ASSETS / "sentiment-judge",
    "model.pad_token": "<|bos|>",
    "model.chat_template": __file__,
    "prompts.path": ASSETS / "heldout-prompts.jsonl",
    "prompts.format": "text",
    "prompts.sources": MIXED,
    "evaluation.prompts.sources": MIXED,
    "training.heldout_fraction": 0.25,
    "training.early_stopping": EarlyStoppingConfig(),
    "sft.heldout_fraction": 0.25,
    "sft.early_stopping": EarlyStoppingConfig(),
    "sft.data": ASSETS / "heldout-prompts.jsonl",
    "sft.format": "text",
    "evaluation.prompts.path": ASSETS / "prompts.jsonl",
    "evaluation.prompts.format": "text",
    "evaluation.best_of": BestOfConfig(),
    "labeling.reward.0.function": "tests.integration.rewards:count_e",
    "labeling.reward.0.classifier": ASSETS / "sentiment-reward",
    "labeling.reward.0.judge": ASKED,
    "evaluation.judge.0.judge": ASKED,
    "labeling.reward.0.http": HttpConfig(url="http://rewards:8000/score"),
    "evaluation.judge.0.function": "tests.integration.rewards:count_e",
    "evaluation.judge.0.classifier": ASSETS / "sentiment-reward",
    "evaluation.judge.0.http": HttpConfig(url="http://rewards:8000/score"),
    "sampling.function": SamplerFunctionConfig(path="tests.integration.samplers:generate"),
    "sampling.engines.dtype": "bfloat16",
    "sampling.engines.max_sequence_tokens": 96,
}
#: Who labels, and which models and files of functions are a stage's inputs: those are in its key.
CHOICES = {
    *("labeling.people", "labeling.reward.0.depends_on", "evaluation.judge.0.depends_on"),
    # See test_score_part.py.
    *(
        f"{section}.0.{name}"
        for section in ("labeling.reward", "evaluation.judge")
        for name in ("as_messages", "options", "columns")
    ),
    *(
        "model.revision",
        "reference.model",
        "labeling.reward.0.implicit",
        "evaluation.judge.0.implicit",
    ),
    *("online.rounds", "online.pairs", "online.reference", "online.reference_every_rounds"),
    *("online.ema_alpha", "online.lookahead"),
    # They decide which step is exported only with early stopping.
    *("training.evaluate_every_steps", "sft.evaluate_every_steps"),
}


@pytest.mark.parametrize(
    ("path", "name"), [each for each in fields("resolved") if ".".join(each) not in CHOICES]
)
def test_what_a_resolved_field_comes_to_is_in_a_key(path: str, name: str) -> None:
    value = ELSEWHERE.get(f"{path}.{name}")
    assert changed_by(path, name, STAGES, str(value) if isinstance(value, Path) else value)


@pytest.mark.parametrize(("section", "stage"), [("training", "policy"), ("sft", "sft")])
def test_measuring_changes_no_key_but_what_early_stopping_goes_by_does(
    section: str, stage: str
) -> None:
    def key(**values: Any) -> str:
        data = {"data": str(ASSETS / "prompts.jsonl")} if section == "sft" else {}
        held_out = {"heldout_fraction": 0.1}
        config = job(**{section: {**data, **held_out, **values}})
        return STAGES[stage](config).key

    assert key() == key(evaluate_every_steps=5)
    stopping = [
        key(evaluate_every_steps=5, early_stopping={}),
        key(evaluate_every_steps=6, early_stopping={}),
        key(evaluate_every_steps=5, early_stopping={"patience": 4}),
    ]
    assert len({key(), *stopping}) == 4


def test_the_share_that_a_judge_s_section_names_gives_the_same_policy() -> None:
    """The key of a job before there was `training.heldout_fraction`."""
    own = job(training={"lora": {}, "heldout_fraction": 0.1})
    assert STAGES["policy"](own).key == keys()["policy"]
    assert "early_stopping" not in STAGES["policy"](job()).settings


def test_pairs_of_earlier_versions_keep_their_key() -> None:
    def settings(**pairs: object) -> set[str]:
        config = job(labeling={"reward": JUDGE, "pairs": pairs})
        return set(STAGES["preferences"](config).settings)

    earlier = {"builder", "min_margin", "weighting", "ranking_ties", "labels", "temperature"}
    assert settings() == earlier | {"flip_rate", "weights", "seed", "round"}
    fractions = {"top_fraction", "bottom_fraction"}
    assert settings(builder="top_bottom") == settings() | fractions
    of_data = {"chosen_column", "max_chosen_tokens"}
    assert settings(builder="data_chosen") == settings() | of_data
    assert settings(max_per_prompt=3) == settings() | {"max_per_prompt"}

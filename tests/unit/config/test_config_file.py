"""Configuration files: an error lists every problem at once, and suggests what was meant."""

from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from raydpo.config.base import Section
from raydpo.config.file import config_from_values, config_to_yaml, load_config
from raydpo.core.errors import ConfigError

DESIGN = """
name: reviews
model: assets/review-lm
prompts: {path: prompts.jsonl, max_prompt_tokens: 64}
sampling: {candidates: 4, temperature: 1.0, max_completion_tokens: 48, engines: {count: 1, tensor_parallel: 1}}
labeling:
  reward: {classifier: assets/sentiment, label: positive}
  pairs: {builder: all_pairs, min_margin: 0.1}
reference: {}
training:
  objective: {name: dpo, beta: 0.1}
  strategy: ddp
  num_workers: 2
  global_batch_groups: 16
  learning_rate: 1.0e-4
evaluation: {prompts: heldout.jsonl, judge: {classifier: assets/judge, label: positive}}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(DESIGN)
    return file


def test_resolved_configuration_reads_back_unchanged(path, tmp_path) -> None:
    config = load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(config_to_yaml(config))
    assert load_config(again) == config


def test_overrides_reach_nested_keys_and_sections_by_their_command(path) -> None:
    config = load_config(
        path,
        [
            "train.learning_rate=1e-5",
            "training.objective.beta=0.3",
            "model.pad_token='<unk>'",
            "sample.stop=[a, b]",
        ],
    )
    assert config.training.learning_rate == 1e-5
    assert config.training.objective.beta == 0.3
    assert config.model.path.endswith("assets/review-lm")
    assert config.model.pad_token == "<unk>"
    assert config.sampling.stop == ("a", "b")


def test_heldout_prompts_given_as_a_path_are_read_like_the_others(path) -> None:
    assert load_config(path).evaluation.prompts.max_prompt_tokens == 64
    explicit = load_config(path, ["evaluation.prompts.path=other.jsonl"])
    assert explicit.evaluation.prompts.max_prompt_tokens == 512


def test_configuration_is_frozen(path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(path).seed = 3


def test_unknown_keys_are_refused_with_what_was_meant(path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["training.learning_rat=1", "promts.path=x"])
    assert "training.learning_rat: unknown key; did you mean 'learning_rate'?" in str(caught.value)
    assert "promts: unknown key; did you mean 'prompts'?" in str(caught.value)


def test_wrong_values_are_all_listed_with_the_value_given(path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["training.objective.beta=-1", "sampling.candidates=none", "seed=x"])
    text = str(caught.value)
    assert "3 problem(s)" in text
    assert "beta: Input should be greater than 0 (given: -1)" in text
    assert "candidates" in text
    assert "(given: 'none')" in text


def test_a_boolean_is_refused_wherever_none_is_meant() -> None:
    """In each field of each section: `candidates: true` is not 1, `label: no` not the class 0."""
    for section in sections(Section):
        for name, field in section.model_fields.items():
            takes = bool in {field.annotation, *get_args(field.annotation)}
            for value in (True, False, [False, "a"]):
                refused = problems_of(section, {name: value}).get((name,), "")
                assert ("booleans: put a word in quotes" in refused) is not takes, (section, name)


def sections(base: type[Section]) -> list[type[Section]]:
    return [inner for one in base.__subclasses__() for inner in [one, *sections(one)]]


def problems_of(section: type[Section], values: dict[str, object]) -> dict[tuple[object, ...], str]:
    try:
        section.model_validate(values)
    except ValidationError as error:
        return {item["loc"]: item["msg"] for item in error.errors()}
    return {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("labeling: {reward: {classifier: a, label: no}}", "label: a boolean means nothing here"),
        ("sampling: {stop: [on]}", "sampling.stop: a boolean means nothing here"),
        ("training: {num_workers: [yes, 2]}", "training.num_workers: a boolean means nothing"),
        ("training: {objective: {name: dpo, beta: true}}", "dpo.beta: a boolean means nothing"),
        ("evaluation: no", "evaluation: a boolean means nothing here"),
        ("output: 2024", "output: Input should be a valid string: put it in quotes (given: 2024)"),
        ("output: 2024-12-25", "output: Input should be a valid string: put it in quotes"),
        ('output: "a\\0b"', "output: a text holds no NUL and no lone surrogate"),
        ('output: "\\ud800"', "output: a text holds no NUL and no lone surrogate"),
        ("seed: 0x" + "f" * 6000, "seed: an integer has at most 63 bits (given: a very large int)"),
        ("yes: 1", "Keys should be strings"),
        ("trackers: [" + "x, " * 999 + "x]", "trackers: unknown key"),
        ("training: {trackers: [" + "x, " * 999 + "x]}", "... 970 more"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_was_meant_is_refused(tmp_path, line, problem) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"name: a\nmodel: m\nprompts: p.jsonl\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert problem in str(caught.value)


def test_a_wrong_reward_is_one_problem(path) -> None:
    with pytest.raises(ConfigError, match=r"has 1 problem\(s\)"):
        load_config(path, ["labeling.reward={classifier: a, label: no}"])


def test_an_override_into_what_is_no_section_is_refused(path) -> None:
    for override in ("seed.x=1", "labeling.reward.0.label=x"):
        with pytest.raises(ConfigError, match="an override reaches into a section"):
            load_config(path, ["seed=1", "labeling.reward=[{classifier: a}]", override])


def test_override_without_a_value_is_refused(path) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(path, ["training.learning_rate"])


def test_missing_file_and_broken_yaml_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(broken)
    broken.write_text("- a list")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(broken)


def test_existing_preferences_and_prompts_exclude_each_other() -> None:
    values = yaml.safe_load(DESIGN)
    with pytest.raises(ConfigError, match="`preferences` replaces `prompts`"):
        config_from_values({**values, "preferences": "pairs.jsonl"}, "test")


def test_nothing_to_work_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to work on"):
        config_from_values({"name": "a", "model": "b"}, "test")


def test_reward_takes_one_source() -> None:
    values = yaml.safe_load(DESIGN)
    values["labeling"]["reward"] = {"classifier": "a", "function": "b:c"}
    with pytest.raises(
        ConfigError, match="exactly one of `function`, `classifier`, `http`, `judge` and"
    ):
        config_from_values(values, "test")
    values["labeling"]["reward"] = [{"classifier": "a"}, {"function": "b:c", "weight": 0.5}]
    rewards = config_from_values(values, "test").labeling.reward
    assert [reward.scorer for reward in rewards] == ["a", "b:c"]


def objective_of(path, given: str):
    return load_config(path, [f"training.objective={given}"]).training.objective


def test_objective_is_chosen_by_name_and_has_options_of_its_own(path) -> None:
    assert objective_of(path, "ipo").tau == 0.1
    assert objective_of(path, "{beta: 0.3}").name == "dpo"
    simpo = objective_of(path, "{name: simpo, gamma: 0.5}")
    assert (simpo.gamma, simpo.uses_reference, simpo.kl_beta) == (0.5, False, None)
    kto = objective_of(path, "{name: kto, beta: 0.2}")
    assert (kto.unit, kto.uses_reference, kto.kl_beta) == ("completions", True, 0.2)


def test_only_token_level_dpo_runs_the_reference_beside_the_policy(path) -> None:
    names = ("dpo", "kto", "simpo", "tdpo1", "{name: sum, terms: [{objective: tdpo2}]}")
    live = [objective_of(path, name).uses_live_reference for name in names]
    assert live == [False, False, False, True, True]


def test_a_sum_uses_the_reference_if_any_term_does(path) -> None:
    terms = "{name: sum, terms: [{objective: simpo}, {weight: 2, objective: {name: %s}}]}"
    mixed, free = objective_of(path, terms % "ipo"), objective_of(path, terms % "orpo")
    assert (mixed.uses_reference, mixed.kl_beta) == (True, 0.1)
    assert (free.uses_reference, free.kl_beta) == (False, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dppo", "objective: unknown name 'dppo'; did you mean 'dpo'?"),
        (
            "{name: ipo, beta: 1}",
            "objective.ipo.beta: unknown key; known here: sft_weight, length, name, tau",
        ),
        ("{name: f_dpo, alpha: 0.3}", "`alpha` is given with `divergence: alpha`"),
        ("{name: f_dpo, divergence: alpha}", "`alpha` is given with `divergence: alpha`"),
        ("{name: reward_model, sft_weight: 1}", "a reward model has no cross-entropy"),
        ("{name: sum, terms: [{objective: reward_model}]}", "it stands alone"),
        ("{label_smoothing: 0.1}", "with it the loss is conservative DPO, `{name: cdpo, "),
        ("{name: kto, length: mean}", "objective.kto.length: unknown key"),
        ("{name: dpo, length: {ld_alfa: 1}}", "unknown key; did you mean 'ld_alpha'?"),
        ("{name: sum, terms: []}", "a sum has at least one term"),
        ("{name: sum, terms: [{objective: {name: ipo, tauu: 1}}]}", "did you mean 'tau'?"),
    ],
)
def test_options_that_an_objective_does_not_read_are_refused(path, given, message) -> None:
    with pytest.raises(ConfigError) as caught:
        objective_of(path, given)
    assert message in str(caught.value)


def test_override_of_an_objective_given_by_its_name(path) -> None:
    config = load_config(path, ["training.objective=ipo", "training.objective.tau=0.4"])
    assert config.training.objective.tau == 0.4

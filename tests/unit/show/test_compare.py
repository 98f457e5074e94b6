"""`raydpo compare` reads evaluated runs, refuses what is none, and writes into no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from evaluated_runs import make_job, write_online_run, write_run

import raydpo
from raydpo.cli import main
from raydpo.core.errors import ConfigError, DataError, RunError
from raydpo.show.compare import compare_runs, default_output
from raydpo.show.evaluated import read_evaluated


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """Two runs that differ in beta and in what they gained."""
    training = {"objective": {"name": "dpo", "beta": 0.5}}
    one = write_run(tmp_path / "runs/one", "one", 0.5)
    two = write_run(tmp_path / "runs/two", "two", 0.2, job=make_job("two", training=training))
    return str(one), str(two)


def test_the_command_writes_a_page_and_json_and_leaves_the_runs_alone(
    runs: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path / "runs")
    assert main(["compare", *runs, "--resamples", "200", "--seed", "3"]) == 0
    assert files(tmp_path / "runs") == before
    printed = capsys.readouterr().out
    output = tmp_path / "comparisons/one-and-two"
    assert f"page: {output}/comparison.html" in printed
    assert f"one: {runs[0]}, the policy of round 0" in printed
    found = json.loads((output / "comparison.json").read_text())
    assert found["resampling"] == {"resamples": 200, "seed": 3, "interval": "percentile, 95 %"}
    assert found["settings"] == {"training.objective.beta": {"one": 0.1, "two": 0.5}}
    assert found["curves"]["one"] == {"step": [1, 2], "loss": [0.7, 0.5]}
    [pair] = found["pairs"]
    assert pair["score_difference"]["mean"] == pytest.approx(0.3)
    assert pair["kl_nats_per_completion_difference"]["mean"] == pytest.approx(0.9)
    # The same command again replaces what it wrote.
    assert main(["compare", *runs, "--resamples", "200"]) == 0


def test_each_run_has_the_numbers_of_its_own_evaluation(runs: tuple[str, str]) -> None:
    [one, two] = raydpo.compare_runs(runs, resamples=100)["runs"]
    assert (one["label"], one["online"], one["beta"]) == ("one", False, 0.1)
    assert (one["score"]["mean"], two["score"]["mean"]) == (pytest.approx(2.0), pytest.approx(1.7))
    assert one["reference_score"]["mean"] == pytest.approx(1.5)
    assert one["win_rate_against_reference"]["mean"] == pytest.approx(0.75)
    assert one["kl_nats_per_completion"]["mean"] == pytest.approx(1.5)
    assert (one["completion_tokens"]["mean"], one["token_limit_share"]["mean"]) == (3.0, 0.5)


def test_online_runs_are_compared_by_their_last_evaluated_round(
    runs: tuple[str, str], tmp_path: Path
) -> None:
    online = write_online_run(tmp_path / "runs/rounds", "rounds", [0.1, 0.4])
    found = compare_runs([runs[0], str(online)], resamples=100)
    rounds = found["runs"][1]
    assert (rounds["round"], rounds["online"]) == (1, True)
    assert rounds["score"]["mean"] == pytest.approx(1.9)
    assert rounds["kl_nats_per_completion"]["mean"] == pytest.approx(1.2)
    assert rounds["win_rate_against_reference"]["mean"] == pytest.approx(0.75)
    assert found["curves"]["rounds"]["step"] == [1, 2, 3, 4, 5, 6]


def test_runs_of_one_name_get_labels_that_differ(runs: tuple[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "runs/copy"
    shutil.copytree(runs[0], copy)
    found = compare_runs([runs[0], str(copy), runs[0]], resamples=100)
    assert [run["label"] for run in found["runs"]] == ["one", "one (2)", "one (3)"]
    for pair in found["pairs"]:
        assert pair["score_difference"]["mean"] == 0
        assert pair["win_rate"]["mean"] == 0.5


def test_what_is_no_evaluated_run_is_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        compare_runs([runs[0], str(tmp_path / "nowhere")])
    (Path(runs[1]) / "round-000/evaluation/manifest.json").unlink()
    with pytest.raises(RunError, match=r"two has no finished evaluation; it has rounds \[0\]"):
        compare_runs(runs)
    with pytest.raises(ConfigError, match="1 run is given"):
        compare_runs(runs[:1])
    with pytest.raises(ConfigError, match="resamples 5"):
        compare_runs(runs, resamples=5)


def test_an_evaluation_that_config_or_policy_outran_is_refused(tmp_path: Path) -> None:
    older = write_run(tmp_path / "older", "older", 0.1, weights="0" * 64)
    with pytest.raises(RunError, match="is of the policy 000000000000"):
        read_evaluated([str(older)])
    judge = {"prompts": "heldout.jsonl", "judge": {"function": "judges:first", "weight": 2.0}}
    other = write_run(tmp_path / "other", "other", 0.1, job=make_job("other", evaluation=judge))
    with pytest.raises(RunError, match="was judged by"):
        read_evaluated([str(other)])
    none = write_run(tmp_path / "none", "none", 0.1, job=make_job("none", evaluation=None))
    with pytest.raises(RunError, match="has no `evaluation` section"):
        read_evaluated([str(none)])


def test_a_job_that_came_after_the_evaluation_is_refused(tmp_path: Path) -> None:
    later = write_run(tmp_path / "later", "later", 0.1, beta=0.3)
    with pytest.raises(RunError, match=r"'beta' changed: 0\.3 -> 0\.1"):
        read_evaluated([str(later)])
    sampling = make_job("hot", sampling={"top_p": 0.5})
    hot = write_run(tmp_path / "hot", "hot", 0.1, job=sampling)
    with pytest.raises(RunError, match=r"'top_p' changed: 1\.0 -> 0\.5"):
        read_evaluated([str(hot)])
    online = write_online_run(tmp_path / "online", "online", [0.1])
    (online / "config.yaml").write_text(yaml.safe_dump(sampling))
    with pytest.raises(RunError, match=r"'top_p' changed: 1\.0 -> 0\.5"):
        read_evaluated([str(online)])
    begun = write_run(tmp_path / "begun", "begun", 0.1)
    (begun / "round-000/policy/manifest.json").unlink()
    with pytest.raises(RunError, match="policy is not finished"):
        read_evaluated([str(begun)])


def test_judges_with_other_settings_are_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "other", 0.1, scorer={"output": "logit"})
    with pytest.raises(RunError, match="one and other were scored by different judges: scorers"):
        compare_runs([runs[0], str(other)])


def test_a_damaged_table_is_refused(runs: tuple[str, str]) -> None:
    part = Path(runs[1]) / "round-000/evaluation/policy_scores/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        compare_runs(runs)


def test_nothing_is_written_into_a_run_or_over_other_files(
    runs: tuple[str, str], tmp_path: Path
) -> None:
    third = write_run(tmp_path / "third", "third", 0.1)
    for output in (runs[0], f"{runs[1]}/comparison", str(third / "round-000/x")):
        with pytest.raises(ConfigError, match="is in the run directory"):
            compare_runs(runs, output, resamples=100)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match=r"has other files: notes\.txt"):
        compare_runs(runs, str(tmp_path / "mine"), resamples=100)


def test_the_default_output_is_named_after_the_folders() -> None:
    assert default_output(["runs/a", "s3://bucket/b/"]) == "comparisons/a-and-b"

"""A stage has one word; the old ones are understood where people type them."""

from __future__ import annotations

import pytest

from raydpo.cli import command_parser
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError
from raydpo.core.stages import OLD_WORDS, REDO, STAGES, refuse_other_stages
from raydpo.pipeline.order import FOLDERS, redone_folders


def test_each_stage_is_a_section_of_the_configuration_and_its_folder_is_logged_by_its_word() -> (
    None
):
    for stage in STAGES:
        assert stage in Config.model_fields
        assert stage in {FOLDERS[folder].label for folder in redone_folders(stage)}


def test_each_word_of_redo_sets_folders_aside() -> None:
    assert {named.redo for named in FOLDERS.values() if named.redo} == set(REDO)


@pytest.mark.parametrize(("old", "new"), OLD_WORDS.items())
def test_commands_and_redo_take_the_old_words_for_the_new(old: str, new: str) -> None:
    parser = command_parser()
    if new in STAGES:
        assert parser.parse_args([old, "job.yaml"]) == parser.parse_args([new, "job.yaml"])
        assert parser.parse_args([old, "job.yaml"]).until == new
    redo = parser.parse_args(["run", "job.yaml", "--redo", old]).redo
    assert redo == [new]


def test_a_word_that_names_no_stage_is_refused_with_the_new_word_or_with_all() -> None:
    refuse_other_stages("training", ("scores",))
    with pytest.raises(ConfigError, match="write 'training', the new word for 'train'"):
        refuse_other_stages("train")
    with pytest.raises(ConfigError, match="sampling, scores, labeling"):
        refuse_other_stages("training", ("label ",))
    with pytest.raises(ConfigError, match="write one of these"):
        refuse_other_stages("score")  # no command ends with the scores

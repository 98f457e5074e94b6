"""Each fault with what raydpo owes in it, and the tests that inject it.

What comes in: nothing. What goes out: `ROWS`, from which `docs/faults.md` is written and which
`make test-faults` runs. A fault without a test says so in `missing`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, what is owed in it, and its tests as `file::function` below `tests/`."""

    fault: str
    owed: str
    tests: tuple[str, ...]
    missing: str = ""


ROWS = (
    Row(
        "a sampling engine is killed in the midst of a batch",
        "it starts again with the right weights, the others take its work, and no token differs",
        (
            "integration/test_sampling_faults.py::test_dead_engines_leave_their_work_to_the_others_and_the_stage_goes_on_later",
            "integration/test_sampling_faults.py::test_a_killed_engine_whose_first_restart_cannot_load_changes_no_token",
            "integration/test_tensor_parallel.py::test_a_killed_process_ends_the_whole_engine_and_the_next_one_answers_alike",
        ),
    ),
    Row(
        "an engine does not answer",
        "its work goes to the others",
        (
            "integration/test_sampling.py::test_the_work_of_an_engine_that_does_not_answer_goes_elsewhere",
        ),
    ),
    Row(
        "nodes come and go while workers train",
        "the workers follow the cluster's size, and no weight differs",
        ("integration/test_elastic.py::test_workers_follow_the_cluster_s_size_and_change_nothing",),
    ),
    Row(
        "a train rank is killed at any step, or inside a save",
        "the same command goes on from the last whole checkpoint, and ends bitwise equal",
        (
            "integration/test_training_faults.py::test_killed_after_any_step_it_goes_on_bitwise_equal",
            "integration/test_training_faults.py::test_killed_inside_a_save_it_goes_on_from_the_one_before",
            "integration/test_training_faults.py::test_one_of_two_ranks_killed_inside_a_save_both_go_on_bitwise_equal",
        ),
    ),
    Row(
        "the driver is killed inside a stage or between two",
        "the same command goes on, does nothing finished again, and ends with equal tables",
        (
            "integration/test_pipeline.py::test_run_killed_in_sampling_and_in_training_ends_as_if_undisturbed",
            "integration/test_online.py::test_engine_train_worker_and_driver_killed_in_round_1_end_as_if_undisturbed",
        ),
    ),
    Row(
        "a crash between the data and its record",
        "what has no record is made again",
        ("unit/test_run.py::test_damaged_part_of_an_interrupted_run_is_done_again",),
    ),
    Row(
        "another number of workers when the training goes on",
        "the same batches, and a loss within the tolerance of floating point",
        (
            "integration/test_training_faults.py::test_resume_with_another_number_of_workers_and_another_strategy",
        ),
    ),
    Row(
        "the disk is full",
        "an error with the file, no half file, and the last commit stays whole",
        ("unit/test_failures.py::test_a_full_disk_is_told_with_the_file_and_leaves_no_half",),
    ),
    Row(
        "a byte of a table, model, tokenizer, metric or checkpoint is another",
        "the file is named; it alone is made again, or the checkpoint before is used",
        (
            "integration/test_pipeline.py::test_flipped_bytes_are_named_and_only_what_they_damage_is_made_again",
            "integration/test_training_on_ray.py::test_killed_with_its_newest_checkpoint_damaged_it_goes_on_and_leaves_an_adapter",
            "unit/test_run.py::test_flipped_byte_is_seen_when_the_part_is_read",
            "unit/test_mending.py::test_a_flipped_byte_costs_one_part_and_the_table_ends_as_it_was",
            "unit/test_artifacts.py::test_a_flipped_byte_of_a_policy_is_refused_by_every_reader",
            "unit/test_artifacts.py::test_flipped_metrics_are_refused",
            "unit/training/test_checkpoints.py::test_a_damaged_file_is_named_and_the_checkpoint_before_is_used",
        ),
    ),
    Row(
        "a file is cut short",
        "the file is named and refused, or made again",
        (
            "unit/test_run.py::test_truncated_part_is_named",
            "unit/test_run.py::test_commit_refuses_a_part_that_was_cut_after_it_was_written",
            "unit/test_model_files.py::test_a_file_that_is_cut_short_is_refused",
        ),
    ),
    Row(
        "a file in the temporary folder is changed or cut",
        "it is named and made again",
        (
            "unit/test_private_files.py::test_a_changed_or_cut_file_is_named_and_made_again",
            "unit/test_private_files.py::test_a_changed_file_of_a_kept_folder_is_seen",
        ),
    ),
    Row(
        "a manifest is damaged, or another run's",
        "it is refused, and never taken for nothing done",
        (
            "unit/test_run.py::test_damaged_manifest_is_refused_and_not_taken_for_nothing_done",
            "unit/test_show.py::test_a_damaged_stage_is_named_and_the_others_are_listed",
        ),
    ),
    Row(
        "reference log-probs of another model under the same path",
        "the stage is stale, or a sample of it is refused before training",
        (
            "integration/test_reference.py::test_a_wrong_log_prob_is_found_whichever_parts_are_empty",
            "integration/test_reference.py::test_samples_that_another_model_made_are_refused_before_their_part_is_written",
            "unit/sampling/test_weights.py::test_a_folder_that_changes_is_another_version_to_the_same_process",
        ),
    ),
    Row(
        "a loss on one rank is not finite",
        "all ranks stop before the step and before a checkpoint, and the batch is kept",
        (
            "integration/test_training_core.py::test_infinite_loss_on_one_rank_stops_all_before_the_update",
        ),
    ),
    Row(
        "rows that cannot be used",
        "they are kept with a reason and counted; over the budget the stage stops",
        (
            "integration/test_sampling.py::test_prompts_that_the_engine_cannot_take_are_quarantined",
            "integration/test_real_data.py::test_every_row_is_scored_by_the_reference_or_refused_with_its_reason",
            "unit/prompts/test_examples.py::test_the_stage_stops_over_the_budget_and_is_not_done",
        ),
    ),
    Row(
        "the same text under two ids",
        "two rows, since a row's identity is its id",
        ("integration/test_sampling.py::test_the_same_text_under_two_ids_is_sampled_twice",),
    ),
    Row(
        "all rewards are equal",
        "groups without a pair are counted; without any pair the run ends with an error",
        ("integration/test_pipeline.py::test_constant_reward_is_an_error_that_says_so",),
    ),
    Row(
        "a reward or judge raises, ends its process, hangs, or grows without end",
        "a limited number of attempts; the candidate is refused with the line where it happened",
        (
            "integration/test_reward_faults.py::test_a_fault_in_a_reward_is_told_by_its_line_at_the_end_of_a_run",
            "integration/test_labeling.py::test_candidates_that_end_or_hang_a_function_are_refused_and_told",
            "integration/test_parts_on_ray.py::test_a_part_that_ends_its_process_each_time_is_given_up",
            "unit/labeling/test_reward_process.py::test_a_completion_that_hangs_is_refused_with_the_line_where_it_does",
        ),
    ),
    Row(
        "people disagree, vote twice, or withdraw",
        "all votes are kept, each annotator's latest counts, and the manifest names the rule",
        (
            "unit/labeling/test_people.py::test_three_annotators_who_disagree_vote_twice_and_withdraw",
        ),
    ),
    Row(
        "two runs in one local directory",
        "the second is told who holds it; a dead holder's lock is free",
        (
            "unit/test_run.py::test_second_run_in_a_directory_is_told_who_holds_it",
            "unit/test_run.py::test_lock_of_a_killed_process_is_free",
        ),
    ),
    Row(
        "two drivers at one address of an object store, stopped at any operation",
        "one works at a time; who stood still is replaced and told; no table holds parts of both",
        (
            "unit/test_lease.py::test_a_driver_that_stops_at_any_operation_is_replaced_and_spoils_nothing",
            "unit/test_lease.py::test_two_drivers_at_every_pair_of_interruptions",
            "unit/test_lease.py::test_of_drivers_that_begin_together_one_works_at_a_time",
            "unit/test_run.py::test_parts_of_another_stage_in_the_same_folder_are_no_part_of_the_table",
        ),
    ),
    Row(
        "an object store throttles, drops connections, or is slow",
        "each operation is tried again with growing random waits; then the error names the file",
        (
            "unit/test_retrying.py::test_every_operation_survives_a_store_that_fails",
            "unit/test_retrying.py::test_a_store_that_does_not_come_back_is_named_without_its_credentials",
        ),
    ),
    Row(
        "completions degenerate",
        "an alarm with its threshold, and training can stop on it",
        (
            "unit/test_online_record.py::test_without_an_evaluation_only_displacement_can_stop",
            "integration/test_online.py::test_self_play_that_stops_early_ends_well_while_train_workers_wait",
        ),
    ),
    Row(
        "a sampler that disagrees with the trainer",
        "the run ends with the number",
        (
            "integration/test_online.py::test_an_engine_that_disagrees_with_the_trainer_ends_the_run",
        ),
    ),
    Row(
        "an export fails after the training",
        "the same command exports from the last checkpoint and does nothing else",
        (
            "integration/test_exports.py::test_an_export_that_failed_is_all_that_the_same_command_does",
        ),
    ),
    Row(
        "a model or checkpoint that would run code",
        "it is refused",
        (
            "unit/test_models.py::test_model_saved_as_a_pickle_is_refused",
            "unit/training/test_checkpoints.py::test_values_that_would_run_code_are_refused",
        ),
    ),
    Row(
        "a finished stage whose manifest is lost, or whose settings changed",
        "it is set aside under a name that the log tells, and `raydpo clean` alone deletes it",
        (
            "unit/test_set_aside.py::test_a_finished_stage_is_set_aside_whole_and_the_log_says_where",
        ),
    ),
    Row(
        "a cluster that stood here before, or one that does not answer",
        "an own cluster looks for no other; a join says what it waits for and gives up",
        (
            "unit/test_cluster.py::test_an_own_cluster_does_not_look_for_one_that_stood_here",
            "unit/test_cluster.py::test_joining_a_cluster_that_does_not_answer_speaks_and_gives_up",
        ),
    ),
    Row(
        "processes that clean the temporary folder together",
        "what vanishes meanwhile stops none of them",
        ("unit/test_private_files.py::test_what_other_processes_remove_meanwhile_is_no_error",),
    ),
    Row(
        "a credential in a configuration, a URI or the environment",
        "it is refused, or kept out of every file, log and error",
        (
            "integration/test_pipeline.py::test_no_file_and_no_log_holds_a_secret_and_prompts_stand_where_people_read_them",
            "unit/test_credentials.py::test_a_configuration_with_one_is_refused_without_repeating_it",
            "unit/test_credentials.py::test_a_run_s_uri_with_one_is_refused",
            "unit/test_credentials.py::test_secret_variables_are_taken_out_of_errors_logs_and_tracebacks",
        ),
    ),
    Row(
        "other users of the machine and the network",
        "a cluster that raydpo starts listens on loopback; temporary files are one user's alone",
        (
            "integration/test_cluster_access.py::test_all_that_listens_listens_on_loopback",
            "unit/test_private_files.py::test_a_folder_that_others_can_write_into_is_refused",
        ),
    ),
    Row(
        "a model of a billion layers",
        "it is refused by arithmetic before one is built",
        (
            "unit/test_model_files.py::test_a_model_of_a_billion_layers_is_refused_before_one_is_built",
        ),
    ),
    Row(
        "a node that is lost and does not come back",
        "the work is planned again for the nodes that are left",
        (),
        missing="written and not landed; today a stage waits for room",
    ),
    Row(
        "a train worker, or the only engine, that stands still",
        "it is ended after a stated time and its work done again; the wait is told each minute",
        (),
        missing="written and not landed; Ray Train's own health check ends a worker after minutes",
    ),
    Row(
        "a judge or reward service with time-outs, errors and bad JSON",
        "limited tries with growing waits, no default score, the row quarantined at the end",
        (),
        missing="judges over HTTP are not there yet",
    ),
)

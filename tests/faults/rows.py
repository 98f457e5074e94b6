"""`ROWS`: each fault with what raydpo guarantees, and the tests that inject it.

`make test-faults` runs the tests and writes `docs/faults.md` from the rows. A fault without a test
says so in `missing`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, what raydpo guarantees, and its tests as `file::function` below `tests/`."""

    fault: str
    owed: str
    tests: tuple[str, ...]
    missing: str = ""


ROWS = (
    Row(
        "a sampling engine is killed in the middle of a batch",
        "it starts again with the right weights, the others take over its work, and no token differs",
        (
            "integration/test_sampling_faults.py::test_dead_engines_leave_their_work_to_the_others_and_the_stage_goes_on_later",
            "integration/test_sampling_faults.py::test_a_killed_engine_whose_first_restart_cannot_load_changes_no_token",
            "integration/test_tensor_parallel.py::test_a_killed_process_ends_the_whole_engine_and_the_next_one_answers_alike",
        ),
    ),
    Row(
        "an engine does not answer, the only one or one of several",
        "raydpo ends it after a stated time and starts it again, and no token differs; an engine that raydpo gives up frees its place",
        (
            "integration/test_sampling_faults.py::test_the_only_engine_that_is_stopped_is_spoken_of_ended_and_changes_no_token",
            "integration/test_sampling_faults.py::test_a_stopped_engine_is_used_again_and_one_that_is_given_up_frees_its_place",
        ),
    ),
    Row(
        "nodes come and go while workers train",
        "the workers follow the cluster's size, and no weight differs",
        ("integration/test_elastic.py::test_workers_follow_the_cluster_s_size_and_change_nothing",),
    ),
    Row(
        "a train rank is killed at any step, or inside a save",
        "the same command resumes from the last intact checkpoint, and ends bitwise equal",
        (
            "integration/test_training_faults.py::test_killed_after_any_step_it_goes_on_bitwise_equal",
            "integration/test_training_faults.py::test_killed_inside_a_save_it_goes_on_from_the_one_before",
            "integration/test_training_faults.py::test_one_of_two_ranks_killed_inside_a_save_both_go_on_bitwise_equal",
        ),
    ),
    Row(
        "the driver is killed inside a stage or between two",
        "the same command resumes, repeats nothing that is finished, and ends with equal tables",
        (
            "integration/test_pipeline.py::test_run_killed_in_sampling_and_in_training_ends_as_if_undisturbed",
            "integration/test_online.py::test_engine_train_worker_and_driver_killed_in_round_1_end_as_if_undisturbed",
        ),
    ),
    Row(
        "a crash between the data and its record",
        "raydpo makes again what has no record",
        ("unit/core/test_run.py::test_damaged_part_of_an_interrupted_run_is_done_again",),
    ),
    Row(
        "another number of workers when the training resumes",
        "the batches are the same, and the loss is within the tolerance of floating point",
        (
            "integration/test_training_faults.py::test_resume_with_another_number_of_workers_and_another_strategy",
        ),
    ),
    Row(
        "the disk is full",
        "the error names the file, no partial file remains, and the last commit stays intact",
        ("unit/core/test_failures.py::test_a_full_disk_is_told_with_the_file_and_leaves_no_half",),
    ),
    Row(
        "a byte of a table, model, tokenizer, metric or checkpoint has changed",
        "raydpo names the file, and makes only it again or uses the checkpoint before",
        (
            "integration/test_pipeline.py::test_flipped_bytes_are_named_and_only_what_they_damage_is_made_again",
            "integration/test_training_on_ray.py::test_killed_with_its_newest_checkpoint_damaged_it_goes_on_and_leaves_an_adapter",
            "unit/core/test_run.py::test_flipped_byte_is_seen_when_the_part_is_read",
            "unit/core/test_mending.py::test_a_flipped_byte_costs_one_part_and_the_table_ends_as_it_was",
            "unit/core/test_artifacts.py::test_a_flipped_byte_of_a_policy_is_refused_by_every_reader",
            "unit/core/test_artifacts.py::test_flipped_metrics_are_refused",
            "unit/training/test_checkpoints.py::test_a_damaged_file_is_named_and_the_checkpoint_before_is_used",
        ),
    ),
    Row(
        "a file is truncated",
        "raydpo names the file, and refuses it or makes it again",
        (
            "unit/core/test_run.py::test_truncated_part_is_named",
            "unit/core/test_run.py::test_commit_refuses_a_part_that_was_cut_after_it_was_written",
            "unit/models/test_model_files.py::test_a_file_that_is_cut_short_is_refused",
        ),
    ),
    Row(
        "a file in the temporary folder is changed or truncated",
        "raydpo names it and makes it again",
        (
            "unit/core/test_private_files.py::test_a_changed_or_cut_file_is_named_and_made_again",
            "unit/core/test_private_files.py::test_a_changed_file_of_a_kept_folder_is_seen",
        ),
    ),
    Row(
        "a manifest is damaged, or belongs to another run",
        "raydpo refuses it, and never takes it for a stage that has not run",
        (
            "unit/core/test_run.py::test_damaged_manifest_is_refused_and_not_taken_for_nothing_done",
            "unit/show/test_show.py::test_a_damaged_stage_is_named_and_the_others_are_listed",
        ),
    ),
    Row(
        "reference log-probs of another model under the same path",
        "the stage is stale, or a comparison of samples fails before training",
        (
            "integration/test_reference.py::test_a_wrong_log_prob_is_found_whichever_parts_are_empty",
            "integration/test_reference.py::test_samples_that_another_model_made_are_refused_before_their_part_is_written",
            "unit/sampling/test_weights.py::test_a_folder_that_changes_is_another_version_to_the_same_process",
        ),
    ),
    Row(
        "a loss on one rank is not finite",
        "all ranks stop before the step and before a checkpoint, and raydpo keeps the batch",
        (
            "integration/test_training_core.py::test_infinite_loss_on_one_rank_stops_all_before_the_update",
        ),
    ),
    Row(
        "rows that raydpo cannot use",
        "raydpo keeps them with a reason and counts them; over the budget the stage stops",
        (
            "integration/test_sampling.py::test_prompts_that_the_engine_cannot_take_are_quarantined",
            "integration/test_real_data.py::test_every_row_is_scored_by_the_reference_or_refused_with_its_reason",
            "unit/prompts/test_examples.py::test_the_stage_stops_over_the_budget_and_is_not_done",
        ),
    ),
    Row(
        "the same text under two ids",
        "they stay two rows, since a row's identity is its id",
        ("integration/test_sampling.py::test_the_same_text_under_two_ids_is_sampled_twice",),
    ),
    Row(
        "all rewards are equal",
        "raydpo counts groups without a pair; without any pair the run ends with an error",
        ("integration/test_pipeline.py::test_constant_reward_is_an_error_that_says_so",),
    ),
    Row(
        "a reward or judge raises, ends its process, hangs, or grows without end",
        "raydpo makes a limited number of attempts, and refuses the candidate with the line where it happened",
        (
            "integration/test_reward_faults.py::test_a_fault_in_a_reward_is_told_by_its_line_at_the_end_of_a_run",
            "integration/test_labeling.py::test_candidates_that_end_or_hang_a_function_are_refused_and_told",
            "integration/test_parts_on_ray.py::test_a_part_that_ends_its_process_each_time_is_given_up",
            "unit/labeling/test_reward_process.py::test_a_completion_that_hangs_is_refused_with_the_line_where_it_does",
        ),
    ),
    Row(
        "people disagree, vote twice, or withdraw",
        "raydpo keeps all votes, counts each annotator's latest, and names the rule in the manifest",
        (
            "unit/labeling/test_people.py::test_three_annotators_who_disagree_vote_twice_and_withdraw",
        ),
    ),
    Row(
        "two runs in one local directory",
        "the second learns who holds it; a dead holder's lock is free",
        (
            "unit/core/test_run.py::test_second_run_in_a_directory_is_told_who_holds_it",
            "unit/core/test_run.py::test_lock_of_a_killed_process_is_free",
        ),
    ),
    Row(
        "two drivers at one address of an object store, stopped at any operation",
        "one works at a time; a driver that stood still is replaced and learns of it; no table holds parts of both",
        (
            "unit/core/test_lease.py::test_a_driver_that_stops_at_any_operation_is_replaced_and_spoils_nothing",
            "unit/core/test_lease.py::test_two_drivers_at_every_pair_of_interruptions",
            "unit/core/test_lease.py::test_of_drivers_that_begin_together_one_works_at_a_time",
            "unit/core/test_run.py::test_parts_of_another_stage_in_the_same_folder_are_no_part_of_the_table",
        ),
    ),
    Row(
        "an object store throttles, drops connections, or is slow",
        "raydpo retries each operation with growing random waits; then the error names the file",
        (
            "unit/core/test_retrying.py::test_every_operation_survives_a_store_that_fails",
            "unit/core/test_retrying.py::test_a_store_that_does_not_come_back_is_named_without_its_credentials",
        ),
    ),
    Row(
        "completions degenerate",
        "raydpo raises an alarm with its threshold, and training can stop on it",
        (
            "unit/online/test_online_record.py::test_without_an_evaluation_only_displacement_can_stop",
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
        "raydpo refuses it",
        (
            "unit/models/test_models.py::test_model_saved_as_a_pickle_is_refused",
            "unit/training/test_checkpoints.py::test_values_that_would_run_code_are_refused",
        ),
    ),
    Row(
        "a finished stage whose manifest is lost, or whose settings changed",
        "raydpo sets it aside under a name that the log shows, and only `raydpo clean` deletes it",
        (
            "unit/core/test_set_aside.py::test_a_finished_stage_is_set_aside_whole_and_the_log_says_where",
        ),
    ),
    Row(
        "a cluster that ran here before, or one that does not answer",
        "raydpo's own cluster looks for no other; a join says what it waits for and gives up",
        (
            "unit/core/test_cluster.py::test_an_own_cluster_does_not_look_for_one_that_stood_here",
            "unit/core/test_cluster.py::test_joining_a_cluster_that_does_not_answer_speaks_and_gives_up",
        ),
    ),
    Row(
        "processes that clean the temporary folder together",
        "a file that vanishes meanwhile stops none of them",
        (
            "unit/core/test_private_files.py::test_what_other_processes_remove_meanwhile_is_no_error",
        ),
    ),
    Row(
        "a credential in a configuration, a URI or the environment",
        "raydpo refuses it, or keeps it out of every file, log and error",
        (
            "integration/test_pipeline.py::test_no_file_and_no_log_holds_a_secret_and_prompts_stand_where_people_read_them",
            "unit/core/test_credentials.py::test_a_configuration_with_one_is_refused_without_repeating_it",
            "unit/core/test_credentials.py::test_a_run_s_uri_with_one_is_refused",
            "unit/core/test_credentials.py::test_secret_variables_are_taken_out_of_errors_logs_and_tracebacks",
        ),
    ),
    Row(
        "other users of the machine and the network",
        "a cluster that raydpo starts listens on loopback, also while it trains, and asks for a token; "
        "the token and temporary files belong to one user alone",
        (
            "integration/test_cluster_access.py::test_all_that_listens_listens_on_loopback",
            "integration/test_cluster_access.py::test_train_workers_listen_on_loopback",
            "integration/test_cluster_access.py::test_who_does_not_know_the_token_is_refused",
            "unit/core/test_cluster_token.py::test_a_new_token_is_long_and_its_file_is_closed",
            "unit/core/test_cluster_token.py::test_a_token_that_is_there_is_kept_and_closed",
            "unit/core/test_private_files.py::test_a_folder_that_others_can_write_into_is_refused",
        ),
    ),
    Row(
        "a model of a billion layers",
        "raydpo refuses it by arithmetic, before it builds one",
        (
            "unit/models/test_model_files.py::test_a_model_of_a_billion_layers_is_refused_before_one_is_built",
        ),
    ),
    Row(
        "a node that is lost and does not come back",
        "in each stage of an online round, raydpo plans the work again for the remaining nodes, and no table differs",
        (
            "integration/test_lost_nodes.py::test_a_node_lost_for_good_inside_a_stage_changes_no_table",
        ),
    ),
    Row(
        "the GCS of the cluster is killed",
        "the driver ends with an error that says so: at once on a cluster that it started, and on one that it joined after two thirds of the time that Ray gives the GCS; nothing finished is lost, and the same command resumes",
        (
            "integration/test_lost_gcs.py::test_a_driver_whose_gcs_is_killed_ends_with_an_error_that_says_how_it_goes_on",
        ),
    ),
    Row(
        "a worker of a part, or of a training, stands still",
        "raydpo ends it after a stated time and repeats its work; the log reports the wait each minute",
        (
            "integration/test_hangs.py::test_a_part_whose_process_is_stopped_is_made_by_another",
            "integration/test_hangs.py::test_a_task_whose_process_is_stopped_is_begun_again",
            "integration/test_hangs.py::test_a_stopped_train_rank_is_ended_and_training_resumes_bitwise_equal",
        ),
    ),
    Row(
        "a train worker ends while the workers look for each other",
        "Ray Train starts them again, and no error ends the run",
        (
            "integration/test_worker_starts.py::test_a_worker_that_ends_while_workers_find_each_other_lets_ray_train_begin_again",
            "integration/test_worker_starts.py::test_another_error_of_workers_that_live_stays_as_it_is",
        ),
    ),
    Row(
        "train workers that wait for their data end, more often than `max_failures` allows",
        "other workers start when the data is there, and no error ends the run",
        (
            "integration/test_worker_starts.py::test_workers_that_ended_before_their_job_are_replaced",
        ),
    ),
    Row(
        "a train worker dies while it starts, or gives way before it has a place",
        "what Ray Train had reserved for it is free again, for the next worker and for other stages",
        (
            "integration/test_worker_starts.py::test_a_worker_that_dies_while_it_starts_leaves_its_cpus_to_the_next",
            "integration/test_worker_starts.py::test_workers_without_a_place_that_give_way_take_none_later",
        ),
    ),
    Row(
        "a train worker lives but makes no progress",
        "it writes the stacks of its threads and ends, like any other failure",
        (
            "unit/training/test_watchdog.py::test_a_process_that_gets_no_further_writes_its_stacks_and_ends",
        ),
    ),
    Row(
        "a judge or reward service with time-outs, errors and bad JSON",
        "raydpo makes a limited number of tries with growing waits, gives no default score, and quarantines the row at the end",
        (
            "integration/test_labeling.py::test_a_service_that_fails_a_fifth_of_the_time_gives_the_scores_that_are_owed",
            "unit/labeling/test_over_http.py::test_with_a_fifth_of_the_requests_failing_the_scores_are_those_without_faults",
            "unit/labeling/test_over_http.py::test_a_poisoned_row_alone_is_refused_with_the_last_answer",
            "unit/labeling/test_over_http.py::test_a_row_whose_reward_is_no_number_is_refused_and_no_other",
            "unit/labeling/test_over_http.py::test_a_row_that_kills_the_service_takes_no_other_with_it",
            "unit/labeling/test_over_http.py::test_a_service_that_is_not_there_ends_the_run_and_refuses_no_row",
            "unit/labeling/test_over_http.py::test_what_the_service_asks_to_wait_is_waited",
        ),
    ),
    Row(
        "a language model that judges answers otherwise than asked, or not at all",
        "raydpo reads its answers strictly, asks a limited number of times, gives no default score, and quarantines the row with the last answer",
        (
            "unit/labeling/test_judges.py::test_with_a_fifth_of_the_requests_failing_the_scores_are_those_without_faults",
            "unit/labeling/test_judges.py::test_both_orders_measure_the_position_bias_and_remove_it_despite_failures",
            "unit/labeling/test_judges.py::test_an_answer_that_is_not_as_demanded_refuses_the_row_and_no_other",
            "unit/labeling/test_judges.py::test_a_completion_that_no_judge_can_compare_is_refused_and_the_others_stay",
            "unit/labeling/test_judges.py::test_a_judge_that_refuses_the_schema_ends_the_run_and_refuses_no_row",
        ),
    ),
    Row(
        "the driver is killed, or the budget is spent, while a judge is asked",
        "the same command resumes and asks for no answer that it has; what was under way at a kill is asked again",
        (
            "integration/test_judged_runs.py::test_a_killed_labelling_goes_on_and_asks_for_no_answer_twice",
            "integration/test_judged_runs.py::test_a_pointwise_judge_labels_and_a_budget_stops_and_goes_on",
            "unit/labeling/test_judges.py::test_what_is_under_way_when_the_budget_ends_is_kept",
        ),
    ),
)

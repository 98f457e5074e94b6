"""The table at the end of a run."""

from __future__ import annotations

import re

from evaluation_samples import make_metrics

from raydpo.evaluation.summary import summary_table


def test_table_shows_both_models_and_where_the_report_is():
    metrics = {**make_metrics(), "report": "/runs/demo/report.html"}
    lines = summary_table(metrics).splitlines()
    score, kl = metrics["policy"]["score"], metrics["kl"]["nats_per_completion"]
    reference = next(line for line in lines if line.startswith("pi_ref"))
    policy = next(line for line in lines if line.startswith("pi_dpo"))
    assert f"{metrics['reference']['score']['mean']:.3f} ± " in reference
    assert f"{score['mean']:.3f} ± {score['standard_error']:.3f}" in policy
    assert f"{kl['mean']:.2f} ± {kl['standard_error']:.2f}" in policy
    assert f"{100 * metrics['win_rate']['mean']:.1f}" in policy
    assert f"{metrics['difference']['score']['z']:+.1f} standard errors" in "\n".join(lines)
    assert re.search(r"beta: +0\.25", "\n".join(lines))
    assert lines[-1].endswith("/runs/demo/report.html")


def test_the_verdict_is_printed_where_the_run_has_one():
    metrics = {**make_metrics(), "report": "r"}
    printed = summary_table(metrics)
    assert f"verdict: {metrics['verdict']}" in " ".join(printed.split())
    assert all(len(line) < 120 for line in printed.splitlines())
    del metrics["verdict"]  # a report of an earlier version
    assert "verdict" not in summary_table(metrics)


def test_columns_are_aligned():
    header, rule, reference, policy = summary_table({**make_metrics(), "report": ""}).splitlines()[
        :4
    ]
    assert len(header) == len(rule) == len(reference) == len(policy)


def test_what_is_unknown_is_left_out():
    metrics = {**make_metrics(), "report": "r"}
    metrics["difference"]["score"]["z"] = None
    metrics["kl"]["beta"] = None
    metrics["policy"]["score"]["standard_error"] = None
    text = summary_table(metrics)
    assert "None" not in text
    assert "beta" not in text


def test_caveats_of_the_kl_are_printed():
    text = summary_table({**make_metrics(temperature=0.5), "report": "r"})
    assert "mean log-ratio, as temperature 0.5" in text

"""The JSON Schema of a job, as editors read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raydpo.cli import main

JOBS = Path(__file__).parents[3] / "jobs"
SCHEMA = JOBS / "job.schema.json"
FILES = sorted(JOBS.glob("*.yaml"))


def problems(job: Any) -> list[str]:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(job)]


def values(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_schema_beside_the_jobs_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    """`raydpo schema > jobs/job.schema.json` writes it."""
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == SCHEMA.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_job_names_the_schema_and_keeps_to_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=job.schema.json"
    assert problems(values(path)) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sampling", "candidtes", 4),
        ("sampling", "candidates", "four"),
        ("training", "objective", {"name": "dpo", "bta": 0.1}),
        ("labeling", "reward", {"functon": "a:b"}),
    ],
)
def test_an_editor_marks_a_wrong_key_or_value(section: str, key: str, value: object) -> None:
    job = values(JOBS / "demo.yaml")
    assert problems(job) == []
    assert problems(job | {section: job[section] | {key: value}}) != []


def test_every_key_of_the_schema_says_what_it_is() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    sections = schema["$defs"] | {"job": schema}
    told = {
        f"#/$defs/{name}" for name, section in schema["$defs"].items() if section["description"]
    }
    silent = [
        f"{section}.{key}"
        for section, values in sections.items()
        for key, value in values.get("properties", {}).items()
        if not value.get("description") and value.get("$ref") not in told
    ]
    assert silent == []

"""The tables that stages pass to each other: Arrow schemas, declared once.

Stages exchange token ids: the reference scores, and the policy trains on, the ids that the
sampler emitted. Text columns are for people. Ids are int32, log-probabilities are natural
logarithms in float32.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from raydpo.core.errors import DataError

Row = dict[str, Any]

_TOKENS = pa.list_(pa.int32())
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
#: `probability` that chosen wins, by votes or rewards; null where only the label is known.
PAIR: Final = pa.struct(
    [
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("weight", pa.float32()),
        ("probability", pa.float32()),
    ]
)

#: Columns that tables of earlier versions lack. A row may leave them out; they are then null, and
#: the row's hash is the one that it had before the columns existed.
LATER_COLUMNS: Final = frozenset(
    {"metadata", "prompt_messages", "temperature", "value_low", "value_high"}
)
#: What a source says of the prompt beside what raydpo itself uses: a JSON object, or null
#: (`core/metadata.py`).
_METADATA: Final = pa.field("metadata", pa.string())

#: One row a prompt. `prompt` is the rendered text that `prompt_ids` encode; `messages` hold roles
#: and contents for people and rewards to read, and not what else the template was given.
PROMPTS: Final = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("messages", pa.list_(_MESSAGE)),
        pa.field("prompt_ids", _TOKENS, nullable=False),
        _METADATA,
    ]
)

#: One row a completion. The K rows of a prompt are neighbours, `candidate` 0 to K-1.
#: `temperature` is null where all candidates have the same, that of the configuration.
#: `sampler_token_logps` is null where a sampler function gave none; `prompt_messages` are the
#: prompt's `messages`.
CANDIDATES: Final = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_ids", _TOKENS, nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("completion_ids", _TOKENS, nullable=False),
        pa.field("sampler_token_logps", pa.list_(pa.float32())),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("temperature", pa.float64()),
        pa.field("prompt_messages", pa.list_(_MESSAGE)),
        _METADATA,
    ]
)

#: One row a judgement of one candidate by one scorer; all of them are kept. `value` is null where
#: one of several scorers does not apply to the candidate. `value_low` and `value_high` are its 95 %
#: interval, where the scorer gives one; `rationale` is the judge's own words.
SCORES: Final = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("rationale", pa.string()),
        pa.field("value_low", pa.float64()),
        pa.field("value_high", pa.float64()),
    ]
)

#: One row a vote of a person on a blinded pair; all of them are kept.
VOTES: Final = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("candidate_a", pa.int32(), nullable=False),
        pa.field("candidate_b", pa.int32(), nullable=False),
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("choice", pa.string(), nullable=False),  # "a", "b", "tie" or "withdrawn"
        pa.field("position", pa.int64(), nullable=False),  # line in the imported file
        pa.field("note", pa.string()),
    ]
)

#: One row a preference group: a prompt, its K completions, the pairs or ranking over them.
#: `pairs` index into `completions`; `ranking` lists them best first; `rewards` may be null.
#: `desirable` is there in unpaired data: a judgement of each completion, null for one that
#: answers another prompt and is there for KTO's reference point only.
PREFERENCES: Final = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_ids", _TOKENS, nullable=False),
        pa.field("completion_texts", pa.list_(pa.string()), nullable=False),
        pa.field("completions", pa.list_(_TOKENS), nullable=False),
        pa.field("rewards", pa.list_(pa.float64())),
        pa.field("pairs", pa.list_(PAIR), nullable=False),
        pa.field("ranking", pa.list_(pa.int32())),
        pa.field("desirable", pa.list_(pa.bool_())),
        _METADATA,
    ]
)

#: Preferences whose completions a policy gradient learns from: rewards are there, and for each
#: completion the log-probs of the policy that sampled it. `pairs` may be empty.
SAMPLED_PREFERENCES: Final = pa.schema(
    [
        *(
            field.with_nullable(False) if field.name == "rewards" else field
            for field in PREFERENCES
        ),
        pa.field("sampler_token_logps", pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)

#: One row a group, in the order of the preferences: K lists of per-token log-probs.
REFERENCE: Final = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("reference_token_logps", pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)

#: One row a completion of existing data, scored by `raydpo score`; `logps` is the sum in nats.
LOGPS: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("completion", pa.int32(), nullable=False),
        pa.field("completion_ids", _TOKENS, nullable=False),
        pa.field("token_logps", pa.list_(pa.float32()), nullable=False),
        pa.field("logps", pa.float64(), nullable=False),
    ]
)

#: One row a training example of SFT. No loss on the first `prompt_tokens` tokens.
EXAMPLES: Final = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("token_ids", _TOKENS, nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
    ]
)

#: One row a refused input row. `row` is its JSON, so that nothing is lost.
QUARANTINE: Final = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "prompts": PROMPTS,
    "candidates": CANDIDATES,
    "scores": SCORES,
    "votes": VOTES,
    "preferences": PREFERENCES,
    "sampled_preferences": SAMPLED_PREFERENCES,
    "reference": REFERENCE,
    "logps": LOGPS,
    "examples": EXAMPLES,
    "quarantine": QUARANTINE,
}


def table_from_rows(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Build a table that obeys `schema` exactly.

    Raises:
        DataError: a column is missing or extra, a value has the wrong type, or a
            required value is null.
    """
    names = set(schema.names)
    for row in rows:
        if row.keys() | (names & LATER_COLUMNS) != names:
            raise DataError(
                f"a row has the columns {sorted(row)}",
                f"the table's columns are {sorted(names)}",
                "this is a bug in the stage that wrote the row: please report it",
            )
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"a row cannot be stored: {error}",
            f"the columns are {', '.join(f'{f.name}: {f.type}' for f in schema)}",
            "look at the value that the message names in the stage's input",
        ) from error
    check_table(table, schema, "rows")
    return table


def check_table(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Compare a table with its declared schema.

    A column that may have nulls may be one without them, as an older version declared it.

    Raises:
        DataError: a column or a type differs, or a required column has nulls.
    """
    if not _loosened(table.schema, schema).equals(schema, check_metadata=False):
        raise DataError(
            f"{where} has the schema {_describe(table.schema)}",
            f"it must be {_describe(schema)}",
            "delete the folder and run the stage that writes it again",
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise DataError(
                f"{where} has nulls in column {field.name!r}",
                "this column is required in every row",
                "look at the stage's input for a row without it",
            )


def declared(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return a table as its schema declares it; `LATER_COLUMNS` that it lacks become nulls.

    Raises:
        DataError: as of `check_table`.
    """
    for place, field in enumerate(schema):
        if field.name in LATER_COLUMNS and field.name not in table.column_names:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.add_column(min(place, table.num_columns), field, nulls)
    check_table(table, schema, where)
    return table.cast(schema)


def hashed_row(row: Row) -> Row:
    """Return the columns of a row that its hash covers: all but `LATER_COLUMNS` without a value."""
    return {k: v for k, v in row.items() if v is not None or k not in LATER_COLUMNS}


def _loosened(found: pa.Schema, schema: pa.Schema) -> pa.Schema:
    """The schema that was found, with nulls allowed where the declared one allows them."""
    nullable = {field.name for field in schema if field.nullable}
    return pa.schema(
        [field.with_nullable(True) if field.name in nullable else field for field in found]
    )


def _describe(schema: pa.Schema) -> str:
    return "{" + ", ".join(f"{field.name}: {field.type}" for field in schema) + "}"

"""raydpo refuses credentials in configurations, and removes them from all its output."""

import pickle
from pathlib import Path

import pytest

from raydpo.config.file import config_from_values, load_config
from raydpo.core.credentials import credential_in, without_credentials
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.failures import explained, keep_traceback
from raydpo.core.progress import logger, start_logging
from raydpo.core.storage import folder_of

CANARY = "CaNaRy0123456789abcdef"
HOLD_ONE = [
    f"s3://AKIAIOSFODNN7EXAMPLE:{CANARY}@bucket/models",
    f"s3://key:{CANARY}/with/slashes@bucket",
    f"https://user:{CANARY}@host:8443/x",
    f"https://host/model?revision=1&token={CANARY}",
    f"https://host/model?X-Amz-Signature={CANARY}&x=1",
    f"abfs://c@account.dfs.core.windows.net/x?sig={CANARY}",
    f"s3://bucket/x?access_key={CANARY}",
    f"s3://bucket/x?secret_key={CANARY}",
    f"hf_{CANARY}",
    f"ghp_{CANARY}",
    f"sk-{CANARY}",
]
HOLD_NONE = [
    "s3://bucket/x?region=eu-west-1&endpoint_override=http://127.0.0.1:9000",
    "hdfs://user@namenode:8020/data@2024/x",
    "gs://anonymous@bucket/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "hdfs://namenode:8020/data@2024",
    "org/name",
    "/home/someone@work/models",
    "tokens: 7, token_logps, keys=3",
]


@pytest.mark.parametrize("text", HOLD_ONE)
def test_a_credential_is_found_and_taken_out(text: str) -> None:
    assert credential_in(text)
    assert CANARY not in without_credentials(f"cannot open {text} now")
    assert without_credentials(f"cannot open {text} now").endswith(" now")


@pytest.mark.parametrize("text", HOLD_NONE)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert credential_in(text) is None
    assert without_credentials(text) == text


@pytest.mark.parametrize("text", HOLD_ONE)
@pytest.mark.parametrize("key", ["output", "model", "prompts", "training.trackers", "name"])
def test_a_configuration_with_one_is_refused_without_repeating_it(key: str, text: str) -> None:
    values: dict[str, object] = {"name": "a", "model": "b", "prompts": "c"}
    section, _, inner = key.partition(".")
    values[section] = {inner: [text]} if inner else text
    with pytest.raises(ConfigError, match="give it in the environment") as refused:
        config_from_values(values, "job.yaml")
    assert CANARY not in str(refused.value)
    assert CANARY not in repr(refused.value)


def test_an_override_with_one_is_refused_without_repeating_it(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nmodel: b\n")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "job.yaml", [f"output=s3://key:{CANARY}@bucket"])
    assert CANARY not in str(refused.value)


def test_a_run_s_uri_with_one_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        folder_of(f"s3://key:{CANARY}@bucket/run")
    assert CANARY not in str(refused.value)


def test_secret_variables_are_taken_out_of_errors_logs_and_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    error = DataError(f"denied for {CANARY}", "rule", "way out")
    crossed = pickle.loads(pickle.dumps(error))
    start_logging()
    try:
        logger.info("opened with %s", CANARY)
    finally:
        logger.handlers.clear()
        logger.propagate = True
    raised = OSError(f"403 for https://user:{CANARY}x@host")
    text = Path(keep_traceback(raised, folder_of(str(tmp_path)))).read_text()
    said = [str(crossed), str(explained(raised)), text, capsys.readouterr().err]
    assert all("***" in one for one in said)
    assert not any(CANARY in one for one in said)

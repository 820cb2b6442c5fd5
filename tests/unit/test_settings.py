"""Settings follow docs/operations.md. An invalid value is reported in one line that names the variable."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.settings import Settings


@pytest.mark.parametrize(
    ("text", "timeout"),
    [
        ("86400", timedelta(days=1)),
        ("1.5", timedelta(seconds=1.5)),
        ("P1D", timedelta(days=1)),
        ("PT90M", timedelta(minutes=90)),
        ("P1DT12H", timedelta(hours=36)),
    ],
)
def test_approval_timeout_accepts_seconds_or_iso_8601(
    text: str, timeout: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPROVAL_TIMEOUT", text)
    assert Settings.load().approval_timeout == timeout


def test_approval_timeout_defaults_to_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPROVAL_TIMEOUT", raising=False)
    assert Settings.load().approval_timeout == timedelta(days=1)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0", "-1", "-P1D", "PT0S", "P11Y", "999999999", "soon", "1e3", "nan", "inf", "9" * 400, "1.5.1", "."],
)
def test_invalid_approval_timeout_is_refused_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROVAL_TIMEOUT", text)
    with pytest.raises(SystemExit) as error:
        Settings.load()
    assert str(error.value).startswith("wrong setting: APPROVAL_TIMEOUT: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("APPROVAL_THRESHOLD", "much"),
        ("LOG_LEVEL", "loud"),
        ("API_KEYS", "["),
        ("API_KEYS", '{"shop": ""}'),
        ("API_KEYS", '{"shop": "with space"}'),
        ("MONGODB_URI", "localhost"),
        ("MONGODB_URI", "mongodb://user:pass@word@127.0.0.1/"),
        ("MONGODB_DATABASE", "a.b"),
    ],
)
def test_invalid_setting_is_one_line_without_its_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as error:
        Settings.load()
    message = str(error.value)
    assert message.startswith("wrong setting: ")
    assert variable in message.upper()
    assert "\n" not in message
    assert "pass" not in message
    assert "with space" not in message

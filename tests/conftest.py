"""Fixtures for every test module, what hypothesis is told (no test is timed), and reports that another process can read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from support.multi_worker import use_several
from support.netns import each_driver, nat, network  # noqa: F401

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
use_several()


def encodable(value: Any) -> Any:
    """The value with lone surrogates escaped, in whatever depth."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(encodable, value))
    return value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A report goes to the process that prints it as UTF-8, which no lone surrogate has; tests have them."""
    return encodable((yield))


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: Any) -> None:
    """The same for a warning."""
    if isinstance(warning_message.message, Warning):
        warning_message.message.args = encodable(warning_message.message.args)

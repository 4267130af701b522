"""The command line, called in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from natcore.cli.main import app


def call(*arguments: object, exit_code: int = 0) -> str:
    """What a command prints; where it fails, what it says of that."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.stderr if exit_code and result.stderr else result.stdout


def call_json(*arguments: object, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)

"""The command line."""

from __future__ import annotations

import sys


def run_program() -> None:
    """Run the command `natcore`."""
    from natcore.errors import MissingExtraError

    try:
        from natcore.cli.main import main
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    main()

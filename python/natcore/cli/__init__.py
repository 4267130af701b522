"""The command line."""

from __future__ import annotations

import sys


def run_program() -> None:
    """Run the command `natcore`."""
    from natcore.errors import MissingExtraError
    from natcore.internal.exit_codes import exit_code

    try:
        from natcore.cli.main import main
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    main()

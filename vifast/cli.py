"""Entry point of the command line: runs `vifast.commands`, and turns a wrong input into one clear line."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

USAGE_ERROR, INTERRUPTED = 2, 130


def main() -> NoReturn:
    """Exits with 0, with 2 and one line on stderr for a wrong input, with 130 after Ctrl-C.

    With VIFAST_TRACEBACK=1 a wrong input shows where it was noticed.
    """
    status, message = _run()
    if message:
        print(f"vifast: {message}", file=sys.stderr)
    sys.exit(status)


def _run() -> tuple[int, str]:
    """Exit status and message of the command that was asked for."""
    try:
        import typer

        from vifast.commands import app
    except ModuleNotFoundError as error:
        return USAGE_ERROR, _needs(error)
    try:
        status = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("VIFAST_TRACEBACK"):
            raise
        return USAGE_ERROR, str(error)
    except ModuleNotFoundError as error:
        return USAGE_ERROR, _needs(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # wrong usage, by whichever Click this Typer brings
            raise
        return USAGE_ERROR, error.format_message()
    return status, "interrupted" if status == INTERRUPTED else ""


def _needs(error: ModuleNotFoundError) -> str:
    if (error.name or "").startswith("vifast"):
        raise error
    return f'this needs {error.name}, which is not installed: pip install "vifast[train]"'


if __name__ == "__main__":
    main()

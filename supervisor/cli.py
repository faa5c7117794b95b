"""Entry point of the command ``soloist``.

Owns only the answer to a missing extra: the commands are in modules of their own
(``commands``, ``serve_commands``), which need the libraries of ``soloist[cli]``.
"""

from __future__ import annotations

import sys

_LIBRARIES = ("click", "rich")
_USAGE = 2


def main() -> int:
    """Run the command line; return its exit code."""
    try:
        # They may be missing, so not at the top.
        from soloist.supervisor import commands, serve_commands  # noqa: F401, PLC0415 - registered
        from soloist.supervisor.command_line import run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        sys.stderr.write("soloist: the command line needs: pip install 'soloist[cli]'\n")
        return _USAGE
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

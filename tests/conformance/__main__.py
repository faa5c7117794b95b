"""``python -m tests.conformance``: see whether a server or a client keeps to ``SPEC.md``.

``--server ENDPOINT`` plays the vectors against a gateway that runs (``server.py``);
``--client CMD`` drives a client program through its scenarios (``trial.py``).
"""

from __future__ import annotations

import importlib
import sys

PARTS = {"--server": "server", "--client": "trial"}


def main(arguments: list[str]) -> int:
    """Run the part that the command line asks for; the exit code."""
    asked = [PARTS[name] for name in (word.split("=")[0] for word in arguments) if name in PARTS]
    if len(asked) != 1:
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    return importlib.import_module(f"tests.conformance.{asked[0]}").main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

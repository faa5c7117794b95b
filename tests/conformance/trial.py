"""Try a client program: ``python -m tests.conformance --client "node scenario.mjs"``.

Plays every scenario of SPEC.md, chapter 3, before ``soloist serve`` on ipc and on tcp with CURVE;
exit code 1 if it breaks the protocol anywhere.
"""

from __future__ import annotations

import argparse
import shlex

from tests.conformance.client import CHECKS, judge
from tests.conformance.program import Program
from tests.conformance.serving import serving


def main(arguments: list[str]) -> int:
    """Run what the command line says; the exit code."""
    options = _parser().parse_args(arguments)
    command = tuple(shlex.split(options.client))
    is_faulty = False
    with serving() as gateway:
        for endpoint, keys in ((gateway.ipc, "nobody"), (gateway.tcp, "alice")):
            program = Program(command, endpoint, gateway.keys[keys])
            for check, fault in judge(program, gateway, options.only):
                print(f"{endpoint.partition(':')[0]}  {check}: {fault or 'ok'}", flush=True)
                is_faulty = is_faulty or bool(fault)
    return int(is_faulty)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--client", required=True, metavar="COMMAND", help="runs the program")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(CHECKS), help="this check; repeatable"
    )
    return parser

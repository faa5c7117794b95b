"""``python -m tests.api_stub --port 0``: serve until standard input ends; print the port."""

import argparse
import sys

from tests.api_stub import ApiStub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.api_stub")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    args = parser.parse_args()
    with ApiStub(port=args.port) as stub:
        sys.stdout.write(f"{stub.port}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()

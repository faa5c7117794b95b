"""What all commands of ``soloist`` share: the group, common options, and how a command may end.

Owns the exit codes: 0 all good, 1 something failed, 2 the command was wrong or the client is not
there, 128 + n ended by signal n. The commands stand in modules of their own, which add themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from soloist.protocol.content import Map
from soloist.protocol.errors import (
    ClientNotFound,
    ClientNotSerializable,
    InvalidOptions,
    SoloistError,
    TooManyWorkers,
)
from soloist.supervisor import prompts_file
from soloist.supervisor.prompts_file import OutputError
from soloist.supervisor.stop_signals import StopNow, StopSignals

FAILED = 1
USAGE = 2
_READER_GONE = 141  # what a shell reports of a program that SIGPIPE ended
_USAGE_ERRORS = (ClientNotFound, ClientNotSerializable, InvalidOptions, TooManyWorkers)


class CommandFailed(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(
    None, "-V", "--version", package_name="soloist", message="%(prog)s %(version)s"
)
def soloist() -> None:
    """Run many agent conversations at once, each in a process of its own.

    \b
    Examples:
      soloist map prompts.jsonl --client claude --size 8 -o results.jsonl
      soloist query "What is a monad?" --client claude
    """  # noqa: D301 - click reads the \b


def run(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments``; return the exit code."""
    try:
        return int(soloist.main(list(arguments), prog_name="soloist", standalone_mode=False) or 0)
    except CommandFailed as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130


def _parse_settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Map:
    """Turn ``key=value`` pairs into client options."""
    settings = {}
    for pair in values:
        key, is_pair, value = pair.partition("=")
        if not key or not is_pair:
            raise click.BadParameter(f"{pair!r} is not of the form key=value")
        try:
            settings[key] = prompts_file.strict_json(value)
        except (ValueError, RecursionError):
            settings[key] = value
    return settings


def client_options(
    command: Callable[..., int], *, default: str | None = "echo"
) -> Callable[..., int]:
    """Add the options that choose and configure the client."""
    for option in (
        click.option(
            "--timeout-s",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Give up a prompt after this long.",
        ),
        click.option(
            "--set",
            "options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_parse_settings,
            help="Client option; VALUE is JSON if it parses as JSON, else text. Repeatable.",
        ),
        click.option(
            "--client",
            metavar="NAME",
            default=default,
            show_default=default is not None,
            help="Who answers: echo, claude, or what an installed package registers.",
        ),
    ):
        command = option(command)
    return command


def guarded(body: Callable[[StopSignals], int]) -> int:
    """Run a command's body; give every way in which it can end its exit code."""
    with StopSignals() as signals:
        try:
            return body(signals)
        except StopNow:
            return signals.exit_code or FAILED
        except OutputError as error:
            if error.is_closed:
                return _READER_GONE
            raise CommandFailed(f"cannot write the results: {error}", FAILED) from error
        except SoloistError as error:
            raise CommandFailed(str(error) or error.code, code_of(error)) from error


def code_of(error: Exception) -> int:
    """Give the exit code of an error: the command was wrong, or it failed."""
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAILED

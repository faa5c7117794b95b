"""The commands ``soloist map`` and ``soloist query``: options in, exit code out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from soloist.protocol.content import Map, Message, to_map
from soloist.supervisor import prompts_file
from soloist.supervisor.api import Supervisor
from soloist.supervisor.command_line import (
    FAILED,
    CommandFailed,
    client_options,
    code_of,
    guarded,
    soloist,
)
from soloist.supervisor.map_run import MapRun, Tally
from soloist.supervisor.prompts_file import Format, PromptParser
from soloist.supervisor.stop_signals import KillNow, StopSignals
from soloist.supervisor.terminal import AnswerPrinter, MapReport, error_console, log_shown

_MIN_WINDOW = 1024
_CLOSE_S = 10.0
_STREAMING = {"claude": {"include_partial_messages": True}}
"""Options with which a client sends its text in pieces."""
_FORMATS = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".txt": Format.TEXT}

_MAP_HELP = """Answer every prompt of a file, each in a conversation of its own.

PROMPTS is a file or - (the default) for standard input: text with one prompt a line, or JSONL
with the prompt in the field "prompt", as text or as a list of content blocks. Blank lines are
skipped.

Results are JSONL in the order of the prompts, written as they come: the other fields of the
prompt's line, then index, prompt, text, num_turns, duration_s, usage, cost_usd and worker. A
prompt that failed, or a line that could not be read, has "error" in its place: code, message,
retryable and started (false: it certainly never ran). An input field named like one of these
comes back with "input_" before its name.

Ctrl-C finishes what runs, writes it and ends with exit code 130; a second one stops now.

\b
Examples:
  soloist map prompts.txt
  soloist map prompts.jsonl --client claude --size 8 -o results.jsonl
  soloist map tasks.jsonl --field question --set model=sonnet -o out.jsonl
  generate-prompts | soloist map --client claude | jq -r .text

\b
Exit codes: 0 all answered, 1 some prompts failed, 2 wrong usage or the
client is not there, 130 Ctrl-C, 143 SIGTERM.
"""

_QUERY_HELP = """Ask one prompt; the answer appears as it is written.

PROMPT is the prompt, or - (the default when piped) for all of standard input.

\b
Examples:
  soloist query "What is a monad?" --client claude
  soloist query --client claude --set model=sonnet - < prompt.md
  git diff | soloist query --client claude --set system_prompt='Review this.'
"""


@soloist.command("map", help=_MAP_HELP, short_help="Answer every prompt of a file.")
@click.argument(
    "prompts", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-"
)
@client_options
@click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Workers.  [default: one per CPU]"
)
@click.option(
    "--isolation",
    type=click.Choice(["prompt", "worker"]),
    default="prompt",
    show_default=True,
    help="A new conversation for every prompt, or one kept per worker.",
)
@click.option(
    "--max-requests-per-worker",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace a worker after about so many prompts, at most N.  [default: no limit]",
)
@click.option(
    "--max-memory-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace a worker whose processes hold more memory.  [default: no limit]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.AUTO.value,
    show_default=True,
    help="Form of PROMPTS; auto goes by the file's name, else by its first line.",
)
@click.option("--field", metavar="NAME", help="Field of the prompt in JSONL.  [default: prompt]")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="Write results here.  [default: standard output]",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE if it holds something.")
@click.option("--no-prompt", is_flag=True, help="Leave the prompts out of the results.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show the log, with what workers print, and summarize even without a terminal.",
)
def map_command(
    *,
    prompts: str,
    client: str,
    options: Map,
    size: int | None,
    isolation: str,
    max_requests_per_worker: int | None,
    max_memory_bytes: int | None,
    timeout_s: float | None,
    form: str,
    field: str | None,
    output: str,
    force: bool,
    no_prompt: bool,
    verbose: bool,
) -> int:
    """Map the prompts of a file; see ``_MAP_HELP``."""
    parser = PromptParser(_form_of(prompts, form, field), field=field or "prompt")
    source = _open_source(prompts)
    target = _open_target(output, source, force=force)
    size = size or os.cpu_count() or 1
    report = _report_of(source, target, verbose=verbose)

    def body(signals: StopSignals) -> int:
        settings = {
            "client": client,
            "options": options,
            "isolation": isolation,
            "max_requests_per_worker": max_requests_per_worker,
            "max_memory_bytes": max_memory_bytes,
        }
        is_shown = report.log_shown(is_wanted=verbose)
        with is_shown, _started(size=size, **settings) as supervisor, report:
            if os.isatty(source):
                report.say("Reading prompts from the terminal, one a line; Ctrl-D ends.")
            if output != "-":
                prompts_file.empty_results(target)
            window = max(4 * size, _MIN_WINDOW)
            job = MapRun(
                supervisor,
                parser,
                source=source,
                target=target,
                window=window,
                # A prompt's time begins when it is handed over: it must not pass in a queue.
                in_flight=size if timeout_s else window,
                timeout_s=timeout_s,
                with_prompt=not no_prompt,
                on_stopping=lambda: report.say("Finishing what runs; Ctrl-C again stops now."),
            )
            report.follow(job.tally)
            signals.be_gentle(job.stop)
            tally = job.run()
            signals.be_abrupt()
            if output != "-":
                prompts_file.close_results(target)
        report.summarize(tally, output)
        return _exit_code(tally, signals)

    return guarded(body)


@soloist.command("query", help=_QUERY_HELP, short_help="Ask one prompt.")
@click.argument("prompt", required=False)
@client_options
@click.option("--json", "as_json", is_flag=True, help="Print each message as a line of JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show the log, with what the worker prints.")
def query_command(
    *,
    prompt: str | None,
    client: str,
    options: Map,
    timeout_s: float | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Ask one prompt; see ``_QUERY_HELP``."""
    text = _prompt_text(prompt)
    target = _descriptor(sys.stdout, "standard output")
    printer = AnswerPrinter(
        lambda piece: prompts_file.write_all(target, piece.encode(errors="replace"))
    )

    def print_json(message: Message) -> None:
        prompts_file.write_all(target, prompts_file.json_line(to_map(message)))

    def body(_: StopSignals) -> int:
        show = print_json if as_json else printer.show
        streaming = {} if as_json else _STREAMING.get(client, {})
        settings = {"client": client, "options": streaming | options}
        is_shown = log_shown(error_console(), is_wanted=verbose)
        with is_shown, _started(size=1, **settings) as supervisor:
            try:
                for message in supervisor.query(text, timeout_s=timeout_s):
                    show(message)
            finally:
                printer.end()
        return 0

    return guarded(body)


@contextlib.contextmanager
def _started(**settings: Any) -> Iterator[Supervisor]:
    """Give a Supervisor; close it in order if all went well, at once if not."""
    supervisor = Supervisor(**settings)
    try:
        yield supervisor
        supervisor.close(_CLOSE_S)
    except KillNow:
        supervisor.kill()
        raise
    except BaseException:
        supervisor.close(0)
        raise


def _exit_code(tally: Tally, signals: StopSignals) -> int:
    failure = tally.failure
    if failure is not None:
        code = signals.exit_code or code_of(failure)
        raise CommandFailed(str(failure), code) from failure
    return signals.exit_code or (FAILED if tally.failed else 0)


def _form_of(prompts: str, form: str, field: str | None) -> Format:
    chosen = Format(form)
    if chosen is Format.TEXT and field:
        raise click.UsageError("--field is for JSONL; it does not go with --format text.")
    if chosen is not Format.AUTO:
        return chosen
    return Format.JSONL if field else _FORMATS.get(Path(prompts).suffix.lower(), Format.AUTO)


def _open_source(prompts: str) -> int:
    if prompts == "-":
        return _descriptor(sys.stdin, "standard input")
    try:
        return os.open(prompts, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise click.UsageError(f"cannot read {prompts}: {error.strerror}") from error


def _open_target(output: str, source: int, *, force: bool) -> int:
    if output == "-":
        return _descriptor(sys.stdout, "standard output")
    try:
        target = prompts_file.open_results(Path(output), force=force)
    except FileExistsError as error:
        raise click.UsageError(f"{error}; --force overwrites them.") from error
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from error
    if os.path.sameopenfile(source, target):
        raise click.UsageError("the results would overwrite the prompts.")
    return target


def _descriptor(stream: IO[str] | None, name: str) -> int:
    if stream is None:  # Python's way to say that the descriptor was closed when it began
        raise click.UsageError(f"{name} is closed.")
    return stream.fileno()


def _report_of(source: int, target: int, *, verbose: bool) -> MapReport:
    is_seen = sys.stderr.isatty()
    # A bar and lines on the same terminal would garble each other.
    has_bar = is_seen and not os.isatty(source) and not os.isatty(target)
    total = prompts_file.count_lines(source) if has_bar else None
    return MapReport(has_bar=has_bar, has_words=is_seen or verbose, total=total)


def _prompt_text(prompt: str | None) -> str:
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Missing argument 'PROMPT'.")
    if prompt is None or prompt == "-":
        source = _descriptor(sys.stdin, "standard input")
        content = b"".join(iter(lambda: prompts_file.read_some(source), b""))
        try:
            prompt = content.decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"the prompt is not UTF-8: {error}") from error
    if not prompt.strip():
        raise click.UsageError("the prompt is empty.")
    return prompt

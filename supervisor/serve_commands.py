"""The commands ``soloist serve`` and ``soloist keys``: options in, exit code out."""

from __future__ import annotations

import contextlib
import functools
import gc
import queue
from pathlib import Path
from typing import Any

import click

from soloist.protocol.content import Map
from soloist.supervisor import keys, prompts_file
from soloist.supervisor.command_line import (
    FAILED,
    USAGE,
    CommandFailed,
    client_options,
    guarded,
    soloist,
)
from soloist.supervisor.connect import RemoteSupervisor
from soloist.supervisor.stop_signals import KillNow, StopSignals
from soloist.supervisor.terminal import error_console, log_shown, show_status

_LOOK_S = 1.0
_COLLECT_AFTER = 10_000
"""Objects that have become more before the collector looks at them."""

_SERVE_HELP = """Serve agents to programs in any language.

Peers speak the protocol of protocol/SPEC.md over ZeroMQ; `soloist.connect` is its client in Python.
What peers may choose from stands in --client, or in a configuration file (see docs/gateway.md);
options on the command line come before those of the file.

An ipc:// socket must lie in a folder that is yours alone. A tcp:// address beyond this machine
needs keys, see `soloist keys --help`.

Ctrl-C or SIGTERM takes no more requests, finishes what was accepted and ends with exit code 0; a
second one stops now.

\b
Examples:
  soloist serve --bind tcp://127.0.0.1:5555
  soloist serve --bind ipc:///run/user/1000/soloist/gateway --client claude --size 8
  soloist serve --config soloist.toml
"""


@soloist.command("serve", help=_SERVE_HELP, short_help="Serve agents to other programs.")
@click.option("--bind", "binds", multiple=True, metavar="ENDPOINT", help="Where; may be repeated.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read the configuration from here.",
)
@functools.partial(client_options, default=None)
@click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Workers.  [default: one per CPU]"
)
@click.option("-v", "--verbose", is_flag=True, help="Show the log, with what workers print.")
def serve_command(
    *,
    binds: tuple[str, ...],
    config_file: Path | None,
    client: str | None,
    options: Map,
    timeout_s: float | None,
    size: int | None,
    verbose: bool,
) -> int:
    """Serve; see ``_SERVE_HELP``."""
    chosen = {"size": size, "timeout_s": timeout_s, "options": options}
    set_here = {name: value for name, value in chosen.items() if value}

    def body(signals: StopSignals) -> int:
        configuration = _configuration()
        values = configuration.read_file(config_file) if config_file else {}
        if binds:
            values["bind"] = list(binds)
        if client or not values.get("clients"):
            name = client or "echo"
            values["clients"] = {**values.get("clients", {}), name: {"client": name, **set_here}}
        elif set_here:
            raise click.UsageError("--size, --timeout-s and --set need --client beside --config.")
        config = configuration.checked(values, str(config_file or "soloist serve"))
        folder = config_file.parent if config_file else Path()
        with log_shown(error_console(), is_wanted=verbose):
            return _serve(signals, config, folder)

    return guarded(body)


def _configuration() -> Any:
    """Give the module that checks the configuration; its library is an extra."""
    try:
        from soloist.supervisor import serve_config  # noqa: PLC0415 - it may be missing
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "pydantic":
            raise
        raise CommandFailed("this needs: pip install 'soloist[serve]'", USAGE) from missing
    return serve_config


def _serve(signals: StopSignals, config: Any, folder: Path) -> int:
    """Serve until a signal comes, or everything has failed."""
    from soloist.supervisor.serve import Server  # noqa: PLC0415 - after its library was found

    server = Server(config, folder)
    gc.collect()
    # While the collector looks nobody is heard: not at modules, and seldom at the rest, for what
    # peers ask is freed without it.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    stop: queue.SimpleQueue[None] = queue.SimpleQueue()
    try:
        signals.be_gentle(lambda: stop.put(None))
        for endpoint in server.endpoints:
            click.echo(f"Serving {', '.join(config.clients)} at {endpoint}")
        while server.is_whole:
            with contextlib.suppress(queue.Empty):
                stop.get(timeout=_LOOK_S)
                server.close()
                return 0
            server.give_back_memory()
    except KillNow:
        server.kill()
        raise
    except BaseException:
        server.close(is_drained=False)
        raise
    server.close(is_drained=False)
    raise CommandFailed("a pool has failed; see its log with --verbose", FAILED)


_STATUS_HELP = """Show how a gateway is doing.

ENDPOINT is what `soloist serve` was bound to. For each of its clients: workers, requests that
wait and run, and how the others ended; on ipc:// also its conversations.

\b
Examples:
  soloist status tcp://127.0.0.1:5555
  soloist status tcp://10.0.0.5:5555 --server-key server.key --key-file my.key_secret
"""


@soloist.command("status", help=_STATUS_HELP, short_help="Show how a gateway is doing.")
@click.argument("endpoint")
@click.option(
    "--server-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The gateway's public key.",
)
@click.option(
    "--key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="One's own key pair.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one line of JSON.")
def status_command(
    *, endpoint: str, server_key: Path | None, key_file: Path | None, as_json: bool
) -> int:
    """Show the status; see ``_STATUS_HELP``."""

    def body(_: StopSignals) -> int:
        key = None if server_key is None else keys.load(server_key)[0]
        with RemoteSupervisor(endpoint, server_key=key, key_file=key_file) as gateway:
            status = gateway.status()
        if as_json:
            click.echo(prompts_file.json_line(status).rstrip())
        else:
            show_status(status)
        return 0

    return guarded(body)


_KEYS_HELP = """Make and list key pairs for tcp:// endpoints.

Each program has a pair of its own. Its public key (NAME.key) is no secret: a server's goes to its
clients, a client's into the folder of those that the server lets in. NAME.key_secret stays where
it was made.

\b
Examples:
  soloist keys new server --folder /etc/soloist
  soloist keys new laptop
  soloist keys list --folder /etc/soloist/clients
"""
_FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="keys",
    show_default=True,
    help="Where the files are.",
)


@soloist.group("keys", help=_KEYS_HELP, short_help="Make and list key pairs.")
def keys_command() -> None:
    """Hold the two commands; see ``_KEYS_HELP``."""


@keys_command.command("new", short_help="Make a key pair.")
@click.argument("name")
@_FOLDER
def keys_new_command(*, name: str, folder: Path) -> int:
    """Make the key pair NAME."""

    def body(_: StopSignals) -> int:
        for path in keys.new_pair(folder, name):
            click.echo(path)
        return 0

    return guarded(body)


@keys_command.command("list", short_help="List key pairs.")
@_FOLDER
def keys_list_command(*, folder: Path) -> int:
    """List the keys of a folder: name, public key, and whether the secret one is there."""

    def body(_: StopSignals) -> int:
        for name, public, has_secret in keys.pairs(folder):
            click.echo(f"{name}  {public}  {'with secret' if has_secret else 'public alone'}")
        return 0

    return guarded(body)

"""Which conversation a claude CLI holds, and how another CLI goes on with it. Pure, no I/O.

The CLI keeps a conversation in a file under its session id from the first turn on. Where the
options leave it open we choose the id, so that a conversation can be continued from its very
beginning; otherwise a turn's result tells it.

Invariants: the id moves on only with a turn's result, before which the CLI has written the turn,
so what a snapshot names holds all that was answered by then; a conversation in which something
was answered is resumed or given up, and only one in which nothing was may be begun again.

Source: claude_agent_sdk.types ``ClaudeAgentOptions`` (0.2.187); the CLI (2.1.330) refuses
``--session-id`` with the id of a conversation that exists, and ``--resume`` with one that does not.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

from soloist.protocol.content import Map, is_result
from soloist.protocol.errors import ClientConnectError

_CHOICES: Final = frozenset(
    {"continue_conversation", "fork_session", "resume_drops_turn", "resume_session_at",
     "session_id"}
)  # fmt: skip
"""Options that choose a conversation, besides ``resume``."""
_FLAGS: Final = frozenset(
    {"continue", "c", "fork-session", "from-pr", "resume", "r", "resume-drops-turn",
     "resume-session-at", "session-id"}
)  # fmt: skip
"""The same as flags, in ``extra_args``."""
_NOTHING_KEPT: Final = "no-session-persistence"
_SETTINGS: Final = frozenset({"model", "permission_mode"})
_NOT_FOUND: Final = ("No conversation found", "does not match any session")
_TAKEN: Final = "is already in use"


class UnknownConversation(ClientConnectError):
    """The CLI has no conversation of that id; asking again will not help."""

    retryable = False


def is_not_found(words: str) -> bool:
    """Whether these last words of a CLI say that it does not know what it was to resume."""
    return any(phrase in words for phrase in _NOT_FOUND)


def is_taken(words: str) -> bool:
    """Whether these last words of a CLI say that it has a conversation of the id to begin with."""
    return _TAKEN in words


class Resumption:
    """The identity of one conversation.

    Args:
        options: the user's ``ClaudeAgentOptions``, by name.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._session_id = ""  # while nothing has told it
        self._is_new = True  # nothing was answered in it yet
        self._settings: dict[str, str | None] = {}
        self._is_restored = False

    def __repr__(self) -> str:
        return f"<Resumption session_id={self._session_id!r} is_new={self._is_new}>"

    def restore(self, value: object) -> None:
        """Let the next connection go on with the conversation of a snapshot.

        Raises:
            ClientConnectError: ``value`` is none of our snapshots; not retryable.
        """
        if not _is_snapshot(value):
            error = ClientConnectError(f"this is no snapshot of a claude conversation: {value!r}")
            error.retryable = False
            raise error
        self._session_id = value["session_id"]
        self._is_new = value.get("is_new", False)
        self._settings = dict(value.get("settings", {}))
        self._is_restored = True

    def ways(self) -> Iterator[dict[str, Any]]:
        """The options to connect with; the next, if the CLI knows nothing to resume.

        Without a restored snapshot they begin a conversation, as the user's options say.
        """
        if self._is_restored:
            can_begin = self._is_new and not self._is_chosen_by_cli()
            if not (can_begin and self._goes_on()):
                yield self._resuming()
            if not can_begin:
                return
        else:
            self._is_new, self._settings = True, {}
        # Never with the id of before: a turn that was cut off may have left an unusable file.
        self._session_id = self._first_id()
        yield self._beginning()

    def connected(self) -> None:
        """Note that a CLI has started: the connection after this one begins anew."""
        self._is_restored = False

    def saw(self, message: Any) -> None:
        """Follow the id that a turn's result names: the CLI may change it (``/clear``)."""
        session_id = getattr(message, "session_id", None)
        if is_result(message) and isinstance(session_id, str) and session_id:
            self._session_id, self._is_new = session_id, False

    def chose(self, name: str, value: Any) -> None:
        """Note a setting that the CLI took on since it started; a resumed one must have it, too."""
        self._settings[name] = value

    def snapshot(self) -> Map | None:
        """What ``restore`` takes; ``None`` while the id is not known, or if nothing is kept."""
        if not self._session_id or _NOTHING_KEPT in self._extra_args:
            return None
        snapshot: Map = {"session_id": self._session_id}
        if self._is_new:
            snapshot["is_new"] = True
        if self._settings:
            snapshot["settings"] = dict(self._settings)
        return snapshot

    @property
    def _extra_args(self) -> Mapping[str, Any]:
        return self._options.get("extra_args") or {}

    def _goes_on(self) -> bool:
        """Whether the user's own options resume a conversation and keep its id."""
        return bool(self._options.get("resume")) and not self._options.get("fork_session")

    def _is_chosen_by_cli(self) -> bool:
        """Whether the CLI finds out by itself what to go on with: it may be another next time."""
        is_latest = self._options.get("continue_conversation")
        return bool(is_latest) or not _FLAGS.isdisjoint(self._extra_args)

    def _first_id(self) -> str:
        options = self._options
        if options.get("session_id"):
            return str(options["session_id"])
        if self._goes_on():
            return str(options["resume"])
        return "" if self._is_chosen_by_cli() else str(uuid.uuid4())

    def _beginning(self) -> dict[str, Any]:
        is_ours = self._session_id and not self._goes_on()
        own = {"session_id": self._session_id} if is_ours else {}
        return {**self._options, **own, **self._settings}

    def _resuming(self) -> dict[str, Any]:
        kept = {name: value for name, value in self._options.items() if name not in _CHOICES}
        if self._extra_args:
            flags = self._extra_args.items()
            kept["extra_args"] = {name: value for name, value in flags if name not in _FLAGS}
        return {**kept, "resume": self._session_id, **self._settings}


def _is_snapshot(value: Any) -> TypeGuard[Map]:
    if not isinstance(value, dict) or not isinstance(value.get("settings", {}), dict):
        return False
    settings = value.get("settings", {})
    return (
        isinstance(value.get("session_id"), str)
        and value["session_id"] != ""
        and isinstance(value.get("is_new", False), bool)
        and settings.keys() <= _SETTINGS
        and all(setting is None or isinstance(setting, str) for setting in settings.values())
    )

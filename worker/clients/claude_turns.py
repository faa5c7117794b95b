"""Which prompt does a message of the claude CLI belong to? Pure, no I/O.

The CLI runs one turn after another on one stream of messages. Not every turn answers a prompt of
ours: it injects turns of its own (a background task ended), and an abandoned prompt's turn still
runs to its end. A prompt is sent with a ``uuid``; newer CLIs echo it on the first message that
answers it and on the result, older ones never do.

Invariants: a message is given to at most one prompt, in the order of arrival; a turn that names
another prompt, or that an injected message started, is given to nobody; a result that names no
prompt at all ends the oldest prompt that still waits for one.

Source: claude_agent_sdk.types ``MessageOrigin``, ``ResultMessage.user_message_uuids`` (0.2.187).
"""

from __future__ import annotations

from typing import Any, Final

from soloist.protocol.content import is_result

MAX_HELD = 1_000
"""Messages of a turn kept back at most while nothing has said whose turn it is."""

_CONTENT = frozenset({"AssistantMessage", "StreamEvent", "UserMessage"})
_NOBODY: Final = ""


class Attribution:
    """Gives every message the uuid of the prompt that it answers.

    Attributes:
        waiting: uuids of prompts whose result has not arrived yet, oldest first.
    """

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self._is_echoed = False
        self._owner: str | None = None  # of the turn under way; None while nothing has told
        self._held: list[Any] = []

    def __repr__(self) -> str:
        return f"<Attribution waiting={self.waiting} owner={self._owner!r} held={len(self._held)}>"

    def sent(self, uuid: str) -> None:
        """Note that a prompt is on its way to the CLI."""
        self.waiting.append(uuid)

    def withdrawn(self, uuid: str) -> None:
        """Note that a prompt was not sent after all."""
        self.waiting.remove(uuid)

    def take(self, message: Any) -> tuple[str, list[Any]]:
        """Take the next message of the stream.

        Returns:
            A prompt's uuid (``""`` for nobody) and the messages that are now known to be its own:
            none, the one taken, or that one after others that had been kept back.
        """
        named = self._prompt_named_by(message)
        if getattr(message, "subtype", None) == "init":  # a turn begins
            self._owner, self._held = None, []
        if is_result(message):
            return self._end(named, message)
        if named is not None:
            # What was kept back came before the turn took our prompt in: it is not its answer.
            self._owner, self._held = named, []
        if self._owner is None:
            return self._guess(message)
        return (self._owner, [message]) if self._owner else (_NOBODY, [])

    def _guess(self, message: Any) -> tuple[str, list[Any]]:
        """A message before its turn is known: content may be another's if the CLI echoes."""
        is_content = type(message).__name__ in _CONTENT
        if not self.waiting:
            self._owner = _NOBODY if is_content else None
            return _NOBODY, []
        if not is_content or not self._is_echoed:
            return self.waiting[0], [message]
        self._held.append(message)
        del self._held[:-MAX_HELD]
        return _NOBODY, []

    def _end(self, named: str | None, result: Any) -> tuple[str, list[Any]]:
        owner = self._owner if named is None else named
        if owner is None:
            owner = self._oldest_unless_injected(result)
        held, self._held, self._owner = self._held, [], None
        if owner not in self.waiting:
            return _NOBODY, []
        # Prompts before it were merged into its turn, or dropped: nothing will answer them.
        del self.waiting[: self.waiting.index(owner) + 1]
        return owner, [*held, result]

    def _oldest_unless_injected(self, result: Any) -> str:
        origin = getattr(result, "origin", None) or {"kind": "human"}
        is_injected = origin.get("kind") != "human"
        return self.waiting[0] if self.waiting and not is_injected else _NOBODY

    def _prompt_named_by(self, message: Any) -> str | None:
        """The newest waiting prompt that a message names, nobody, or ``None`` if it names none."""
        uuids = _uuids_of(message)
        if type(message).__name__ == "UserMessage":  # a replay of the prompt, else the agent's own
            return message.uuid if message.uuid in self.waiting else None
        if not uuids:
            return None
        self._is_echoed = True
        return next((uuid for uuid in reversed(self.waiting) if uuid in uuids), _NOBODY)


def _uuids_of(message: Any) -> list[str]:
    data = getattr(message, "data", None)
    fields = data if isinstance(data, dict) else vars(message)
    one = fields.get("user_message_uuid")
    return [*(fields.get("user_message_uuids") or ()), *([one] if one else ())]

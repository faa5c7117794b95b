"""What hostile peers say: messages of the vectors, right, nearly right, broken, or mere noise.

Seeded: the same seed says the same, but for the conversations that it is about.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack

from tests import vectors

WELL_FORMED = 0.6
"""This part of all messages is right, and so is something to be done for the gateway."""
BROKEN = 0.25
"""This part is a right one, damaged; the rest is changed in a value, in its frames, or noise."""
KINDS = {
    "QUERY": 40, "CANCEL": 12, "CREDIT": 8, "PING": 10, "STATUS": 4, "HELLO": 6,
    "CONTROL_REPLY": 4, "INTERRUPT": 4, "COMMAND": 4, "CLOSE": 1, "OPEN": 1,
}  # fmt: skip
"""How often each type is said, relative to the others. An OPEN starts a process, so it is rare."""
PROMPTS = ["hello", "", "fail", "ask", [{"type": "text", "text": "x"}]]
NAMES = ["a", "b", "c"]
SESSION = b"heard-of session"
"""Stands for the handle or the ticket of a conversation that some peer has heard of."""
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**32, 2**64 - 1, 1.5, float("nan"), float("inf"), "", "x",
    "cancel", b"", b"x" * 15, b"x" * 16, [], [1], [{}], {}, {"type": "text"}, "x" * 5_000,
    [[[[]]]], msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2),
]  # fmt: skip


class Messages:
    """Gives messages, as frames.

    Args:
        chance: decides everything.

    Attributes:
        well_formed: how many of those given were right.
        given: how many there were.
    """

    def __init__(self, chance: random.Random) -> None:
        self.well_formed = self.given = 0
        self._chance = chance
        self._ids = [chance.randbytes(16) for _ in range(200)]
        self._payloads = _payloads()

    def next(self) -> list[bytes]:
        """Give one."""
        self.given += 1
        lot = self._chance.random()
        if lot < WELL_FORMED:
            self.well_formed += 1
            return [msgpack.packb(self.valid())]
        if lot < WELL_FORMED + BROKEN:
            return [self._damaged(self._payload())]
        how = self._chance.choice([self._changed, self._enveloped, self._noise])
        return how()

    def hello(self) -> bytes:
        """Give a right HELLO, with one of a few secrets or none."""
        return msgpack.packb(self._message("HELLO"))

    def valid(self) -> dict[str, Any]:
        """Give a message that a gateway understands, though it may be about nothing."""
        [kind] = self._chance.choices(list(KINDS), list(KINDS.values()))
        return self._message(kind)

    def _message(self, kind: str) -> dict[str, Any]:
        return {"v": 1, "type": kind, **self._fields(kind)}

    def _fields(self, kind: str) -> dict[str, Any]:
        chance = self._chance
        match kind:
            case "QUERY":
                return self._query()
            case "CANCEL":
                return {"id": self._id()}
            case "CREDIT":
                return {"id": self._id(), "bytes": chance.choice([0, 1, 5_000, 2**64 - 1])}
            case "HELLO":
                secret = chance.choice([None, *(bytes([n]) * 16 for n in range(4))])
                return {"versions": [1], "secret": secret}
            case "OPEN":
                ticket = self._session() if chance.random() < 0.3 else None
                return {"id": self._id(), "name": chance.choice([None, *NAMES]), "ticket": ticket}
            case "CLOSE":
                drain = chance.random() < 0.5
                return {"id": self._id(), "session": self._session(), "drain": drain}
            case "INTERRUPT":
                return {"session": self._session()}
            case "COMMAND":
                about = {"id": self._id(), "session": self._session()}
                return {**about, "name": "set_model", "arguments": ["x"]}
            case "CONTROL_REPLY":
                return {"id": self._id(), "number": chance.randrange(3), "data": {"text": "x"}}
            case "STATUS":
                return {"id": self._id(), "session": chance.choice([None, self._session()])}
        return {}

    def _query(self) -> dict[str, Any]:
        chance = self._chance
        [prompt] = chance.choices(PROMPTS, (50, 10, 10, 2, 20))
        fields: dict[str, Any] = {"id": self._id(), "prompt": prompt}
        optional = {
            "stream": chance.random() < 0.5,
            "timeout_ms": chance.choice([0, 1, 50, 10_000]),
            "session": self._session(),
            "client": chance.choice(["echo", "none"]),
            "on_disconnect": chance.choice(["cancel", "finish"]),
            "resent": self._id(),
            "control": chance.random() < 0.5,
        }
        for key, value in optional.items():
            if chance.random() < 0.25:
                fields[key] = value
        if chance.random() < 0.01:
            fields["prompt"] = "x" * chance.randrange(200_000)
        return fields

    def _id(self) -> bytes:
        """Give an id: often one that came before."""
        if self._chance.random() < 0.4:
            return self._chance.choice(self._ids)
        fresh = self._chance.randbytes(16)
        self._ids[self._chance.randrange(len(self._ids))] = fresh
        return fresh

    def _session(self) -> bytes:
        return SESSION if self._chance.random() < 0.8 else self._chance.randbytes(16)

    def _payload(self) -> bytes:
        if self._chance.random() < 0.5:
            return self._chance.choice(self._payloads)
        return bytes(msgpack.packb(self.valid()))

    def _damaged(self, payload: bytes) -> bytes:
        """Cut, prolong, overwrite, double or join pieces."""
        chance, data = self._chance, bytearray(payload)
        for _ in range(chance.choice([1, 1, 2, 5])):
            i = chance.randrange(len(data) + 1)
            j = min(len(data), i + chance.randrange(1, 20))
            match chance.randrange(6):
                case 0:
                    del data[i:]
                case 1:
                    data[i:j] = chance.randbytes(j - i)
                case 2:
                    data[i:i] = chance.randbytes(chance.randrange(1, 9))
                case 3:
                    del data[i:j]
                case 4:
                    data[i:i] = data[i:j] * chance.choice([1, 2, 50])
                case 5:
                    other = chance.choice(self._payloads)
                    data[i:] = other[chance.randrange(len(other) + 1) :]
        return bytes(data)

    def _changed(self) -> list[bytes]:
        """A right one with one key gone, or with another value."""
        message = self.valid()
        key = self._chance.choice(list(message))
        if self._chance.random() < 0.3:
            del message[key]
        else:
            message[key] = self._chance.choice(_VALUES)
        return [msgpack.packb(message)]

    def _enveloped(self) -> list[bytes]:
        """One after other frames, empty ones among them, and perhaps before others."""
        chance = self._chance
        before = [
            chance.choice([b"", b"", chance.randbytes(chance.choice([1, 5, 1_100]))])
            for _ in range(chance.choice([1, 1, 1, 2, 7, 8, 30]))
        ]
        after = [b""] if chance.random() < 0.2 else []
        return [*before, self._payload(), *after]

    def _noise(self) -> list[bytes]:
        chance = self._chance
        if chance.random() < 0.05:
            return [chance.choice([b"\x91", b"\x81\xa1a", b"\xc1"]) * chance.randrange(50_000)]
        return [chance.randbytes(chance.randrange(200))]


def _payloads() -> list[bytes]:
    """Every payload of the vectors and dialogues."""
    found = [bytes.fromhex(case["hex"]) for case in vectors.load("messages")]
    found += [bytes.fromhex(frame) for c in vectors.load("cases") for frame in c["frames"]]
    for dialogue in vectors.load("dialogues"):
        values = _Anything()
        sent = [step["send"] for step in dialogue["steps"] if "send" in step]
        found += [msgpack.packb(values.of(message)) for message in sent]
    return [payload for payload in found if len(payload) < 10_000]


class _Anything(vectors.Values):
    """Values of a dialogue that is not played: what would be heard is empty."""

    def _special(self, key: str, about: Any) -> Any:
        if key == "$kept":
            return b"x" * 16
        if key == "$fresh":
            return about.encode().ljust(16)[:16]
        return super()._special(key, about) if key != "$fresh_text" else about

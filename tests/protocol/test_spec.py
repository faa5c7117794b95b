"""SPEC.md says what the code does: its tables, its numbers and its bytes."""

import ast
import dataclasses
import re

import msgpack
import pytest

from soloist.protocol import codec, content, errors, public, public_codec
from soloist.protocol.transitions import REQUEST
from soloist.supervisor import broker_channel, io_thread
from tests.support import ROOT

SPEC = (ROOT / "protocol" / "SPEC.md").read_text()
CODES = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.SoloistError)
}
EXAMPLE = re.compile(r"```text\n(?P<says>.*?)\n```\n\n```hex\n(?P<hex>.*?)\n```", re.DOTALL)


def section(title):
    """The text below a heading that begins so, up to the next heading of any level."""
    found = re.search(
        rf"^#+ {re.escape(title)}(?![A-Z_])[^\n]*\n(.*?)(?=^#+ |\Z)", SPEC, re.M | re.S
    )
    assert found, title
    return found[1]


def table(title):
    """The rows of a section's first table, below its head, as lists of cells."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def unquoted(cell):
    return re.findall(r"`([^`]*)`", cell)


def read_aloud(says):
    """The value that an example's first block describes."""
    says = re.sub(r"h'([0-9a-f]*)'", lambda m: repr(bytes.fromhex(m[1])), says)
    for name, value in (("true", "True"), ("false", "False"), ("nil", "None")):
        says = re.sub(rf"(?<=: ){name}\b", value, says)
    return ast.literal_eval(says)


def test_it_names_the_versions():
    assert f"| specification | {public.SPEC_VERSION}, " in SPEC
    assert f"| wire version | {public.VERSION}, " in SPEC


def test_it_describes_every_message_and_no_other():
    assert re.findall(r"^### ([A-Z_]+)$", SPEC, re.M) == list(public.FIELDS)


@pytest.mark.parametrize("name", public.FIELDS)
def test_the_keys_of_a_message_are_those_of_the_code(name):
    said = [(*unquoted(key), kind, required) for key, kind, required, _ in table(name)]
    assert said == [
        (field.key, field.kind.value, "yes" if field.is_required else "no")
        for field in public.FIELDS[name]
    ]


@pytest.mark.parametrize("name", public.FIELDS)
class TestExamples:
    def example(self, name):
        found = EXAMPLE.search(section(name))
        return read_aloud(found["says"]), bytes.fromhex(found["hex"])

    def test_are_what_they_say(self, name):
        value, data = self.example(name)
        assert msgpack.unpackb(data) == value
        assert value["type"] == name
        assert msgpack.packb(value) == data

    def test_are_read_or_written_by_the_code(self, name):
        value, data = self.example(name)
        del value["v"], value["type"]
        if name in public.TO_CLIENT:
            said = public_codec.decode_reply(data)
        else:
            said = public_codec.decode(data, public_codec.GATEWAY)
        assert type(said) is (public.OF_GATEWAY | public.TO_CLIENT)[name]
        assert public_codec.encode(said) == data

    def test_of_chapter_1_are_read_by_a_broker_too(self, name):
        _, data = self.example(name)
        if name in public.OF_BROKER:
            assert type(public_codec.decode(data, public_codec.BROKER)) is public.OF_BROKER[name]


def test_the_states_of_a_request_are_those_of_the_table():
    names = {"queued": "QUEUED", "leased": "RUNNING", "draining": "DRAINING", "settled": "OVER"}
    # Others are the pool's alone: no request of a session is ever retried.
    steps = {(now, then) for now, _, then, _ in table("1.6 One request") if now != then}
    assert steps == {
        (names[state.value], names[after.value])
        for state, events in REQUEST.items()
        for after in events.values()
        if {state.value, after.value} <= names.keys()
    }


class TestErrorCodes:
    def test_are_all_there(self):
        sent = [unquoted(row[0])[0] for row in table("1.10 Error codes")]
        [never] = re.findall(r"^Never sent: (.*)$", SPEC, re.M)
        assert len(sent) == len(set(sent))
        assert sorted([*sent, *unquoted(never)]) == sorted(CODES)

    @pytest.mark.parametrize("row", table("1.10 Error codes"), ids=lambda row: unquoted(row[0])[0])
    def test_mean_what_the_code_says(self, row):
        code, retryable, started, _, details = row
        error = CODES[unquoted(code)[0]]("x")
        assert retryable == ("yes" if error.retryable else "no")
        assert sorted(unquoted(details)) == sorted(type(error)._details)
        assert re.match(r"(false|nil)\b", started)
        if error.started is False:
            assert started == "false"


def test_the_limits_are_those_of_the_code():
    numbers = {
        what: [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", value)]
        for what, value, _ in table("1.8 Limits")
    }
    assert numbers == {
        "an id": [public.ID_BYTES],
        "a prompt": [codec.MAX_PAYLOAD_BYTES],
        "a frame from a client": [io_thread.FRAME_ROOM_BYTES],
        "nesting of a message from a client": [codec.MAX_DEPTH],
        "nesting of a message of the conversation": [codec.MAX_DEPTH],
        "an envelope": [public.MAX_ENVELOPE_FRAMES, public.MAX_ENVELOPE_BYTES],
        "requests in the queue": [],
        "messages that wait for a peer to read": [broker_channel.MAX_WAITING],
        "`message` of an ERROR": [errors.MAX_TEXT_CHARS],
    }
    assert f"a *credit* of {public.CREDIT_BYTES:,} bytes" in section("1.7 Flow control")
    frames, size = public.MAX_ENVELOPE_FRAMES, public.MAX_ENVELOPE_BYTES
    assert f"more than {frames} frames or {size:,} bytes" in section("1.2 Frames")


def test_the_conversations_messages_have_the_fields_of_the_code():
    said = [
        (name, unquoted(required), unquoted(optional))
        for name, required, optional in table("1.9 Messages of the conversation")
    ]
    classes = [
        *(content.UserMessage, content.AssistantMessage, content.SystemMessage),
        *(content.StreamEvent, content.ResultMessage),
        *(content.TextBlock, content.ThinkingBlock, content.ToolUseBlock),
        *(content.ToolResultBlock, content.ServerToolUseBlock, content.ServerToolResultBlock),
    ]
    assert said == [
        (
            cls.__name__,
            [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING],
            [f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING],
        )
        for cls in classes
    ]


def test_the_messages_that_a_session_may_send_are_known():
    known = {name for name, *_ in table("1.9 Messages of the conversation")}
    assert known == {*content._MESSAGES, *content._BLOCKS}


def test_its_examples_in_python_are_short():
    codes = re.findall(r"^```python\n(.*?)^```$", SPEC, re.M | re.S)
    assert len(codes) == 2
    assert all(len(code.splitlines()) <= 40 for code in codes)

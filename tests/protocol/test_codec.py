"""The codec: round trips, and what it refuses on either side."""

import enum
import itertools
import math
import re
import struct
import tracemalloc
import types
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.protocol import codec
from soloist.protocol import content as c
from soloist.protocol import messages as m
from soloist.protocol.errors import (
    ErrorInfo,
    InvalidPrompt,
    LocalProtocolError,
    PayloadTooLarge,
    RemoteProtocolError,
)
from tests.protocol import strategies

INFO = ErrorInfo("client_error", "it failed", retryable=False, started=None, details={})
BLOCK = {"type": "text", "text": "hello"}


def nested(depth: int, inner: Any = None) -> Any:
    """``depth`` lists in each other."""
    value: Any = [] if inner is None else [inner]
    for _ in range(depth - 1):
        value = [value]
    return value


def label(value: Any) -> str:
    """A short, stable name for a test's parameter."""
    return re.sub(r" at 0x\w+", "", ascii(value))[:40]


def pack(value: Any) -> bytes:
    return msgpack.packb(value)


class TestWireMessages:
    @pytest.mark.parametrize("cls", strategies.WIRE, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_come_back_equal_and_of_the_same_types(self, cls, data):
        message = data.draw(strategies.WIRE[cls])
        decoded = codec.decode(codec.encode(message))
        assert decoded == message
        assert type(decoded) is cls
        assert_declared_types(decoded)

    def test_every_type_of_message_is_tried(self):
        assert set(strategies.WIRE) == set(typing.get_args(m.WireMessage))

    def test_no_two_share_their_bytes(self):
        assert codec.encode(m.Stop()) != codec.encode(m.Ready())

    def test_numbers_reach_the_limits_of_64_bits(self):
        message = m.Interrupt(2**64 - 1)
        assert codec.decode(codec.encode(message)) == message

    @pytest.mark.parametrize(
        "message",
        [
            m.Interrupt(2**64),
            m.Answer(1, 0.1, "\ud800", 1, b""),
            m.Answer(1, object(), "", 1, b""),
            m.Failure(1, 0.1, INFO._replace(details={"x": {1, 2}})),
            "hello",
            None,
            (1, 2),
        ],
        ids=label,
    )
    def test_that_msgpack_cannot_carry_are_our_own_fault(self, message):
        with pytest.raises(LocalProtocolError):
            codec.encode(message)

    def test_with_a_cycle_are_our_own_fault(self):
        cycle = []
        cycle.append(cycle)
        with pytest.raises(LocalProtocolError):
            codec.encode(m.Broken(False, INFO._replace(details={"x": cycle})))


def assert_declared_types(record: Any) -> None:
    """Every field has its declared type; written without the codec's own tables."""
    for value, hint in zip(record, typing.get_type_hints(type(record)).values(), strict=True):
        kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(hint) or [hint]]
        if typing.get_origin(hint) is tuple:
            kinds = [tuple]
            for item in value:
                if hasattr(item, "_fields"):
                    assert_declared_types(item)
                else:
                    assert type(item) is str
        elif typing.get_origin(hint) is dict:
            kinds = [dict]
        elif hint is float:
            kinds = [float, int]
        elif isinstance(value, ErrorInfo):
            assert_declared_types(value)
        assert type(value) in kinds


ERROR = ["client_error", "it failed", False, None, {}]
ANSWER = [7, 1, 0.5, "text", 1, b""]
REFUSED = {
    "nothing": b"",
    "a lone number": pack(3),
    "a map": pack({"a": 1}),
    "text": pack("hello"),
    "an array without a tag": pack([]),
    "a tag that is text": pack(["7"]),
    "a tag that is a truth value": pack([True, 1]),
    "a tag below all": pack([-1, 1, 0.5, ERROR]),
    "a tag above all": pack([len(strategies.WIRE)]),
    "trailing bytes": pack([4]) + b"\x00",
    "two messages at once": pack([4]) * 2,
    "a byte that msgpack never uses": b"\xc1",
    "a field too few": pack(ANSWER[:-1]),
    "a field too many": pack([*ANSWER, 1]),
    "a negative number": pack([1, -1]),
    "a truth value for a number": pack([1, True]),
    "a fraction for a whole number": pack([1, 1.0]),
    "text for bytes": pack([6, 1, "hello"]),
    "bytes for text": pack([7, 1, 0.5, b"text", 1, b""]),
    "a duration that is no number": pack([7, 1, math.nan, "", 1, b""]),
    "an infinite duration": pack([7, 1, math.inf, "", 1, b""]),
    "a negative duration": pack([7, 1, -0.5, "", 1, b""]),
    "invalid UTF-8": pack([7, 1, 0.5, b"\xff", 1, b""]).replace(b"\xc4\x01\xff", b"\xa1\xff"),
    "an encoded surrogate": b"\x92\x00\xa3\xed\xa0\x80",
    "an extension type": pack([1, msgpack.ExtType(5, b"x")]),
    "a timestamp": pack([1, msgpack.Timestamp(1, 2)]),
    "an impossible timestamp": b"\x92\x01\xd7\xff" + b"\xff" * 8,
    "a lease that is no array": pack([0, [5], 0]),
    "a lease that is a map": pack([0, [{}], 0]),
    "a lease without a prompt": pack([0, [[1]], 0]),
    "a lease with a negative number": pack([0, [[-1, b"", False]], 0]),
    "leases that are a map": pack([0, {}, 0]),
    "an error that is text": pack([5, "it failed"]),
    "an error that is a list of lists": pack([5, [[]]]),
    "an error whose details are a list": pack([5, [*ERROR[:4], []]]),
    "an error whose started is text": pack([5, ["x", "y", False, "no", {}]]),
    "an extension type in the details": pack([5, [*ERROR[:4], {"x": msgpack.ExtType(5, b"")}]]),
    "a timestamp in the details": pack([5, [*ERROR[:4], {"x": [msgpack.Timestamp(1, 2)]}]]),
    "a key of bytes in the details": pack([5, [*ERROR[:4], {b"x": 1}]]),
    "a key that is a number": pack([5, [*ERROR[:4], {1: 1}]]),
    "a key that cannot be hashed": pack([5, ERROR[:4]])[:-1] + b"\x81\x90\x01",
    "details nested too deep": pack([5, [*ERROR[:4], {"x": nested(codec.MAX_DEPTH)}]]),
    "a thousand lists in each other": b"\x91" * 1000 + b"\x01",
    "a million lists in each other": b"\x91" * 1_000_000 + b"\x01",
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "text of 4 billion": b"\x92\x01\xdb\xff\xff\xff\xff",
    "bytes of 4 billion": b"\x92\x01\xc6\xff\xff\xff\xff",
    "an extension of 4 billion": b"\x92\x01\xc9\xff\xff\xff\xff\x01",
    "an array longer than what follows": b"\x9f\x01\x01",
}


class TestGarbage:
    @pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
    def test_is_the_peers_fault(self, data):
        with pytest.raises(RemoteProtocolError):
            codec.decode(data)

    @pytest.mark.parametrize("data", ["text", None, 5, [b"x"]], ids=repr)
    def test_need_not_even_be_bytes(self, data):
        with pytest.raises(RemoteProtocolError):
            codec.decode(data)

    @settings(max_examples=60)
    @given(strategies.garbage)
    def test_gives_a_valid_message_or_is_the_peers_fault(self, data):
        try:
            message = codec.decode(data)
        except RemoteProtocolError:
            return
        assert_declared_types(message)
        assert codec.decode(codec.encode(message)) == message

    @pytest.mark.parametrize(
        "decode", [codec.decode_prompt, codec.decode_message, codec.decode_maps, codec.decode_value]
    )
    @settings(max_examples=40)
    @given(data=strategies.garbage)
    def test_in_payloads_is_the_peers_fault(self, decode, data):
        try:
            value = decode(data)
        except RemoteProtocolError:
            return
        if decode is codec.decode_message:
            codec.encode_message(value)
        else:
            assert_plain(value)

    @pytest.mark.parametrize("cls", strategies.WIRE, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_that_was_cut_short_is_always_found(self, cls, data):
        encoded = codec.encode(data.draw(strategies.WIRE[cls]))
        for end in range(len(encoded)):
            with pytest.raises(RemoteProtocolError):
                codec.decode(encoded[:end])

    @given(strategies.wire_messages, st.data())
    def test_of_one_flipped_bit_is_valid_or_the_peers_fault(self, message, data):
        encoded = bytearray(codec.encode(message))
        bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
        encoded[bit // 8] ^= 1 << bit % 8
        try:
            decoded = codec.decode(bytes(encoded))
        except RemoteProtocolError:
            return
        assert_declared_types(decoded)

    @pytest.mark.parametrize(
        "decode",
        [
            codec.decode,
            codec.decode_prompt,
            codec.decode_message,
            codec.decode_maps,
            codec.decode_value,
        ],
    )
    def test_that_declares_more_than_it_holds_costs_bounded_memory(self, decode):
        size = 64 * 1024
        bomb = (b"\xdd" + struct.pack(">I", size // 2)) * 500
        bomb += bytes(size - len(bomb))
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError):
                decode(bomb)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 100 * 1024 * 1024


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in {str, bytes, int, float, bool, types.NoneType}


class Color(enum.StrEnum):
    RED = "red"


class TestPrompts:
    @given(strategies.prompts())
    def test_come_back_equal(self, prompt):
        assert codec.decode_prompt(codec.encode_prompt(prompt)) == prompt

    def test_of_a_subclass_of_str_come_back_as_str(self):
        prompt = codec.decode_prompt(codec.encode_prompt(Color.RED))
        assert prompt == "red"
        assert type(prompt) is str

    def test_a_subclass_of_str_has_no_say_in_its_bytes(self):
        class Odd(str):
            __slots__ = ()

            def encode(self, *_):
                return b"\xff"

        assert codec.decode_prompt(codec.encode_prompt(Odd("text"))) == "text"

    def test_may_hold_tuples_subclasses_and_bytearrays(self):
        block = {**BLOCK, "extra": (Color.RED, bytearray(b"x"), [True, None, 1.5])}
        encoded = codec.encode_prompt([block])
        assert codec.decode_prompt(encoded) == [
            {**BLOCK, "extra": ["red", b"x", [True, None, 1.5]]}
        ]

    @pytest.mark.parametrize(
        "prompt",
        [
            None,
            5,
            b"bytes",
            {"type": "text"},
            ("a", "b"),
            object(),
            ["text"],
            [{}],
            [{"type": 5}],
            [{"text": "no type"}],
            "\ud800",
            [{"type": "\udfff"}],
            [{"type": "x", "\ud800": 1}],
            [{**BLOCK, "x": object()}],
            [{**BLOCK, "x": {1, 2}}],
            [{**BLOCK, "x": [{1: 2}]}],
            [{**BLOCK, b"x": 2}],
            [{**BLOCK, "x": 2**64}],
            [{**BLOCK, "x": -(2**63) - 1}],
            [{**BLOCK, "x": 1j}],
            [{**BLOCK, "x": msgpack.ExtType(1, b"")}],
            [{**BLOCK, "x": msgpack.Timestamp(1, 2)}],
        ],
        ids=label,
    )
    def test_that_cannot_be_sent_say_so_at_once(self, prompt):
        with pytest.raises(InvalidPrompt) as raised:
            codec.encode_prompt(prompt)
        assert raised.value.started is False

    def test_with_an_unprintable_block_say_so_at_once(self):
        class Unprintable:
            def __repr__(self):
                raise ValueError("no repr")

        with pytest.raises(InvalidPrompt, match="content block is a map"):
            codec.encode_prompt([Unprintable()])

    def test_changed_by_another_thread_meanwhile_are_refused(self):
        class Changing(dict):
            def values(self):
                raise RuntimeError("dictionary changed size during iteration")

        with pytest.raises(InvalidPrompt):
            codec.encode_prompt([Changing(BLOCK)])

    @pytest.mark.parametrize("method", ["get", "values"])
    def test_of_a_class_that_raises_anything_is_the_callers_fault(self, method):
        class Hostile(dict):
            pass

        setattr(Hostile, method, lambda *_: {}["the culprit"])
        with pytest.raises(InvalidPrompt, match=r"KeyError.*the culprit"):
            codec.encode_prompt([Hostile(BLOCK)])

    def test_are_measured_in_bytes_not_in_characters(self):
        assert len(codec.encode_prompt("é" * 9, max_bytes=19)) == 19
        with pytest.raises(PayloadTooLarge) as raised:
            codec.encode_prompt("é" * 9, max_bytes=18)
        assert raised.value.started is False

    def test_too_long_are_refused_before_they_are_encoded(self):
        with pytest.raises(PayloadTooLarge, match="11 bytes, the limit is 10"):
            codec.encode_prompt("x" * 11, max_bytes=10)

    def test_of_blocks_are_held_to_the_same_limit(self):
        size = len(codec.encode_prompt([BLOCK] * 3))
        assert codec.encode_prompt([BLOCK] * 3, max_bytes=size)
        with pytest.raises(PayloadTooLarge):
            codec.encode_prompt([BLOCK] * 3, max_bytes=size - 1)

    def test_may_nest_to_the_limit_and_no_deeper(self):
        deepest = [{**BLOCK, "x": nested(codec.MAX_DEPTH - 2, "leaf")}]
        assert codec.decode_prompt(codec.encode_prompt(deepest)) == deepest
        with pytest.raises(PayloadTooLarge, match="nested deeper than 64"):
            codec.encode_prompt([{**BLOCK, "x": nested(codec.MAX_DEPTH - 1)}])

    def test_with_cycles_are_refused_and_do_not_hang(self):
        cycle = []
        cycle.extend([cycle, cycle, {"x": cycle}])
        with pytest.raises(PayloadTooLarge):
            codec.encode_prompt([{**BLOCK, "x": cycle}])

    def test_that_multiply_when_written_out_are_refused_and_do_not_hang(self):
        laughs = ["lol"]
        for _ in range(codec.MAX_DEPTH - 4):
            laughs = [laughs, laughs]
        with pytest.raises(PayloadTooLarge):
            codec.encode_prompt([{**BLOCK, "x": laughs}])

    def test_that_repeat_a_large_text_are_refused_before_they_are_encoded(self):
        block = {**BLOCK, "text": "x" * 1_000_000}
        tracemalloc.start()
        try:
            with pytest.raises(PayloadTooLarge, match="at least"):
                codec.encode_prompt([block] * 1000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 10_000_000

    @pytest.mark.parametrize(
        "value",
        [
            5,
            None,
            b"bytes",
            {"type": "text"},
            ["text"],
            [{}],
            [{"type": 5}],
            [{b"type": "text"}],
            [{**BLOCK, "x": nested(codec.MAX_DEPTH - 1)}],
            msgpack.Timestamp(1, 2),
        ],
        ids=label,
    )
    def test_from_a_peer_are_checked_again(self, value):
        with pytest.raises(RemoteProtocolError):
            codec.decode_prompt(pack(value))

    @given(strategies.garbage_values)
    def test_that_are_accepted_can_be_decoded(self, value):
        try:
            encoded = codec.encode_prompt([{**BLOCK, "x": value}])
        except (InvalidPrompt, PayloadTooLarge):
            return
        codec.decode_prompt(encoded)


class TestConversationMessages:
    @pytest.mark.parametrize("cls", strategies.CONTENT, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_come_back_equal_and_of_the_same_type(self, cls, data):
        message = data.draw(strategies.CONTENT[cls])
        decoded = codec.decode_message(codec.encode_message(message))
        assert decoded == message
        assert type(decoded) is cls

    @given(st.lists(strategies.content_messages, max_size=4))
    def test_joined_are_the_list_of_their_maps(self, messages):
        joined = codec.join([codec.encode_message(message) for message in messages])
        maps = codec.decode_maps(joined)
        assert maps == [c.to_map(message) for message in messages]
        assert [c.from_map(value) for value in maps] == messages

    def test_joined_may_be_many(self):
        encoded = codec.encode_message(c.SystemMessage("x", {}))
        for count in (0, 15, 16, 65_536):
            assert len(codec.decode_maps(codec.join([encoded] * count))) == count

    def test_of_an_empty_answer_are_an_empty_list(self):
        assert codec.decode_maps(b"") == []

    def test_may_nest_to_the_limit_and_no_deeper(self):
        deepest = c.SystemMessage("x", {"x": nested(codec.MAX_DEPTH - 2)})
        encoded = codec.encode_message(deepest)
        assert codec.decode_message(encoded) == deepest
        assert codec.decode_maps(codec.join([encoded])) == [c.to_map(deepest)]
        too_deep = c.SystemMessage("x", {"x": nested(codec.MAX_DEPTH - 1)})
        with pytest.raises(ValueError, match="nested deeper"):
            codec.encode_message(too_deep)
        with pytest.raises(RemoteProtocolError, match="nested deeper"):
            codec.decode_message(pack(c.to_map(too_deep)))
        with pytest.raises(RemoteProtocolError, match="nested deeper"):
            codec.decode_maps(codec.join([pack(c.to_map(too_deep))]))

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            ({"x": object()}, TypeError),
            ({1: 2}, TypeError),
            ({"x": [{None: 2}]}, TypeError),
            ({"x": msgpack.Timestamp(1, 2)}, TypeError),
            ({"x": 2**64}, OverflowError),
            ({"x": "\ud800"}, ValueError),
        ],
        ids=label,
    )
    def test_that_cannot_be_sent_are_the_clients_fault(self, value, error):
        with pytest.raises(error):
            codec.encode_message(c.SystemMessage("x", value))

    def test_with_cycles_are_the_clients_fault(self):
        cycle: dict[str, Any] = {}
        cycle["a"] = cycle["b"] = cycle
        for message in (c.SystemMessage("x", cycle), c.SystemMessage("x", {"a": [cycle, cycle]})):
            with pytest.raises(ValueError, match=r"nested deeper|at least"):
                codec.encode_message(message)

    def test_that_multiply_when_written_out_are_the_clients_fault(self):
        laughs: Any = ["lol"]
        for _ in range(codec.MAX_DEPTH - 4):
            laughs = [laughs, laughs]
        with pytest.raises(ValueError, match="at least"):
            codec.encode_message(c.SystemMessage("x", {"x": laughs}))

    @pytest.mark.parametrize(
        "value",
        [5, None, "text", [], [5], [None], [[]], ["x"], {"type": "SystemMessage"}, {b"x": 1}],
        ids=repr,
    )
    def test_from_a_peer_are_checked_again(self, value):
        for decode in (codec.decode_message, codec.decode_maps):
            if (decode, value) != (codec.decode_maps, []):
                with pytest.raises(RemoteProtocolError):
                    decode(pack(value))

    @given(strategies.garbage_values, strategies.garbage_values)
    def test_that_are_accepted_can_be_decoded(self, first, second):
        candidates = itertools.chain(
            (cls(first, second) for cls in (c.SystemMessage, c.AssistantMessage, c.UserMessage)),
            [c.AssistantMessage([c.ToolUseBlock(first, "x", second), second], "m")],
            [c.UserMessage("x", tool_use_result=first, origin=second)],
        )
        for message in candidates:
            try:
                encoded = codec.encode_message(message)
            except (TypeError, ValueError, OverflowError):
                continue
            codec.decode_message(encoded)


class TestValues:
    @given(strategies.values)
    def test_come_back_equal(self, value):
        assert codec.decode_value(codec.encode_value(value)) == value

    def test_come_back_with_lists_for_tuples(self):
        assert codec.decode_value(codec.encode_value((1, ("a", b"b")))) == [1, ["a", b"b"]]

    def test_may_nest_and_not_too_deep(self):
        deep = nested(codec.MAX_DEPTH - 1, "leaf")
        assert codec.decode_value(codec.encode_value(deep)) == deep
        too_deep = nested(codec.MAX_DEPTH + 1)
        with pytest.raises(ValueError, match="nested deeper"):
            codec.encode_value(too_deep)
        with pytest.raises(RemoteProtocolError, match="nested deeper"):
            codec.decode_value(pack(too_deep))

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (object(), TypeError),
            ([{1, 2}], TypeError),
            ({1: 2}, TypeError),
            (msgpack.ExtType(5, b""), TypeError),
            (2**64, OverflowError),
            ("\ud800", ValueError),
        ],
        ids=label,
    )
    def test_that_cannot_be_sent_say_so(self, value, error):
        with pytest.raises(error):
            codec.encode_value(value)

    @pytest.mark.parametrize(
        "value",
        [msgpack.Timestamp(1, 2), msgpack.ExtType(5, b""), {b"x": 1}, [{"x": {b"x": 1}}]],
        ids=label,
    )
    def test_from_a_peer_are_checked_again(self, value):
        with pytest.raises(RemoteProtocolError):
            codec.decode_value(pack(value))

    @given(strategies.garbage_values)
    def test_that_are_accepted_can_be_decoded(self, value):
        try:
            encoded = codec.encode_value(value)
        except (TypeError, ValueError, OverflowError):
            return
        codec.decode_value(encoded)


class TestFlatMaps:
    """The quick way may only give what the thorough one would; what it is unsure of goes there."""

    @pytest.mark.parametrize(
        "value", [{}, {"a": None}, {"v": 1, "type": "QUERY", "id": b"x" * 16, "prompt": "hi"}]
    )
    def test_of_few_plain_values_are_taken(self, value):
        assert codec.decode_flat(codec.encode_value(value)) == value

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            pack([]),
            pack("text"),
            pack({"a": []}),
            pack({"a": {}}),
            pack({b"a": 1}),
            pack({"a": msgpack.ExtType(5, b"")}),
            pack({"a": msgpack.Timestamp(1, 2)}),
            pack(dict.fromkeys(map(str, range(16)))),
            pack({"a": "x" * 64 * 1024}),
            b"\x82\xa1a\x01\xa1a\x02",  # a key that stands there twice
        ],
        ids=[
            "nothing", "array", "text", "list in it", "map in it", "key of bytes", "extension",
            "timestamp", "many", "long", "twice",
        ],
    )  # fmt: skip
    def test_of_anything_else_are_not(self, data):
        assert codec.decode_flat(data) is None

    @given(strategies.maps | strategies.maps.map(lambda value: dict(list(value.items())[:3])))
    def test_are_what_the_thorough_way_gives(self, value):
        data = codec.encode_map(value)
        assert codec.decode_flat(data) in (None, codec.decode_value(data))

    @given(strategies.garbage | st.binary(max_size=40).map(lambda rest: b"\x81" + rest))
    def test_of_garbage_are_the_peers_fault_or_what_the_thorough_way_gives(self, data):
        try:
            value = codec.decode_flat(data)
        except RemoteProtocolError:
            with pytest.raises(RemoteProtocolError):
                codec.decode_value(data)
            return
        if value is not None:
            assert msgpack.packb(value) == msgpack.packb(codec.decode_value(data))


class TestTheQuickLookAtSmallMessages:
    """It may only say yes where the thorough check would; what it is unsure of goes there."""

    @pytest.mark.parametrize(
        "value",
        [
            {"a": [{}] * 61},  # too many containers
            {"a": list(range(61))},  # too many children
            {"a": "x" * (64 * 1024 + 1)},  # long
            {"a": (1, 2)},  # no plain list
            {1: "a"},  # a key that is no text
        ],
        ids=["containers", "children", "long", "tuple", "key"],
    )
    def test_it_is_unsure(self, value):
        assert not codec._is_small(value)

    @given(strategies.maps)
    def test_what_it_passes_arrives(self, value):
        if codec._is_small(value):
            codec._check_sent(value, 2**32)
            assert codec.decode_value(codec.encode_map(value)) == value

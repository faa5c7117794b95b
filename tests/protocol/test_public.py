"""The public wire: what clients may say, what is refused, and what brokers say."""

import math
import re

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.protocol import codec, public, public_codec
from soloist.protocol.errors import ErrorInfo, RemoteProtocolError, WorkerLost, to_info
from tests.protocol import strategies

ID = bytes(range(16))
PEER = b"\0\0\0\0\1"
QUERY = {"v": 1, "type": "QUERY", "id": ID, "prompt": "hello"}
CANCEL = {"v": 1, "type": "CANCEL", "id": ID}
CREDIT = {"v": 1, "type": "CREDIT", "id": ID, "bytes": 5}
BLOCK = {"type": "text", "text": "hello"}
ERROR_CODES = {"protocol_error", "invalid_prompt"}


def decode(data, *, is_req=False):
    return public_codec.decode(data, public_codec.BROKER, is_req=is_req)


def read(frames):
    return public_codec.read(frames, public_codec.BROKER)


def pack(value):
    return msgpack.packb(value)


def label(value):
    return re.sub(r" at 0x\w+", "", ascii(value))[:50]


def without(message, key):
    return {k: v for k, v in message.items() if k != key}


def assert_refused(error, code="protocol_error", about=None):
    assert type(error) is public.Error
    assert (error.info.code, error.id) == (code, about)
    assert error.sequence is None
    assert (error.info.started, error.info.retryable) == (False, False)
    assert error.info.message
    conforms(public_codec.encode(error))


def conforms(data):
    """Check the bytes of a reply against ``FIELDS``; written without the codec's own checks."""
    value = msgpack.unpackb(data, strict_map_key=True)
    assert list(value)[:2] == ["v", "type"]
    assert value["v"] == public.VERSION
    fields = public.FIELDS[value["type"]]
    assert list(value)[2:] == [f.key for f in fields if f.is_required or f.key in value]
    for field in fields:
        if field.key in value:
            assert is_of(field.kind, value[field.key]), field
    return value


def is_of(kind, value):
    match kind.value:
        case "id":
            return isinstance(value, bytes) and len(value) == 16
        case "id or nil":
            return value is None or is_of(public.Kind.ID, value)
        case "uint":
            return type(value) is int and 0 <= value < 2**64
        case "bool or nil":
            return value is None or type(value) is bool
        case "array of maps":
            return type(value) is list and all(type(item) is dict for item in value)
        case "array of uint" | "array of str" as name:
            kind = public.Kind(name.removeprefix("array of "))
            return type(value) is list and all(is_of(kind, item) for item in value)
        case "bin of 16 to 64 bytes":
            return type(value) is bytes and 16 <= len(value) <= 64
        case "`cancel` or `finish`":
            return value in {"cancel", "finish"}
        case "str or array of maps":
            return type(value) is str or is_of(public.Kind.MAPS, value)
        case "str" | "bool" | "map" | "array" as name:
            return type(value) is {"str": str, "bool": bool, "map": dict, "array": list}[name]
    return False


class TestRequests:
    @given(strategies.public_messages("QUERY"))
    def test_a_query_is_read_with_its_defaults(self, value):
        query = decode(pack(value))
        assert type(query) is public.Query
        assert query.id == value["id"]
        assert query.prompt == value["prompt"]
        assert query.timeout_ms == value.get("timeout_ms")
        assert query.is_streamed is bool(value.get("stream"))

    @given(strategies.public_messages("CANCEL"))
    def test_a_cancel_is_read(self, value):
        assert decode(pack(value)) == public.Cancel(value["id"])

    @given(strategies.public_messages("CREDIT"))
    def test_a_credit_is_read(self, value):
        assert decode(pack(value)) == public.Credit(value["id"], value["bytes"])

    @pytest.mark.parametrize(
        "message",
        [
            QUERY | {"v": 2},
            QUERY | {"v": 0},
            QUERY | {"v": True},
            QUERY | {"v": 1.0},
            QUERY | {"v": "1"},
            without(QUERY, "v"),
            without(QUERY, "prompt"),
            QUERY | {"prompt": None},
            QUERY | {"timeout_ms": -1},
            QUERY | {"timeout_ms": 1.0},
            QUERY | {"timeout_ms": True},
            QUERY | {"timeout_ms": "5"},
            QUERY | {"timeout_ms": math.inf},
            QUERY | {"stream": 1},
            QUERY | {"stream": "yes"},
        ],
        ids=label,
    )
    def test_a_wrong_query_is_refused_by_its_id(self, message):
        assert_refused(decode(pack(message)), about=ID)

    @pytest.mark.parametrize(
        "prompt",
        [5, True, b"bytes", BLOCK, ["text"], [{}], [{"type": 5}], [BLOCK, None], 1.5],
        ids=label,
    )
    def test_a_prompt_that_is_none_is_refused_by_its_id(self, prompt):
        answer = decode(pack(QUERY | {"prompt": prompt}))
        assert_refused(answer, "invalid_prompt", ID)

    @pytest.mark.parametrize(
        "message",
        [
            QUERY | {"id": b"x" * 15},
            QUERY | {"id": b"x" * 17},
            QUERY | {"id": "x" * 16},
            QUERY | {"id": None},
            without(QUERY, "id"),
            without(QUERY, "type"),
            QUERY | {"type": None},
            QUERY | {"type": ["QUERY"]},
            QUERY | {"type": {}},
            QUERY | {"type": "query"},
            QUERY | {"type": "OPEN"},
            QUERY | {"type": "RESULT"},
            {},
            [],
            [QUERY],
            None,
            5,
            "QUERY",
            b"QUERY",
            QUERY | {"x": msgpack.ExtType(5, b"x")},
            QUERY | {"x": msgpack.Timestamp(1, 2)},
            QUERY | {"x": {b"bytes": 1}},
            QUERY | {b"bytes": 1},
            QUERY | {5: 1},
        ],
        ids=label,
    )
    def test_what_cannot_be_related_to_a_query_is_refused_without_an_id(self, message):
        assert_refused(decode(pack(message)))

    @pytest.mark.parametrize(
        "message",
        [
            CANCEL | {"v": 2},
            CANCEL | {"id": b"short"},
            CREDIT | {"v": 2},
            CREDIT | {"bytes": -1},
            CREDIT | {"bytes": 1.5},
            without(CREDIT, "bytes"),
        ],
        ids=label,
    )
    def test_an_error_about_a_cancel_or_credit_never_passes_for_an_outcome(self, message):
        assert_refused(decode(pack(message)))

    def test_nesting_is_limited(self):
        value: object = 1
        for _ in range(codec.MAX_DEPTH - 1):
            value = [value]
        assert type(decode(pack(QUERY | {"x": value}))) is public.Query
        assert_refused(decode(pack(QUERY | {"x": [value]})))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xc1",
            b"\x81",
            pack(QUERY) + b"\0",
            pack(QUERY) * 2,
            pack(QUERY)[:-1],
            b"\x91" * 100_000,
            b"\xdf\xff\xff\xff\xff",
            pack(QUERY).replace(b"hello", b"\xff\xfe\xff\xfe\xff"),
            pack(QUERY).replace(b"\x84", b"\x85", 1) + pack("prompt") + pack("other"),
            pack(QUERY).replace(b"\x84", b"\x85", 1) + pack("x") + b"\x82" + pack("a") * 4,
            "text",
            None,
        ],
        ids=label,
    )
    def test_what_is_no_msgpack_is_refused(self, data):
        assert_refused(decode(data))

    def test_an_error_repeats_no_more_than_a_little_of_what_was_wrong(self):
        for key in ("v", "type", "stream"):
            answer = decode(pack(QUERY | {key: "x" * 1_000_000}))
            assert len(public_codec.encode(answer)) < 500

    @settings(max_examples=60)
    @given(strategies.garbage | strategies.near_public_messages(), st.booleans())
    def test_garbage_gives_a_valid_request_or_an_error(self, data, is_req):
        match decode(data, is_req=is_req):
            case public.Query() as query:
                assert len(query.id) == 16
                codec.encode_prompt(query.prompt)
                assert query.timeout_ms is None or 0 <= query.timeout_ms < 2**64
                assert type(query.is_streamed) is bool
                assert not (is_req and query.is_streamed)
            case public.Cancel(id=request_id) | public.Credit(id=request_id):
                assert len(request_id) == 16
                assert not is_req
            case error:
                assert_refused(error, error.info.code, error.id)
                assert error.info.code in ERROR_CODES


class TestFrames:
    def test_of_a_dealer_are_its_address_and_a_payload(self):
        envelope, query = read([PEER, pack(QUERY)])
        assert envelope == (PEER,)
        assert query == public.Query(ID, "hello", None, False)

    @pytest.mark.parametrize("before", [(), (b"\0\0\0\7",), (b"a", b"b")], ids=label)
    def test_of_a_req_socket_are_echoed_up_to_the_empty_one(self, before):
        envelope, query = read([PEER, *before, b"", pack(QUERY)])
        assert envelope == (PEER, *before, b"")
        assert type(query) is public.Query

    @pytest.mark.parametrize(
        "message", [CANCEL, CREDIT, QUERY | {"stream": True}], ids=lambda m: m["type"]
    )
    def test_of_a_req_socket_ask_and_no_more(self, message):
        envelope, error = read([PEER, b"", pack(message)])
        assert envelope == (PEER, b"")
        assert_refused(error, about=ID if message["type"] == "QUERY" else None)
        assert type(read([PEER, pack(message)])[1]) is not public.Error

    @pytest.mark.parametrize(
        ("frames", "envelope"),
        [
            ([PEER], (PEER,)),
            ([PEER, b""], (PEER,)),
            ([PEER, b"", b""], (PEER, b"")),
            ([PEER, b"garbage"], (PEER,)),
            ([PEER, b"", b"garbage"], (PEER, b"")),
            ([PEER, pack(QUERY), pack(QUERY)], (PEER,)),
            ([PEER, pack(QUERY), b""], (PEER,)),
            ([PEER, b"", pack(QUERY), pack(QUERY)], (PEER, b"")),
            ([PEER, *[b"x"] * 7, b"", pack(QUERY)], (PEER,)),
            ([PEER, b"x" * 1024, b"", pack(QUERY)], (PEER,)),
            ([b"chosen", pack(QUERY)], (b"chosen",)),
            ([b"chosen", b"", pack(QUERY)], (b"chosen", b"")),
        ],
        ids=label,
    )
    def test_that_are_wrong_get_an_answer_all_the_same(self, frames, envelope):
        answer = read(frames)
        assert answer[0] == envelope
        assert_refused(answer[1])

    def test_may_hold_an_envelope_up_to_the_limit(self):
        for before in ([b"x"] * 6, [b"x" * (1024 - len(PEER))]):
            envelope, query = read([PEER, *before, b"", pack(QUERY)])
            assert envelope == (PEER, *before, b"")
            assert type(query) is public.Query

    @given(st.lists(strategies.garbage | st.just(b"") | st.just(pack(QUERY)), max_size=4))
    def test_of_garbage_always_have_an_answer(self, frames):
        envelope, message = read([PEER, *frames])
        assert envelope[0] == PEER
        assert type(message) in {public.Query, public.Cancel, public.Credit, public.Error}


class TestReplies:
    @given(strategies.public_ids, strategies.numbers, strategies.content_messages)
    def test_a_message_carries_the_encoded_map(self, request_id, seq, message):
        encoded = codec.encode_message(message)
        value = conforms(public_codec.encode(public.Message(request_id, seq, encoded)))
        assert (value["id"], value["seq"]) == (request_id, seq)
        assert value["message"] == msgpack.unpackb(encoded)

    @given(
        st.builds(
            public.Result,
            strategies.public_ids,
            strategies.numbers,
            strategies.numbers,
            strategies.texts,
            strategies.numbers,
            strategies.numbers,
            attempts=st.none(),
            worker=st.none(),
            messages=st.lists(strategies.content_messages, max_size=3).map(
                lambda messages: codec.join([codec.encode_message(m) for m in messages])
            ),
        )
    )
    def test_a_result_carries_the_encoded_list(self, result):
        value = conforms(public_codec.encode(result))
        assert list(value.values())[2:] == [*result[:6], msgpack.unpackb(result.messages)]

    def test_a_result_of_a_gateway_says_who_answered(self):
        result = public.Result(ID, 1, 1, "x", 1, 5, attempts=2, worker=3, messages=b"\x90")
        value = conforms(public_codec.encode(result))
        assert (value["attempts"], value["worker"]) == (2, 3)

    @given(
        st.none() | strategies.public_ids, st.none() | strategies.numbers, strategies.tuple_errors
    )
    def test_an_error_leaves_out_a_sequence_that_it_has_not(self, request_id, sequence, info):
        value = conforms(public_codec.encode(public.Error(request_id, sequence, info)))
        assert value["id"] == request_id
        assert value.get("sequence", None) == sequence
        del value["details"]
        assert ErrorInfo(**{k: value[k] for k in ErrorInfo._fields[:-1]}, details={}) == (
            info._replace(details={})
        )

    def test_an_error_carries_its_details(self):
        info = to_info(WorkerLost("it died", exitcode=-9))
        value = conforms(public_codec.encode(public.Error(ID, 3, info)))
        assert (value["code"], value["details"]) == ("worker_lost", {"exitcode": -9, "stderr": ""})


class TestGateway:
    """What is beyond a broker's messages."""

    @pytest.mark.parametrize("name", public.OF_GATEWAY)
    @settings(max_examples=20)
    @given(st.data())
    def test_what_clients_say_is_read_and_can_be_said_again(self, name, data):
        value = data.draw(strategies.public_messages(name))
        message = public_codec.decode(pack(value), public_codec.GATEWAY)
        assert type(message) is public.OF_GATEWAY[name]
        for field, found in zip(public.FIELDS[name], message, strict=True):
            said = value.get(field.key)
            assert found == (field.default if said is None else said)
        again = public_codec.encode(message)
        conforms(again)
        assert public_codec.decode(again, public_codec.GATEWAY) == message

    @pytest.mark.parametrize("name", public.TO_CLIENT)
    @settings(max_examples=20)
    @given(st.data())
    def test_what_a_gateway_says_is_read_and_can_be_said_again(self, name, data):
        value = data.draw(strategies.public_messages(name))
        message = public_codec.decode_reply(pack(value))
        assert type(message) is public.TO_CLIENT[name]
        if name == "RESULT" and (message.attempts is None) != (message.worker is None):
            return  # a gateway gives both or neither
        again = public_codec.encode(message)
        conforms(again)
        assert public_codec.decode_reply(again) == message

    @settings(max_examples=60)
    @given(
        strategies.garbage | strategies.near_public_messages(tuple(public.OF_GATEWAY)),
        st.booleans(),
    )
    def test_garbage_gives_a_valid_request_or_an_error(self, data, is_req):
        message = public_codec.decode(data, public_codec.GATEWAY, is_req=is_req)
        assert type(message) in {*public.OF_GATEWAY.values(), public.Error}
        conforms(public_codec.encode(message))

    @settings(max_examples=60)
    @given(strategies.garbage | strategies.near_public_messages(tuple(public.TO_CLIENT)))
    def test_garbage_gives_a_valid_reply_or_an_error_of_the_peers(self, data):
        try:
            message = public_codec.decode_reply(data)
        except RemoteProtocolError:
            return
        assert message is None or type(message) in public.TO_CLIENT.values()

    @pytest.mark.parametrize("name", ["MESSAGE", "RESULT"])
    def test_a_message_as_deep_as_it_may_be_comes_through(self, name):
        value = {}
        for _ in range(codec.MAX_DEPTH - 1):
            value = {"x": value}
        encoded = codec.encode_map(value)
        reply = public.Message(ID, 1, encoded)
        if name == "RESULT":
            reply = public.Result(ID, 1, 1, "", 1, 1, None, None, codec.join([encoded]))
        assert public_codec.decode_reply(public_codec.encode(reply)) == reply

    @given(st.binary() | strategies.values.map(msgpack.packb))
    def test_an_id_is_found_wherever_there_is_one(self, data):
        found = public_codec.id_of(data)
        assert found is None or type(found) is bytes
        with_id = msgpack.packb({"v": 1, "type": "RESULT", "id": ID, "text": 5})
        assert public_codec.id_of(with_id) == ID

    def test_a_reply_of_a_later_version_is_ignored(self):
        assert public_codec.decode_reply(pack({"v": 1, "type": "NEWS", "x": 1})) is None

    @pytest.mark.parametrize(
        "value", [[], {"v": 2, "type": "PONG"}, {"v": 1}, {"v": 1, "type": ["PONG"]}], ids=label
    )
    def test_a_reply_that_is_none_is_the_peers_fault(self, value):
        with pytest.raises(RemoteProtocolError, match="version and a type"):
            public_codec.decode_reply(pack(value))

    def test_a_reply_with_a_wrong_field_is_the_peers_fault(self):
        with pytest.raises(RemoteProtocolError, match="position of ACCEPTED is uint"):
            public_codec.decode_reply(pack({"v": 1, "type": "ACCEPTED", "id": ID, "position": -1}))

    @pytest.mark.parametrize("name", ["OPEN", "CLOSE", "COMMAND", "STATUS"])
    def test_an_error_about_what_has_an_answer_names_it(self, name):
        message = {"v": 1, "type": name, "id": ID, "session": 5, "name": 5}
        error = public_codec.decode(pack(message), public_codec.GATEWAY)
        assert_refused(error, about=ID)

    def test_a_broker_does_not_understand_it(self):
        for name in public.OF_GATEWAY.keys() - public.OF_BROKER.keys():
            assert_refused(decode(pack({"v": 1, "type": name, "id": ID})))

    def test_a_broker_does_not_look_at_a_gateways_keys(self):
        query = decode(pack(QUERY | {"session": 5, "on_disconnect": 5}))
        assert query == public.Query(ID, "hello", None, False)

    @pytest.mark.parametrize("name", public.OF_GATEWAY)
    @settings(max_examples=5)
    @given(st.data())
    def test_a_req_socket_says_what_has_one_answer(self, name, data):
        value = data.draw(strategies.public_messages(name)) | {"stream": False}
        _, message = public_codec.read([PEER, b"", pack(value)], public_codec.GATEWAY)
        has_one = name in {"QUERY", "OPEN", "CLOSE", "COMMAND", "STATUS", "PING"}
        assert (type(message) is public.Error) is not has_one


class TestSplit:
    @given(st.lists(strategies.values, max_size=5), st.integers(0, 6))
    def test_is_the_opposite_of_join(self, values, start):
        encoded = [codec.encode_value(value) for value in values]
        assert public_codec.split(codec.join(encoded), start) == encoded[start:]

    @pytest.mark.parametrize("count", [15, 16, 65_536])
    def test_takes_arrays_of_every_size(self, count):
        encoded = codec.join([b"\x01"] * count)
        assert public_codec.split(encoded) == [b"\x01"] * count
        assert public_codec.split(encoded, count - 1) == [b"\x01"]
        assert public_codec.split(encoded, count) == []

    @pytest.mark.parametrize("data", [b"", b"\x01", b"\x92\x01", b"\xc1", b"\xdd\xff\xff\xff\xff"])
    def test_of_what_is_no_array_is_the_workers_fault(self, data):
        with pytest.raises(RemoteProtocolError):
            public_codec.split(data)

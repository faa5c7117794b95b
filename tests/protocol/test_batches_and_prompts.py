"""Frames that carry several messages, and the two kinds of prompts."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol import clientfile, codec
from soloist.protocol import messages as m
from soloist.protocol.errors import InvalidPrompt, PayloadTooLarge, RemoteProtocolError
from tests.protocol import strategies


@given(st.lists(strategies.wire_messages, max_size=5))
def test_a_batch_comes_back_as_it_was(batch):
    decoded = codec.decode_batch(codec.join([codec.encode(message) for message in batch]))
    assert decoded == batch
    assert [type(message) for message in decoded] == [type(message) for message in batch]


@pytest.mark.parametrize("value", ["text", {"a": 1}, [1], [[]], [["tag"]], [[99]], [[-1]]])
def test_what_is_no_batch_is_the_peers_fault(value):
    with pytest.raises(RemoteProtocolError):
        codec.decode_batch(msgpack.packb(value))


@given(st.binary(max_size=200))
def test_garbage_is_nothing_but_a_protocol_error(data):
    for decode in (codec.decode_batch, codec.decode_prompt):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


def test_one_bad_message_spoils_its_batch():
    with pytest.raises(RemoteProtocolError):
        codec.decode_batch(codec.join([codec.encode(m.Ready()), msgpack.packb([99])]))


@given(st.text(max_size=50))
def test_text_comes_back_as_it_was(text):
    assert codec.decode_prompt(codec.encode_prompt(text)) == text


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"t\xff", b"t\xc3", b"b\xc0", b"b" + msgpack.packb(1), b"b" + msgpack.packb(["a"])],
)
def test_what_is_no_prompt_is_the_peers_fault(data):
    with pytest.raises(RemoteProtocolError):
        codec.decode_prompt(data)


def test_text_that_utf8_cannot_carry_is_refused():
    with pytest.raises(InvalidPrompt):
        codec.encode_prompt("\ud800")


@pytest.mark.parametrize("text", ["x" * 11, "\N{SNOWMAN}" * 4])
def test_text_is_measured_as_it_is_sent(text):
    with pytest.raises(PayloadTooLarge):
        codec.encode_prompt(text, max_bytes=10)


def test_a_cached_function_is_cached_as_it_was():
    calls = []
    function = clientfile.cached(lambda x: calls.append(x) or x, 1, True)
    assert [function(1), function(1), function(1.0)] == [1, 1, 1.0]
    assert calls == [1, 1.0]
    assert function.cache_parameters() == {"maxsize": 1, "typed": True}

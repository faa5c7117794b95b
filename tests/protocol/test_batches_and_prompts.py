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


@given(st.lists(strategies.texts, max_size=5))
def test_texts_of_prompts_are_those_that_were_encoded(texts):
    encoded = [codec.encode_prompt(text) for text in texts]
    assert codec.texts_of_prompts(encoded) == tuple(texts)
    blocks = codec.encode_prompt([{"type": "text", "text": "a"}])
    assert codec.texts_of_prompts([*encoded, blocks]) == ()


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


class TestTexts:
    """What a chunk is made of."""

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=40))
    def test_answers_encoded_piece_by_piece_are_the_same_as_at_once(self, texts):
        durations = bytes(8 * len(texts))
        pieces = b"".join(map(msgpack.packb, texts))
        message = m.Answers(7, durations, tuple(texts))
        assert codec.encode_answers(7, durations, pieces) == codec.encode(message)
        assert codec.decode_texts(pieces + b"\xc1 what follows", len(texts)) == tuple(texts)

    @pytest.mark.parametrize("data", [b"", b"\xa1a", b"\xa1a\xa9b", b"\xa1a\xc1", b"\xa1a\xa1\xff"])
    def test_of_which_some_are_missing_or_broken_are_refused(self, data):
        with pytest.raises(RemoteProtocolError):
            codec.decode_texts(data, 2)

    def test_in_the_place_of_one_may_be_nothing(self):
        assert codec.decode_texts(b"\xa1a\xc0\xa1b", 3) == ("a", None, "b")

    @given(st.lists(st.text(max_size=9), max_size=9))
    def test_have_their_size_as_utf_8(self, texts):
        try:
            expected = sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError:
            expected = None
        assert codec.size_of_texts(texts) == expected

    @pytest.mark.parametrize("value", [b"a", 7, None, ["a"], "\ud800"], ids=ascii)
    def test_nothing_else_has_a_size(self, value):
        assert codec.size_of_texts(["a", value]) is None

    def test_of_another_class_are_not_sent_together(self):
        class Text(str):
            __slots__ = ()

        assert codec.size_of_texts([Text("a")]) is None

    @pytest.mark.parametrize(
        "message",
        [
            m.Chunk(1, ("a", 7), 0),
            m.Chunk(1, (b"a",), 0),
            m.Answers(1, bytes(8), (b"a",)),
            m.Answers(1, bytes(8), ()),
            m.Answers(1, bytes(15), ("a", "b")),
        ],
        ids=repr,
    )
    def test_messages_with_something_else_are_the_peers_fault(self, message):
        with pytest.raises(RemoteProtocolError):
            codec.decode(codec.encode(message))

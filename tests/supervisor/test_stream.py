"""The stream of one request's messages: in order, bounded, without gaps."""

import queue
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.supervisor.request import Request
from soloist.supervisor.stream import Stream


def make(max_bytes=100):
    stream = Stream(max_bytes)
    return stream, Request("p", b"p", stream, is_streamed=True)


def finish(stream, request):
    stream.settle(request)


def read_all(stream):
    return list(iter(stream.next, None))


class TestReading:
    def test_messages_come_in_order_and_then_the_end(self):
        stream, request = make()
        for message in (b"a", b"b", b"c"):
            assert stream.stream(request, message) is True
        finish(stream, request)
        assert read_all(stream) == [b"a", b"b", b"c"]
        assert stream.next() is None

    def test_the_end_without_messages_is_the_end(self):
        stream, request = make()
        finish(stream, request)
        assert stream.next() is None

    @pytest.mark.parametrize("news", ["message", "end"])
    def test_a_reader_that_waits_is_woken(self, news):
        stream, request = make()
        is_reading = threading.Event()
        got = []

        class Announced(queue.SimpleQueue):
            def get(self):
                is_reading.set()
                return super().get()

        stream._messages = Announced()
        reader = threading.Thread(target=lambda: got.append(stream.next()), daemon=True)
        reader.start()
        assert is_reading.wait(20)
        if news == "message":
            stream.stream(request, b"a")
        else:
            finish(stream, request)
        reader.join(20)
        assert got == [b"a" if news == "message" else None]


class TestBound:
    def test_up_to_the_limit_is_taken_and_no_more(self):
        stream, request = make(max_bytes=100)
        assert stream.stream(request, b"x" * 60) is True
        assert stream.stream(request, b"x" * 40) is True
        assert stream.stream(request, b"x") is False

    def test_what_was_read_makes_room(self):
        stream, request = make(max_bytes=100)
        for _ in range(50):
            assert stream.stream(request, b"x" * 100) is True
            assert stream.next() == b"x" * 100

    def test_one_message_always_fits(self):
        stream, request = make(max_bytes=10)
        assert stream.stream(request, b"x" * 1000) is True
        assert stream.stream(request, b"") is False

    def test_after_a_refusal_nothing_is_taken_for_that_would_be_a_gap(self):
        stream, request = make(max_bytes=10)
        assert stream.stream(request, b"1" * 8)
        assert not stream.stream(request, b"2" * 8)
        assert not stream.stream(request, b"3")
        assert stream.next() == b"1" * 8
        assert not stream.stream(request, b"4")
        finish(stream, request)
        assert read_all(stream) == []

    @settings(deadline=None)
    @given(st.lists(st.none() | st.integers(0, 30), max_size=50))
    def test_the_buffer_is_bounded_and_what_is_read_is_a_prefix(self, steps):
        stream, request = make(max_bytes=40)
        sent, got, held = [], [], []
        for step in steps:
            if step is None:
                if held:
                    got.append(stream.next())
                    assert got[-1] == held.pop(0)
            else:
                message = bytes([len(sent) % 256]) * step
                if stream.stream(request, message):
                    held.append(message)
                sent.append(message)
            assert sum(map(len, held)) <= 40
        finish(stream, request)
        got += read_all(stream)
        assert got == sent[: len(got)]

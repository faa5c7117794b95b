"""The ledger: what survives of a worker's outcomes, wherever a SIGKILL struck."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from soloist.protocol import ledger

payload_lists = st.lists(st.binary(max_size=30), max_size=6)


def write(leases):
    return b"".join(ledger.record(lease, payload) for lease, payload in leases)


def numbered(payloads, first=1):
    return list(enumerate(payloads, start=first))


def forged(payload, *, length, magic=0x534F4C4F):
    """A record whose checksum is right, whatever else is not."""
    head = struct.pack("<IQI", magic, 1, length)
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


class TestScan:
    @given(payload_lists, st.integers(1, 2**64 - 10))
    def test_gives_every_record_in_order(self, payloads, first):
        expected = numbered(payloads, first)
        assert list(ledger.scan(write(expected) + ledger.END)) == expected

    @given(payload_lists)
    def test_needs_no_end_mark_at_the_end_of_the_file(self, payloads):
        expected = numbered(payloads)
        assert list(ledger.scan(write(expected))) == expected

    @pytest.mark.parametrize("data", [b"", b"\x00", ledger.END, bytes(4096)], ids=len)
    def test_of_an_unused_file_gives_nothing(self, data):
        assert list(ledger.scan(data)) == []

    @given(payload_lists, st.data())
    def test_of_a_truncated_file_gives_what_is_whole(self, payloads, data):
        expected = numbered(payloads)
        written = write(expected)
        cut = data.draw(st.integers(0, len(written)))
        ends = [len(write(expected[: i + 1])) for i in range(len(expected))]
        whole = sum(end <= cut for end in ends)
        assert list(ledger.scan(written[:cut])) == expected[:whole]

    def test_of_one_flipped_bit_ends_before_the_damage(self):
        expected = numbered([b"first", b"", b"third"])
        sizes = [len(write([pair])) for pair in expected]
        written = write(expected) + ledger.END
        for bit in range(sum(sizes) * 8):
            damaged = bytearray(written)
            damaged[bit // 8] ^= 1 << bit % 8
            intact = sum(sum(sizes[: i + 1]) <= bit // 8 for i in range(len(sizes)))
            assert list(ledger.scan(bytes(damaged))) == expected[:intact]

    @given(st.binary(max_size=200))
    def test_of_garbage_gives_nothing(self, data):
        assert list(ledger.scan(data)) == []

    def test_of_a_length_beyond_the_file_gives_nothing(self):
        assert list(ledger.scan(forged(b"x", length=1))) == [(1, b"x")]
        for length in (2, 100, 2**32 - 1):
            assert list(ledger.scan(forged(b"x", length=length))) == []

    def test_of_another_layout_gives_nothing(self):
        assert list(ledger.scan(forged(b"x", length=1, magic=0x12345678))) == []

    def test_gives_what_belongs_to_one_lease_together(self):
        both = [(1, b"snapshot"), (1, b"outcome")]
        assert list(ledger.scan(write(both))) == both

    def test_ends_where_a_lease_is_lower(self):
        assert list(ledger.scan(write([(2, b"a"), (1, b"b")]))) == [(2, b"a")]

    @given(payload_lists)
    def test_ends_with_what_belongs_to_no_lease(self, payloads):
        expected = [*numbered(payloads), (ledger.NO_LEASE, b"broken")]
        assert list(ledger.scan(write(expected) + ledger.END)) == expected
        assert list(ledger.scan(write([*expected, (9, b"x"), (0, b"y")]))) == expected

    def test_ends_at_the_end_mark_whatever_follows(self):
        data = write([(1, b"a")]) + ledger.END + write([(2, b"b"), (3, b"c")])
        assert list(ledger.scan(data)) == [(1, b"a")]


OLD = numbered([b"older-1", b"older-2", b"older-3", b"older-4"], first=1)
NEW = numbered([b"newer-5", b"newer-6"], first=5)


SAME = 4
"""Bytes that an old and a new record have in common: the magic number."""


def overwritten(kept, appended, cut):
    """A file of old records, begun again with ``kept``, and cut short in the next append."""
    file = bytearray(write(OLD) + ledger.END)
    offset = len(write(kept))
    file[: offset + len(ledger.END)] = write(kept) + ledger.END
    file[offset : offset + cut] = (write([appended]) + ledger.END)[:cut]
    return bytes(file)


class TestOverwritten:
    """Records of the same size are the trap: the leftovers begin just where the new ones end."""

    def test_gives_no_older_record_wherever_the_first_append_was_cut_short(self):
        whole = len(write(NEW[:1]))
        old = write(OLD) + ledger.END
        appended = write(NEW[:1]) + ledger.END
        for cut in range(len(appended) + 1):
            found = list(ledger.scan(appended[:cut] + old[cut:]))
            if cut <= SAME:
                assert found == OLD
            else:
                assert found == (NEW[:1] if cut >= whole else [])

    def test_gives_no_older_record_wherever_a_later_append_was_cut_short(self):
        whole = len(write(NEW[1:]))
        for cut in range(whole + len(ledger.END) + 1):
            file = overwritten(NEW[:1], NEW[1], cut)
            assert list(ledger.scan(file)) == (NEW if cut >= whole else NEW[:1])

    def test_in_its_header_alone_never_gives_an_old_payload_to_a_new_lease(self):
        new = write(NEW[:1])
        for cut in range(1, ledger.HEADER.size + 1):
            file = new[:cut] + write(OLD)[cut:]
            assert (5, b"older-1") not in list(ledger.scan(file))

    def test_and_died_before_the_end_mark_gives_no_leftover(self):
        file = write(NEW[:1]) + write(OLD)[len(write(OLD[:1])) :]
        assert list(ledger.scan(file)) == NEW[:1]


class LedgerWalk(RuleBasedStateMachine):
    """A worker that appends, starts again once all is acknowledged, and dies at any byte."""

    def __init__(self):
        super().__init__()
        self.begin()

    def begin(self):
        self.file = bytearray(400)
        self.offset = 0
        self.lease = 0
        self.finished = []
        self.begun = None
        self.is_dead = False

    def put(self, data):
        self.file[self.offset : self.offset + len(data)] = data

    @precondition(lambda self: not self.is_dead)
    @rule(payload=st.sampled_from([b"", b"a", b"b", b"xxxxx", b"yyyyy"]), is_next=st.booleans())
    def append(self, payload, is_next):
        self.lease += is_next or not self.finished  # an older lease is never continued
        record = ledger.record(self.lease, payload)
        if self.offset + len(record) + len(ledger.END) <= len(self.file):
            self.put(record + ledger.END)
            self.offset += len(record)
            self.finished.append((self.lease, payload))

    @precondition(lambda self: not self.is_dead)
    @rule()
    def start_again(self):
        self.finished = []
        self.offset = 0
        self.put(ledger.END)

    @precondition(lambda self: not self.is_dead and self.offset < 300)
    @rule(payload=st.sampled_from([b"", b"a", b"xxxxx"]), share=st.floats(0, 1))
    def die_amid_an_append(self, payload, share):
        self.begun = (self.lease + 1, payload)
        appended = ledger.record(*self.begun) + ledger.END
        self.put(appended[: round(len(appended) * share)])
        self.is_dead = True

    @precondition(lambda self: self.is_dead)
    @rule()
    def is_replaced(self):
        self.begin()

    @invariant()
    def gives_what_was_finished_since_the_start_and_nothing_older(self):
        found = list(ledger.scan(bytes(self.file)))
        allowed = [self.finished]
        if self.is_dead:
            allowed.append([*self.finished, self.begun])
        assert found in allowed


TestLedgerWalk = LedgerWalk.TestCase
TestLedgerWalk.settings = settings(max_examples=40, stateful_step_count=15)


def test_the_parts_of_the_file_follow_each_other():
    words = (ledger.REVISION, ledger.DECIDED, ledger.KEPT, ledger.END_OF_CUT)
    assert ledger.page_at(0) == ledger.CONTROL_BYTES > max(words) * ledger.WORD_BYTES
    for page in range(ledger.PAGES):
        assert ledger.page_at(page) % ledger.WORD_BYTES == 0, "a word is stored at once"
        assert ledger.page_at(page + 1) - ledger.page_at(page) == ledger.PAGE_BYTES
    assert ledger.page_at(ledger.PAGES) == ledger.RECORDS_AT

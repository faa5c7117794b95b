"""The ledger: what survives of a worker's outcomes, wherever a SIGKILL struck."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from soloist.protocol import ledger

payload_lists = st.lists(st.binary(max_size=30), max_size=6)


def write(leases):
    return b"".join(ledger.record(lease, payload) for lease, payload in leases)


def numbered(payloads, first=1):
    return list(enumerate(payloads, start=first))


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
        record = bytearray(ledger.record(1, b"x"))
        record[12:16] = b"\xff" * 4
        assert list(ledger.scan(bytes(record))) == []

    def test_gives_no_lease_twice_and_none_that_was_never_given_out(self):
        assert list(ledger.scan(write([(1, b"a"), (1, b"b")]))) == [(1, b"a")]
        assert list(ledger.scan(write([(0, b"a"), (1, b"b")]))) == []

    def test_ends_at_the_end_mark_whatever_follows(self):
        data = write([(1, b"a")]) + ledger.END + write([(2, b"b"), (3, b"c")])
        assert list(ledger.scan(data)) == [(1, b"a")]


OLD = numbered([b"older-1", b"older-2", b"older-3", b"older-4"], first=1)
NEW = numbered([b"newer-5", b"newer-6"], first=5)


class TestOverwritten:
    """Records of the same size are the trap: the leftovers begin just where the new ones end."""

    @pytest.mark.parametrize("count", [0, 1])
    def test_from_the_start_never_gives_an_older_record(self, count):
        """Whatever bytes of the next append were written when the worker died."""
        kept = NEW[:count]
        appended = write(NEW[count : count + 1]) + ledger.END
        for cut in range(len(appended) + 1):
            file = bytearray(write(OLD) + ledger.END)
            begun = write(kept) + (ledger.END if kept else b"")
            file[: len(begun)] = begun
            offset = len(write(kept))
            file[offset : offset + cut] = appended[:cut]
            found = list(ledger.scan(bytes(file)))
            if count or cut:
                assert not {lease for lease, _ in found[count:]} & {1, 2, 3, 4} or cut < 5
                assert found[:count] == kept
            allowed = [kept, NEW[: count + 1]]
            if not count and cut < 5:
                # Nothing that differs has been written: the old records stand, all still whole.
                allowed.append(OLD)
            assert found in allowed

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
        self.file = bytearray(400)
        self.offset = 0
        self.lease = 0
        self.finished = []
        self.begun = None
        self.is_dead = False

    def put(self, data):
        self.file[self.offset : self.offset + len(data)] = data

    @precondition(lambda self: not self.is_dead)
    @rule(payload=st.sampled_from([b"", b"a", b"b", b"xxxxx", b"yyyyy"]))
    def append(self, payload):
        self.lease += 1
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

    @invariant()
    def gives_what_was_finished_since_the_start_and_nothing_older(self):
        found = list(ledger.scan(bytes(self.file)))
        allowed = [self.finished]
        if self.is_dead:
            allowed.append([*self.finished, self.begun])
        assert found in allowed


TestLedgerWalk = LedgerWalk.TestCase

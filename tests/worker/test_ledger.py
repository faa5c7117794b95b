"""Claims and the ledger, against the supervisor's side over a real pipe and a real file."""

import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from soloist.protocol import codec
from soloist.protocol.errors import ClientConnectError, ClientError, LocalProtocolError, to_info
from soloist.protocol.ledger import CHUNK_ITEMS, NO_LEASE, record
from soloist.protocol.messages import (
    Answer,
    Answers,
    Broken,
    Chunk,
    Failure,
    Lease,
    Loaded,
    Ready,
    Run,
    Snapshot,
)
from soloist.supervisor import ledger as supervisor_ledger
from soloist.worker import ledger as worker_ledger
from soloist.worker.ledger import Claims, Ledger


class Pair:
    """Both sides of what one worker shares with its supervisor."""

    def __init__(self):
        self.supervisor = supervisor_ledger.Ledger()
        self.claims = Claims(self.supervisor.grants_r)
        self.ledger = Ledger(self.supervisor.outcomes)

    def grant(self, *numbers):
        """Grant leases; gives the message that the worker is still to get."""
        leases = tuple(Lease(n, b"prompt %d" % n, False) for n in numbers)
        self.supervisor.grant(numbers)
        return Run(leases, 0)

    def send(self, *numbers):
        self.claims.add(self.grant(*numbers))

    def claim(self):
        lease = self.claims.claim()
        return None if lease is None else lease.number

    def append(self, lease, text="text", acked=0):
        outcome = Answer(lease, 0.5, text, 1, b"")
        self.ledger.append(lease, codec.encode(outcome), acked=acked)
        return outcome

    @property
    def size(self):
        return os.fstat(self.supervisor.outcomes).st_size

    @property
    def memory(self):
        return 512 * os.fstat(self.supervisor.outcomes).st_blocks


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.supervisor.close()


class TestClaims:
    def test_without_leases_there_is_none(self, pair):
        assert pair.claims.is_empty()
        assert pair.claim() is None

    def test_they_are_claimed_in_order_with_their_prompts(self, pair):
        pair.send(1, 2)
        pair.send(3)
        assert not pair.claims.is_empty()
        assert pair.claims.claim() == Lease(1, b"prompt 1", False)
        assert [pair.claim(), pair.claim(), pair.claim()] == [2, 3, None]
        assert pair.claims.is_empty()

    def test_one_without_a_grant_does_not_run(self, pair):
        pair.claims.add(Run((Lease(1, b"p", False),), 0))
        assert pair.claim() is None

    def test_what_was_taken_back_is_forgotten(self, pair):
        pair.send(1, 2, 3)
        assert pair.claim() == 1
        assert pair.supervisor.take_back() == [2, 3]
        assert pair.claim() is None
        assert pair.claims.is_empty()

    def test_what_was_taken_back_before_newer_ones_is_skipped(self, pair):
        pair.send(1, 2, 3)
        assert pair.claim() == 1
        pair.supervisor.take_back()
        pair.send(4, 5)
        assert [pair.claim(), pair.claim()] == [4, 5]
        assert pair.claims.is_empty(), "or the last outcome would be held back"
        assert pair.claim() is None

    def test_all_but_the_running_one_can_be_taken_back_and_come_again(self, pair):
        pair.send(1, 2)
        assert pair.claim() == 1
        assert pair.supervisor.take_back() == [2]
        assert pair.supervisor.take_back() == []
        pair.send(3)
        assert [pair.claim(), pair.claim()] == [3, None]

    def test_a_grant_before_its_message_is_kept(self, pair):
        pair.send(1)
        pair.supervisor.take_back()
        message = pair.grant(2)
        assert pair.claim() is None, "2 has not arrived"
        assert pair.supervisor.take_back() == [], "but it is claimed"
        pair.claims.add(message)
        assert [pair.claim(), pair.claim()] == [2, None]

    def test_a_grant_is_not_read_while_nothing_has_arrived(self, pair):
        pair.grant(1)
        assert pair.claim() is None
        assert pair.supervisor.take_back() == [1]

    def test_the_highest_acknowledgement_counts(self, pair):
        for acked in (3, 7, 5):
            pair.claims.add(Run((), acked))
        assert pair.claims.acked == 7

    def test_a_whole_batch_fits_into_the_pipe(self, pair):
        numbers = range(1, 514)
        pair.send(*numbers[:257])
        pair.send(*numbers[257:])
        assert pair.supervisor.take_back() == list(numbers)


class ClaimsWalk(RuleBasedStateMachine):
    """Grants, late messages, claims and revocations in any order."""

    def __init__(self):
        super().__init__()
        self.pair = Pair()
        self.next = 1
        self.outstanding = []
        self.on_their_way = []
        self.claimed = []
        self.taken = []

    @rule(count=st.integers(1, 4))
    def grant(self, count):
        numbers = list(range(self.next, self.next + count))
        self.next += count
        self.on_their_way.append(self.pair.grant(*numbers))
        self.outstanding += numbers

    @precondition(lambda self: self.on_their_way)
    @rule()
    def arrive(self):
        self.pair.claims.add(self.on_their_way.pop(0))

    @rule()
    def claim(self):
        lease = self.pair.claims.claim()
        if lease is not None:
            self.claimed.append(lease.number)
            assert lease.prompt == b"prompt %d" % lease.number

    @rule()
    def take_back(self):
        self.taken += self.pair.supervisor.take_back()

    @invariant()
    def nobody_has_what_the_other_has(self):
        assert not set(self.claimed) & set(self.taken)
        assert self.claimed == sorted(set(self.claimed))

    def teardown(self):
        while self.on_their_way:
            self.arrive()
        for _ in range(self.next):
            self.claim()
        assert sorted(self.claimed + self.taken) == self.outstanding
        assert self.pair.claims.is_empty() or not self.outstanding
        self.pair.supervisor.close()


TestClaimsWalk = ClaimsWalk.TestCase
TestClaimsWalk.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestLedger:
    def test_an_unused_one_is_empty(self, pair):
        assert pair.supervisor.read(is_over=True) == []

    def test_outcomes_are_read_in_order(self, pair):
        first = pair.append(1)
        failure = Failure(2, 0.1, to_info(ClientError("no", api_status=500)))
        pair.ledger.append(2, codec.encode(failure), acked=0)
        third = pair.append(3, "")
        assert pair.supervisor.read(is_over=True) == [first, failure, third]

    def test_reading_takes_nothing_away(self, pair):
        pair.append(1)
        assert pair.supervisor.read(is_over=True) == pair.supervisor.read(is_over=True) != []

    def test_what_is_not_acknowledged_stays(self, pair):
        outcomes = [pair.append(lease, acked=max(0, lease - 2)) for lease in range(1, 50)]
        assert pair.supervisor.read(is_over=True)[-2:] == outcomes[-2:]

    def test_once_all_is_acknowledged_it_starts_again(self, pair):
        sizes = set()
        for lease in range(1, 100):
            outcome = pair.append(lease, acked=lease - 1)
            assert pair.supervisor.read(is_over=True) == [outcome]
            sizes.add(pair.size)
        assert len(sizes) <= 2

    @pytest.mark.parametrize("newer", [1, 10, 40, 4000])
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_a_stale_record_is_never_read_after_overwriting(self, pair, newer, count):
        for lease in range(1, 6):
            pair.append(lease, "x" * 10, acked=0)
        new = [pair.append(6 + i, "y" * newer, acked=5) for i in range(count)]
        assert pair.supervisor.read(is_over=True) == new

    def test_what_looks_like_a_record_inside_an_older_one_is_never_read(self, pair):
        """Payloads are the user's: a part of one may lie just where the next record ends."""
        forged = record(3, codec.encode(Answer(3, 0.5, "forged", 1, b"")))
        new = codec.encode(Answer(2, 0.5, "new", 1, b""))
        pair.ledger.append(1, new + forged, acked=0)
        pair.ledger.append(2, new, acked=1)
        assert [outcome.text for outcome in pair.supervisor.read(is_over=True)] == ["new"]

    def test_large_outcomes_are_written_whole(self, pair):
        text = "ä" * 5_000_000
        outcome = pair.append(1, text)
        assert pair.supervisor.read(is_over=True) == [outcome]

    def test_what_a_system_call_left_over_is_written_too(self, pair, monkeypatch):
        pwrite = os.pwrite
        monkeypatch.setattr(
            worker_ledger.os, "pwrite", lambda file, data, at: pwrite(file, data[:7], at)
        )
        outcomes = [pair.append(lease, "some text") for lease in (1, 2, 3)]
        assert pair.supervisor.read(is_over=True) == outcomes

    def test_memory_goes_back_after_a_large_one(self, pair):
        pair.append(1, "x" * 5_000_000)
        pair.append(2, acked=1)
        assert pair.memory < 1_000_000

    def test_a_record_cut_short_is_not_read_and_those_before_it_are(self, pair):
        first = pair.append(1)
        size = pair.size
        pair.append(2, "x" * 100)
        os.ftruncate(pair.supervisor.outcomes, size + 30)
        assert pair.supervisor.read(is_over=True) == [first]

    def test_what_is_no_message_ends_the_reading(self, pair):
        first = pair.append(1)
        pair.ledger.append(2, b"\xff garbage", acked=0)
        pair.append(3)
        assert pair.supervisor.read(is_over=True) == [first]

    def test_what_a_ledger_does_not_hold_is_left_out(self, pair):
        pair.ledger.append(1, codec.encode(Ready()), acked=0)
        second = pair.append(2)
        assert pair.supervisor.read(is_over=True) == [second]


LOADED = Loaded(1, 4711, True)
BROKEN = Broken(True, to_info(ClientConnectError("no")))


class TestWordsOfTheWorker:
    """``Loaded`` and ``Broken`` belong to no lease."""

    def say(self, pair, message, acked=0):
        pair.ledger.append(NO_LEASE, codec.encode(message), acked=acked)

    def test_loaded_is_read(self, pair):
        self.say(pair, LOADED)
        assert pair.supervisor.read(is_over=True) == [LOADED]

    def test_loaded_does_not_hide_the_first_outcome(self, pair):
        self.say(pair, LOADED)
        first = pair.append(1)
        assert first in pair.supervisor.read(is_over=True)
        second = pair.append(2)
        assert pair.supervisor.read(is_over=True)[-2:] == [first, second]

    def test_broken_after_loaded_is_read(self, pair):
        self.say(pair, LOADED)
        self.say(pair, BROKEN)
        assert BROKEN in pair.supervisor.read(is_over=True)

    @pytest.mark.parametrize("acked", [0, 1, 2])
    def test_broken_after_outcomes_is_read_and_hides_none_that_is_needed(self, pair, acked):
        outcomes = [pair.append(1), pair.append(2)]
        self.say(pair, BROKEN, acked=acked)
        read = pair.supervisor.read(is_over=True)
        assert read[-1] == BROKEN
        assert read[:-1] == ([] if acked == 2 else outcomes)


class TestSnapshots:
    """They belong to a lease and come before its outcome, or before the first lease."""

    def say(self, pair, lease, data=b"state", acked=0):
        snapshot = Snapshot(lease, data)
        pair.ledger.append(lease, codec.encode(snapshot), acked=acked)
        return snapshot

    def test_one_of_the_beginning_is_read_until_the_first_outcome(self, pair):
        pair.ledger.append(NO_LEASE, codec.encode(LOADED), acked=0)
        snapshot = self.say(pair, NO_LEASE)
        assert pair.supervisor.read(is_over=True)[-1] == snapshot
        first = pair.append(1)
        assert pair.supervisor.read(is_over=True) == [first]

    def test_one_of_a_turn_is_read_with_its_outcome(self, pair):
        self.say(pair, NO_LEASE)
        snapshot = self.say(pair, 1)
        assert pair.supervisor.read(is_over=True) == [snapshot], "the worker may die here"
        first = pair.append(1)
        assert pair.supervisor.read(is_over=True) == [snapshot, first]

    def test_one_that_did_not_change_leaves_its_outcome_alone(self, pair):
        self.say(pair, 1)
        pair.append(1)
        second = pair.append(2, acked=1)
        assert pair.supervisor.read(is_over=True) == [second]

    @pytest.mark.parametrize("size", [0, 5, 500])
    def test_a_stale_one_is_never_read_after_overwriting(self, pair, size):
        for lease in range(1, 20):
            snapshot = self.say(pair, lease, b"%d" % lease + b"x" * (size * (lease % 3)), lease - 1)
            assert pair.supervisor.read(is_over=True) == [snapshot]
            outcome = pair.append(lease, "y" * (size * (lease % 2)), acked=lease - 1)
            assert pair.supervisor.read(is_over=True) == [snapshot, outcome]

    def test_what_is_not_acknowledged_is_kept_with_them(self, pair):
        messages = []
        for lease in (1, 2, 3):
            messages += [self.say(pair, lease), pair.append(lease)]
        assert pair.supervisor.read(is_over=True) == messages


def pages_of(pair, *leases, acked=0, text=b"\xa1x"):
    """A page with an answer for each lease."""
    page = pair.ledger.page(leases[0], acked=acked)
    for lease in leases:
        assert page.put(text, lease / 10)
    return page


def answers(*leases, text="x"):
    durations = struct.pack(f"={len(leases)}d", *[lease / 10 for lease in leases])
    return Answers(leases[0], durations, (text,) * len(leases))


class TestPages:
    """The answers of a chunk."""

    def test_what_was_put_is_read(self, pair):
        page = pages_of(pair, 1, 2, 3)
        assert pair.supervisor.read(is_over=True) == [answers(1, 2, 3)]
        page.put(b"\xa1y", 0.5)
        (found,) = pair.supervisor.read(is_over=True)
        assert found.texts == ("x", "x", "x", "y")

    def test_they_are_read_while_the_worker_lives_where_stores_are_seen_in_order(
        self, pair, monkeypatch
    ):
        pages_of(pair, 1, 2)
        for is_in_order in (True, False):
            monkeypatch.setattr(supervisor_ledger, "STORES_IN_ORDER", is_in_order)
            assert pair.supervisor.read(is_over=False) == [answers(1, 2)] * is_in_order

    def test_of_a_worker_without_chunks_there_are_none(self, pair):
        pair.append(1)
        assert pair.memory <= 4096
        assert len(pair.supervisor.read(is_over=True)) == 1

    def test_an_answer_is_not_there_before_it_is_whole(self, pair):
        """SIGKILL comes between two stores: whatever was stored, the count says what counts."""
        page = pages_of(pair, 1, 2)
        page._memory[page._position : page._position + 2] = b"\xa1z"
        assert pair.supervisor.read(is_over=True) == [answers(1, 2)]
        page._durations[2] = 7.0
        assert pair.supervisor.read(is_over=True) == [answers(1, 2)]

    def test_a_page_that_was_begun_anew_holds_nothing_old(self, pair):
        pages_of(pair, 1, 2, 3)
        pages_of(pair, 4, 5, acked=3)
        pair.ledger.page(6, acked=5)
        assert pair.supervisor.read(is_over=True) == [answers(4, 5)]

    def test_two_chunks_are_kept_until_they_are_acknowledged(self, pair):
        pages_of(pair, 1, 2)
        pages_of(pair, 3, 4)
        assert pair.supervisor.read(is_over=True) == [answers(1, 2), answers(3, 4)]
        with pytest.raises(LocalProtocolError, match="before there was room"):
            pair.ledger.page(5, acked=1)

    def test_what_is_elsewhere_leaves_a_gap_and_comes_in_its_place(self, pair):
        page = pages_of(pair, 1, 2)
        page.take()
        large = pair.append(3, "large")
        page.skip()
        page.put(b"\xa1x", 0.4)
        assert pair.supervisor.read(is_over=True) == [answers(1, 2), large, answers(4)]

    def test_records_of_the_worker_itself_stay_at_both_ends(self, pair):
        pair.ledger.append(NO_LEASE, codec.encode(LOADED), acked=0)
        pages_of(pair, 1)
        assert pair.supervisor.read(is_over=True) == [LOADED, answers(1)]
        pair.append(2)
        pair.ledger.append(NO_LEASE, codec.encode(BROKEN), acked=0)
        assert pair.supervisor.read(is_over=True)[-1] == BROKEN

    def test_what_does_not_fit_is_refused_and_a_gap_always_fits(self, pair):
        page = pair.ledger.page(1, acked=0)
        large = b"\xda\xff\xff" + b"x" * 0xFFFF
        count = 0
        while page.put(large, 0.0):
            count += 1
        page.take()
        page.skip(CHUNK_ITEMS - count)
        (found,) = pair.supervisor.read(is_over=True)
        assert [len(text) for text in found.texts] == [0xFFFF] * count
        other = pages_of(pair, 2000)
        assert other is not page
        assert pair.supervisor.read(is_over=True)[-1] == answers(2000)

    def test_taken_is_what_was_not_taken_yet(self, pair):
        page = pages_of(pair, 1, 2)
        assert page.take() == (0, struct.pack("=2d", 0.1, 0.2), b"\xa1x\xa1x")
        page.put(b"\xa1y", 0.3)
        assert page.take() == (2, struct.pack("=d", 0.3), b"\xa1y")
        assert page.take() == (3, b"", b"")

    @pytest.mark.parametrize("count", [CHUNK_ITEMS + 1, 2**63])
    def test_garbage_in_a_page_is_no_answer(self, pair, count):
        page = pages_of(pair, 1)
        page._head[1] = count
        assert pair.supervisor.read(is_over=True) == []
        page._head[1] = 1
        page._memory[page._start] = 0xC1
        assert pair.supervisor.read(is_over=True) == []

    def test_memory_is_as_large_as_the_answers(self, pair):
        for first in range(1, 10_000, 500):
            pages_of(pair, *range(first, first + 500), acked=first - 1, text=b"\xa9" + b"x" * 9)
        assert pair.memory < 64 * 1024

    def test_in_a_file_that_was_cut_back_they_are_still_there(self, pair):
        pair.append(1, "x" * 2_000_000)
        pages_of(pair, 2, 3, acked=1)
        pair.append(4, acked=1)
        assert pair.memory < 1_000_000
        assert pair.supervisor.read(is_over=True)[0] == answers(2, 3)


class TestClaimsOfChunks:
    def send(self, pair, first, count, acked=0):
        pair.supervisor.grant(range(first, first + count))
        pair.claims.add(Chunk(first, ("p",) * count, acked))

    def test_each_prompt_is_claimed_by_itself(self, pair):
        self.send(pair, 1, 4)
        assert pair.claims.claim() == Chunk(1, ("p",) * 4, 0)
        assert pair.claims.claim_up_to(4) == 2
        assert pair.supervisor.take_back() == [3, 4]
        assert pair.claims.claim_up_to(4) == 0

    def test_one_of_the_next_chunk_is_kept_for_it(self, pair):
        self.send(pair, 1, 4)
        pair.claims.claim()
        assert pair.supervisor.take_back() == [2, 3, 4]
        self.send(pair, 5, 2, acked=1)
        assert pair.claims.claim_up_to(4) == 0
        assert pair.claims.is_committed
        assert pair.claims.claim().number == 5
        assert pair.claims.claim_up_to(6) == 6
        assert pair.claims.acked == 1

    def test_one_further_on_in_the_same_chunk_is_claimed(self, pair):
        self.send(pair, 1, 4)
        pair.claims.claim()
        os.read(pair.supervisor.grants_r, 16)
        assert pair.claims.claim_up_to(4) == 4

    def test_all_that_waits_is_taken_back_at_once(self, pair):
        self.send(pair, 1, CHUNK_ITEMS)
        self.send(pair, 1 + CHUNK_ITEMS, CHUNK_ITEMS)
        assert pair.supervisor.take_back() == list(range(1, 2 * CHUNK_ITEMS + 1))


def test_both_sides_let_go_of_everything(pair):
    pair.supervisor.close()
    for descriptor in (pair.supervisor.grants_r, pair.supervisor.outcomes):
        with pytest.raises(OSError):
            os.fstat(descriptor)
    pair.supervisor = supervisor_ledger.Ledger()


def test_without_memfd_a_file_without_a_name_serves(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    pair = Pair()
    outcome = pair.append(1)
    assert pair.supervisor.read(is_over=True) == [outcome]
    assert os.fstat(pair.supervisor.outcomes).st_nlink == 0
    pair.supervisor.close()

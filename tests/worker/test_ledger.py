"""Claims and the ledger, against the supervisor's side over a real pipe and a real file."""

import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from soloist.protocol import codec
from soloist.protocol.errors import ClientConnectError, ClientError, LocalProtocolError, to_info
from soloist.protocol.ledger import (
    CHUNK_ITEMS,
    DECIDED,
    END_OF_CUT,
    KEPT,
    NO_LEASE,
    PAGES,
    REVISION,
    record,
)
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

    def __init__(self, barrier=None):
        self.supervisor = supervisor_ledger.Ledger(barrier)
        self.claims = Claims(self.supervisor.grants_r, is_in_memory=barrier is not None)
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


def put(page, text, duration_s=0.0):
    """Put an answer there, as ``chunk.run`` does."""
    end = page.position + len(text)
    assert end <= page.end
    page.memory[page.position : end] = text
    page.durations[page.count] = duration_s
    page.position = end
    page.count += 1
    page.head[1] = page.count


def pages_of(pair, *leases, acked=0, text=b"\xa1x"):
    """A page with an answer for each lease."""
    page = pair.ledger.page(leases[0], acked=acked)
    for lease in leases:
        put(page, text, lease / 10)
    return page


def answers(*leases, text="x"):
    durations = struct.pack(f"={len(leases)}d", *[lease / 10 for lease in leases])
    return Answers(leases[0], durations, (text,) * len(leases))


class TestPages:
    """The answers of a chunk."""

    def test_what_was_put_is_read(self, pair):
        page = pages_of(pair, 1, 2, 3)
        assert pair.supervisor.read(is_over=True) == [answers(1, 2, 3)]
        put(page, b"\xa1y", 0.5)
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
        page.memory[page.position : page.position + 2] = b"\xa1z"
        assert pair.supervisor.read(is_over=True) == [answers(1, 2)]
        page.durations[2] = 7.0
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
        put(page, b"\xa1x", 0.4)
        assert pair.supervisor.read(is_over=True) == [answers(1, 2), large, answers(4)]

    def test_records_of_the_worker_itself_stay_at_both_ends(self, pair):
        pair.ledger.append(NO_LEASE, codec.encode(LOADED), acked=0)
        pages_of(pair, 1)
        assert pair.supervisor.read(is_over=True) == [LOADED, answers(1)]
        pair.append(2)
        pair.ledger.append(NO_LEASE, codec.encode(BROKEN), acked=0)
        assert pair.supervisor.read(is_over=True)[-1] == BROKEN

    def test_there_is_always_room_for_a_gap(self, pair):
        page = pair.ledger.page(1, acked=0)
        large = b"\xda\xff\xff" + b"x" * 0xFFFF
        while page.position + len(large) <= page.end:
            put(page, large)
        count = page.count
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
        put(page, b"\xa1y", 0.3)
        assert page.take() == (2, struct.pack("=d", 0.3), b"\xa1y")
        assert page.take() == (3, b"", b"")

    @pytest.mark.parametrize("count", [CHUNK_ITEMS + 1, 2**63])
    def test_garbage_in_a_page_is_no_answer(self, pair, count):
        page = pages_of(pair, 1)
        page.head[1] = count
        assert pair.supervisor.read(is_over=True) == []
        page.head[1] = 1
        page.memory[page._start] = 0xC1
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


def send_chunk(pair, first, count, acked=0):
    pair.supervisor.grant_chunk(range(first, first + count))
    pair.claims.add(Chunk(first, ("p",) * count, acked))


class TestClaimsOfChunksByThePipe:
    def test_each_prompt_is_claimed_by_itself(self, pair):
        send_chunk(pair, 1, 4)
        assert pair.claims.claim() == Chunk(1, ("p",) * 4, 0)
        assert pair.claims.claim_next(2, 4, [0]) == 2
        assert pair.supervisor.take_back() == [3, 4]
        assert pair.claims.claim_next(3, 4, [0]) == 0

    def test_one_of_the_next_chunk_is_kept_for_it(self, pair):
        send_chunk(pair, 1, 4)
        pair.claims.claim()
        assert pair.supervisor.take_back() == [2, 3, 4]
        send_chunk(pair, 5, 2, acked=1)
        assert pair.claims.claim_next(2, 4, [0]) == 0
        assert pair.claims.is_committed
        assert pair.claims.claim().number == 5
        assert pair.claims.claim_next(6, 6, [0]) == 6
        assert pair.claims.acked == 1

    def test_one_further_on_in_the_same_chunk_is_claimed(self, pair):
        send_chunk(pair, 1, 4)
        pair.claims.claim()
        os.read(pair.supervisor.grants_r, 16)
        assert pair.claims.claim_next(2, 4, [0]) == 4

    def test_all_that_waits_is_taken_back_at_once(self, pair):
        send_chunk(pair, 1, CHUNK_ITEMS)
        send_chunk(pair, 1 + CHUNK_ITEMS, CHUNK_ITEMS)
        assert pair.supervisor.take_back() == list(range(1, 2 * CHUNK_ITEMS + 1))

    def test_the_control_block_always_tells_to_ask(self, pair):
        assert pair.ledger.page(1, acked=0).control[0] != pair.claims.revision


class TestClaimsOfChunksInMemory:
    @pytest.fixture
    def pair(self):
        pair = Pair(barrier=self.at_barrier)
        self.meanwhile = []
        yield pair
        pair.supervisor.close()

    def at_barrier(self):
        for step in self.meanwhile:
            step()

    def begin(self, pair, first, count, done):
        """The worker has begun a chunk, and counted so many answers."""
        send_chunk(pair, first, count)
        assert pair.claims.claim().number == first
        return pages_of(pair, *range(first, first + done)) if done else None

    def claim(self, pair, page, lease, last):
        """What the worker does after each answer; the lease that it runs then, or 0."""
        if page.control[0] == pair.claims.revision:
            return lease
        return pair.claims.claim_next(lease, last, page.control)

    def test_one_that_waits_as_a_whole_is_taken_back_as_a_whole(self, pair):
        send_chunk(pair, 1, 3)
        send_chunk(pair, 4, 3)
        assert pair.supervisor.take_back() == [1, 2, 3, 4, 5, 6]
        assert pair.claims.claim() is None
        assert pair.supervisor.take_back() == []

    def test_of_one_that_was_claimed_and_not_begun_the_first_is_kept(self, pair):
        self.begin(pair, 1, 4, done=0)
        assert pair.supervisor.take_back() == [2, 3, 4]
        page = pages_of(pair, 1)
        assert self.claim(pair, page, 2, 4) == 0

    def test_the_one_that_is_counted_as_next_is_kept(self, pair):
        page = self.begin(pair, 1, 5, done=2)
        assert pair.supervisor.take_back() == [4, 5]
        assert self.claim(pair, page, 3, 5) == 3
        put(page, b"\xa1x")
        assert self.claim(pair, page, 4, 5) == 0
        assert self.claim(pair, page, 6, 7) == 6, "that was granted later"

    def test_one_that_is_counted_as_next_a_moment_too_late_is_not(self, pair):
        page = self.begin(pair, 1, 5, done=1)
        assert pair.supervisor.take_back() == [3, 4, 5]
        put(page, b"\xa1x")
        assert self.claim(pair, page, 3, 5) == 0

    def test_one_that_is_counted_before_the_barrier_ends_is_kept(self, pair):
        page = self.begin(pair, 1, 5, done=1)
        self.meanwhile = [lambda: put(page, b"\xa1x")]
        assert pair.supervisor.take_back() == [4, 5]
        assert self.claim(pair, page, 3, 5) == 3

    def test_what_waits_behind_it_comes_with_it_in_order(self, pair):
        self.begin(pair, 1, 3, done=1)
        pair.send(4, 5)
        send_chunk(pair, 6, 2)
        assert pair.supervisor.take_back() == [3, 4, 5, 6, 7]

    def test_of_one_that_is_done_nothing_is_left(self, pair):
        page = self.begin(pair, 1, 3, done=3)
        assert pair.supervisor.take_back() == []
        assert page.control[0] == 0, "nor is there anything to look at"
        send_chunk(pair, 4, 2)
        assert pair.supervisor.take_back() == [4, 5]

    def test_what_was_taken_back_once_is_not_taken_again(self, pair):
        page = self.begin(pair, 1, 5, done=1)
        assert pair.supervisor.take_back() == [3, 4, 5]
        send_chunk(pair, 6, 3, acked=1)
        assert pair.supervisor.take_back() == [6, 7, 8]
        assert pair.supervisor.take_back() == []
        send_chunk(pair, 9, 3, acked=1)
        put(page, b"\xa1x")
        assert self.claim(pair, page, 3, 5) == 0
        assert pair.claims.claim().number == 9
        assert self.claim(pair, page, 10, 11) == 10

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_each_chunk_is_found_in_its_page(self, pair, count):
        for first in range(1, 3 * count, 3):
            self.begin(pair, first, 3, done=0)
            page = pair.ledger.page(first, acked=first - 1)
            put(page, b"\xa1x")
            if first < 3 * count - 2:
                put(page, b"\xa1x")
                put(page, b"\xa1x")
        assert pair.supervisor.take_back() == [3 * count]
        send_chunk(pair, 100, 2, acked=3 * count - 1)
        assert pair.supervisor.take_back() == [100, 101]
        assert pair.supervisor.take_back() == []

    def test_of_one_whose_page_is_used_again_nothing_is_taken(self, pair):
        self.begin(pair, 1, 3, done=3)
        page = self.begin(pair, 4, 3, done=1)
        assert pair.supervisor.take_back() == [6]
        put(page, b"\xa1x")
        pair.claims.acked = 5
        send_chunk(pair, 7, 3)
        assert pair.claims.claim().number == 7
        pages_of(pair, 7, acked=5)
        assert pair.supervisor.take_back() == [9]
        assert pair.supervisor.take_back() == []

    @pytest.mark.parametrize("size", [0, 4, 8, 68, 76, 100])
    def test_of_a_file_that_user_code_has_cut_short_the_first_is_kept(self, pair, size):
        self.begin(pair, 1, 4, done=2)
        os.ftruncate(pair.supervisor.outcomes, size)
        assert pair.supervisor.take_back()[-1] == 4

    def test_if_there_is_no_barrier_any_more_the_chunk_runs_to_its_end(self, pair):
        page = self.begin(pair, 1, 4, done=1)

        def refuse():
            raise PermissionError(1, "membarrier")

        self.meanwhile = [refuse]
        assert pair.supervisor.take_back() == []
        for lease in (3, 4):
            put(page, b"\xa1x")
            assert self.claim(pair, page, lease, 4) == lease
        self.meanwhile = []
        send_chunk(pair, 5, 2)
        assert pair.supervisor.take_back() == [5, 6]

    def test_a_decision_about_nothing_stops_nobody(self, pair):
        """The worker claims the last one while the supervisor takes back: nothing is left."""
        page = self.begin(pair, 1, 3, done=1)
        self.meanwhile = [lambda: put(page, b"\xa1x")]
        assert pair.supervisor.take_back() == []
        put(page, b"\xa1x")
        page = self.begin(pair, 4, 3, done=1)
        assert page.control[REVISION] == 1
        assert self.claim(pair, page, 5, 6) == 5
        assert pair.claims.revision == 1

    def test_what_was_decided_is_there_before_it_is_said_to_be(self, pair, monkeypatch):
        page = self.begin(pair, 1, 3, done=1)
        words = []
        write = pair.supervisor._write

        def watched(*values):
            write(*values)
            words.append(tuple(page.control[:4]))

        monkeypatch.setattr(pair.supervisor, "_write", watched)
        pair.supervisor.take_back()
        assert words == [(1, 0, 0, 0), (1, 0, 2, 3), (1, 1, 2, 3)]

    def test_an_undecided_one_is_waited_for(self, pair, monkeypatch):
        page = self.begin(pair, 1, 5, done=1)
        control = page.control

        class Pause:
            def wait(self, timeout):
                waits.append(timeout)
                pair.supervisor._write(REVISION, 1)
                pair.supervisor._write(KEPT, 2, 5)
                pair.supervisor._write(DECIDED, 1)

        waits = []
        monkeypatch.setattr(worker_ledger.threading, "Event", Pause)
        pair.supervisor._write(REVISION, 1)
        assert pair.claims.claim_next(2, 5, control) == 2
        assert pair.claims.claim_next(3, 5, control) == 0
        assert len(waits) == 1

    def test_half_of_the_next_decision_is_not_taken_for_one(self, monkeypatch):
        """The supervisor begins to write the next one while the worker reads."""
        reads = iter(
            [
                (REVISION, 1),
                (DECIDED, 1),
                (KEPT, 2),
                (END_OF_CUT, 19),
                (REVISION, 2),
                (REVISION, 2),
                (DECIDED, 2),
                (KEPT, 12),
                (END_OF_CUT, 19),
                (REVISION, 2),
            ]
        )

        class Control:
            def __getitem__(self, word):
                expected, value = next(reads)
                assert word == expected
                return value

        class Pause:
            def wait(self, timeout):
                pass

        monkeypatch.setattr(worker_ledger.threading, "Event", Pause)
        claims = Claims(-1, is_in_memory=True)
        assert claims.claim_next(12, 19, Control()) == 12


class ChunksWalk(RuleBasedStateMachine):
    """Chunks are granted, run and taken back, step by step on both sides, in any order.

    The worker's steps may come between any two of the supervisor's.
    """

    def __init__(self):
        super().__init__()
        self.pair = Pair(barrier=self.steps_between)
        write = self.pair.supervisor._write

        def write_between(word, *values):
            self.steps_between()
            write(word, *values)

        self.pair.supervisor._write = write_between
        self.between = iter(())
        self.next = 1
        self.on_their_way = []
        self.sizes = []
        self.page = None
        self.running = self.last = 0
        self.has_counted = False
        self.acked = 0
        self.ran = []
        self.taken = []

    def steps_between(self):
        for _ in range(next(self.between, 0)):
            self.step()

    def open_chunks(self):
        return sum(last > self.acked for last in self.sizes)

    @precondition(lambda self: self.open_chunks() < PAGES)
    @rule(count=st.integers(1, 9))
    def grant_chunk(self, count):
        numbers = range(self.next, self.next + count)
        self.next += count
        self.sizes.append(numbers[-1])
        self.pair.supervisor.grant_chunk(numbers)
        self.on_their_way.append(Chunk(numbers[0], ("p",) * count, self.acked))

    @rule(count=st.integers(1, 3))
    def grant(self, count):
        numbers = range(self.next, self.next + count)
        self.next += count
        self.on_their_way.append(self.pair.grant(*numbers))

    @rule(between=st.lists(st.integers(0, 4), min_size=4, max_size=4))
    def take_back(self, between):
        self.between = iter(between)
        taken = self.pair.supervisor.take_back()
        self.between = iter(())
        self.taken += taken
        assert taken == sorted(taken)
        last = max(set(range(1, self.next)) - set(self.taken), default=0)
        self.sizes = [min(size, last) for size in self.sizes]

    @rule()
    def acknowledge(self):
        """The supervisor hears of all that is counted."""
        done = [lease for lease in self.ran if lease != self.running or self.has_counted]
        self.acked = max(done, default=0)

    @rule(count=st.integers(1, 12))
    def work(self, count):
        for _ in range(count):
            self.step()

    def step(self):
        """The worker's next step: hear, claim, count, look."""
        claims = self.pair.claims
        if not self.running:
            self.begin()
        elif not self.has_counted:
            put(self.page, b"\xa1x")
            self.has_counted = True
        elif self.running == self.last:
            self.running = 0
        else:
            control, lease = self.page.control, self.running + 1
            if control[REVISION] != claims.revision:
                if control[REVISION] != control[DECIDED]:
                    return  # it would wait
                lease = claims.claim_next(lease, self.last, control)
            self.run(lease)

    def begin(self):
        if self.on_their_way:
            self.pair.claims.add(self.on_their_way.pop(0))
        message = self.pair.claims.claim()
        if isinstance(message, Chunk):
            self.page = self.pair.ledger.page(message.number, acked=self.pair.claims.acked)
            self.last = message.number + len(message.prompts) - 1
            self.run(message.number)
        elif message is not None:
            self.ran.append(message.number)

    def run(self, lease):
        self.running, self.has_counted = lease, False
        if lease:
            self.ran.append(lease)

    @invariant()
    def nobody_has_what_the_other_has(self):
        assert not set(self.ran) & set(self.taken)
        assert self.ran == sorted(set(self.ran))

    def teardown(self):
        self.work(4 * self.next)
        assert sorted(self.ran + self.taken) == list(range(1, self.next))
        self.pair.supervisor.close()


TestChunksWalk = ChunksWalk.TestCase
TestChunksWalk.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


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

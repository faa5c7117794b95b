"""Hostile peers: the short form of ``python -m tests.faults.hostile``, and what once hurt."""

import itertools
import json
import random
import tempfile
from pathlib import Path

import msgpack
import pytest

from soloist.protocol import public, public_codec
from tests.faults.hostile import load
from tests.faults.hostile.messages import KINDS, Messages
from tests.support import ROOT
from tests.support_gateway import served

CORPUS = sorted((ROOT / "tests" / "faults" / "corpus").glob("*.jsonl"))


@pytest.fixture(scope="module")
def report():
    return load.run(8_000, rate=4_000, seed=10, reference_s=1.0, rest_s=0.5, max_errors=10**6)


class TestHostilePeers:
    def test_do_no_harm_to_a_good_one(self, report):
        assert report.failures == []
        assert len(report.times_s) > 20  # 100, were the machine never busy

    def test_make_nothing_raise(self, report):
        assert report.tracebacks == 0

    def test_cost_a_bounded_amount_of_memory(self, report):
        assert report.most_mib - report.before_mib < 150

    def test_were_hostile(self, report):
        assert report.sent == 8_000
        assert report.well_formed >= report.sent / 2
        assert report.raw == report.sent / load.RAW_EVERY
        told = {"protocol_error", "hello_required", "invalid_prompt", "session_closed", "RESULT"}
        assert told < set(report.heard)

    def test_are_reported_on(self, report):
        printed = "\n".join(report.lines())
        assert "8,000 messages" in printed
        assert "0 failures" in printed


class TestMessages:
    def test_are_the_same_for_the_same_seed(self):
        first, second = (Messages(random.Random(5)) for _ in range(2))
        assert [first.next() for _ in range(500)] == [second.next() for _ in range(500)]
        assert first.next() != Messages(random.Random(6)).next()

    def test_that_are_said_to_be_right_are(self):
        messages = Messages(random.Random(1))
        names = set()
        for _ in range(2_000):
            message = messages.valid()
            names.add(message["type"])
            read = public_codec.decode(msgpack.packb(message), public_codec.GATEWAY)
            assert type(read) is public.OF_GATEWAY[message["type"]]
        assert names == set(KINDS) == set(public.OF_GATEWAY)

    def test_are_wrong_in_many_ways(self):
        messages = Messages(random.Random(2))
        refused = set()
        for frames in itertools.islice(iter(messages.next, None), 5_000):
            _, said = public_codec.read([b"\0\0\0\0\1", *frames], public_codec.GATEWAY)
            if type(said) is public.Error:
                refused.add(said.info.message.split(",")[0])
        assert len(refused) > 100


def test_the_last_messages_can_be_saved_and_said_again(tmp_path):
    with tempfile.TemporaryDirectory(prefix="soloist-") as folder, served(Path(folder)) as gateway:
        crowd = load.Crowd(gateway, seed=3, count=300)
        for _ in range(300):
            crowd.strike()
        crowd.save(tmp_path / "saved.jsonl")
        crowd.close()
        saved = (tmp_path / "saved.jsonl").read_text().splitlines()
        assert len(saved) == 300
        assert set(json.loads(saved[0])) == {"connection", "frames"}
        load.replay(tmp_path / "saved.jsonl", gateway)
        for path in CORPUS:
            load.replay(path, gateway)

"""``protocol/vectors`` say what the code does, and leave nothing of the specification out."""

import re

import msgpack
import pytest

from soloist.protocol import public, public_codec
from tests import vectors
from tests.support import ROOT

MESSAGES = vectors.load("messages")
INVALID = vectors.load("cases")
DIALOGUES = vectors.load("dialogues")
BY_NAME = {case["name"]: case for case in MESSAGES}
DIALECTS = {"to_broker": public_codec.BROKER, "to_gateway": public_codec.GATEWAY}
SENDER = b"\0\0\0\0\1"
SPEC = (ROOT / "protocol" / "SPEC.md").read_text()
SECTIONS = set(re.findall(r"^## (\d+\.\d+) ", SPEC, re.M))
STEPS = {"connect", "send", "send_frames", "expect", "quiet_ms", "close"}


def decoded(case):
    """The case's bytes as messages, one for each of its directions."""
    data = bytes.fromhex(case["hex"])
    return [
        public_codec.decode_reply(data)
        if direction == "to_client"
        else public_codec.decode(data, DIALECTS[direction])
        for direction in case["directions"]
    ]


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


@named(MESSAGES)
class TestMessages:
    def test_are_the_bytes_of_their_values(self, case):
        assert set(case) <= {"name", "directions", "hex", "value", "same_as"}
        value = vectors.value_of(case["value"])
        found = msgpack.unpackb(bytes.fromhex(case["hex"]))
        assert found == value
        assert list(found) == list(value)

    def test_are_read_by_whom_they_are_for(self, case):
        name = case["value"]["type"]
        cls = (public.OF_GATEWAY | public.TO_CLIENT)[name]
        assert [type(message) for message in decoded(case)] == [cls] * len(case["directions"])
        assert (name in public.TO_CLIENT) == (case["directions"] == ["to_client"])
        assert (name in public.OF_BROKER) or "to_broker" not in case["directions"]

    def test_mean_what_they_are_said_to_mean(self, case):
        if "same_as" in case:
            same = BY_NAME[case["same_as"]]
            assert "same_as" not in same
            assert decoded(case) == decoded(same)[:1] * len(case["directions"])
            assert case["hex"] != same["hex"]
        else:
            for message in decoded(case):
                assert public_codec.encode(message) == bytes.fromhex(case["hex"])


@named(INVALID)
def test_what_is_wrong_is_refused_with_its_error(case):
    assert set(case) <= {"name", "to", "routing_id", "frames", "envelope", "id", "code"}
    address = bytes.fromhex(case["routing_id"]) if "routing_id" in case else SENDER
    frames = [bytes.fromhex(frame) for frame in case["frames"]]
    for to in case["to"]:
        envelope, error = public_codec.read([address, *frames], DIALECTS[f"to_{to}"])
        assert type(error) is public.Error
        assert envelope == (address, *map(bytes.fromhex, case["envelope"]))
        assert error.id == vectors.value_of(case["id"])
        assert error.sequence is None
        info = error.info
        assert (info.code, info.retryable, info.started) == (case["code"], False, False)


@named(DIALOGUES)
class TestDialogues:
    def test_have_steps_that_there_are(self, case):
        assert set(case) <= {"name", "section", "needs", "steps"}
        assert set(case.get("needs", [])) <= {"a broker", "no keys"}
        assert case["section"] in SECTIONS
        connected, kept = set(), set()
        for step in case["steps"]:
            assert set(step) - {"peer", "skip", "endpoint"} <= STEPS
            if "connect" in step:
                connected.add(step["peer"])
            assert step["peer"] in connected
            assert set(re.findall(r'\{"\$kept": "(\w+)"', str(step).replace("'", '"'))) <= kept
            kept |= set(step.get("expect", {}).get("keep", {}).values())

    def test_say_and_expect_messages_of_the_specification(self, case):
        for step in case["steps"]:
            if "send" in step:
                said = step["send"]
                known = {field.key for field in public.FIELDS[said["type"]]}
                assert set(said) <= {"v", "type", *known, "later"}
            if "expect" in step:
                expected = step["expect"]
                name = expected["equal"]["type"]
                known = {field.key for field in public.FIELDS[name]}
                paths = [*expected["equal"], *expected.get("present", ())]
                paths += [*expected.get("absent", ()), *expected.get("keep", ())]
                assert {path.split(".")[0] for path in paths} <= {"v", "type", *known}
                assert name in public.TO_CLIENT


class TestNothingIsLeftOut:
    @pytest.mark.parametrize("name", public.FIELDS)
    def test_of_a_messages_keys(self, name):
        values = [case["value"] for case in MESSAGES if case["value"]["type"] == name]
        said = {key for value in values for key in value if value[key] is not None}
        assert {field.key for field in public.FIELDS[name]} <= said
        widths = [case for case in MESSAGES if case["name"] == f"{name} in the widest encoding"]
        assert len(widths) == 1

    @pytest.mark.parametrize("name", public.FIELDS)
    def test_of_keys_that_may_be_missing(self, name):
        values = [case["value"] for case in MESSAGES if case["value"]["type"] == name]
        for field in public.FIELDS[name]:
            assert field.is_required or any(field.key not in value for value in values)

    @pytest.mark.parametrize("name", public.OF_GATEWAY)
    def test_of_keys_that_may_be_wrong(self, name):
        """Each key of each message, with another value than a right one, is refused somewhere."""
        right = {field.key: field for field in public.FIELDS[name]}
        wrong = set()
        for case in INVALID:
            found = _unpacked(bytes.fromhex(case["frames"][-1]))
            if isinstance(found, dict) and found.get("type") == name and found.get("v") == 1:
                wrong |= {key for key in right if not _fits(right[key], found)}
        assert wrong == set(right)

    def test_of_messages_in_dialogues(self):
        steps = [step for case in DIALOGUES for step in case["steps"]]
        said = {step["send"]["type"] for step in steps if "send" in step}
        heard = {step["expect"]["equal"]["type"] for step in steps if "expect" in step}
        assert said == set(public.OF_GATEWAY)
        assert heard == set(public.TO_CLIENT)

    def test_of_names(self):
        for cases in (MESSAGES, INVALID, DIALOGUES):
            names = [case["name"] for case in cases]
            assert len(names) == len(set(names))


def _unpacked(data):
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None


def _fits(field, message):
    found = message.get(field.key)
    if found is None:
        return not field.is_required
    return public_codec._CHECKS[field.kind](found)

"""Questions of clients and the handlers that answer them."""

import asyncio
import dataclasses
import logging
import threading

import pytest
from claude_agent_sdk import (
    PermissionResultAllow,
    PermissionResultDeny,
    PermissionUpdate,
)
from claude_agent_sdk.types import PermissionRuleValue

from soloist.protocol import codec
from soloist.protocol.messages import Control
from soloist.supervisor import control
from soloist.supervisor.control import MAX_QUESTIONS, ControlDesk
from soloist.worker.control import _permission

LIMIT_S = 20.0


class Counter:
    """Where one client asks; gives each answer as a map."""

    def __init__(self, handler=None):
        self.desk = ControlDesk(handler)
        self.replies = []
        self._news = threading.Condition()

    def put(self, kind="permission", data=None, *, own=None, prompt="p", session="", number=7):
        encoded = codec.encode_value(data or {}) if not isinstance(data, bytes) else data
        self.desk.ask(Control(number, 1, kind, encoded), prompt, session, own, self._reply)

    def ask(self, *args, **kwargs):
        """Ask, and wait for the answer."""
        count = len(self.replies)
        self.put(*args, **kwargs)
        return self.wait(count + 1)

    def wait(self, count):
        with self._news:
            assert self._news.wait_for(lambda: len(self.replies) >= count, LIMIT_S), "no answer"
            return codec.decode_value(self.replies[count - 1].data)

    def _reply(self, reply):
        with self._news:
            self.replies.append(reply)
            self._news.notify()


def answers(value):
    return Counter(lambda request: value)


class TestHandlers:
    def test_they_see_the_question(self):
        seen = []
        counter = Counter(lambda request: seen.append(request) or True)
        counter.ask("permission", {"tool_name": "Bash"}, prompt=[{"type": "text"}], session="talk")
        (request,) = seen
        assert (request.kind, request.data) == ("permission", {"tool_name": "Bash"})
        assert (request.prompt, request.session) == ([{"type": "text"}], "talk")

    def test_the_answer_bears_the_number_of_its_question(self):
        counter = answers(True)
        counter.ask(number=42)
        assert [reply.number for reply in counter.replies] == [42]

    def test_the_requests_own_comes_first(self):
        counter = answers(False)
        assert counter.ask(own=lambda request: True) == {"behavior": "allow"}
        assert counter.ask() == {"behavior": "deny"}

    def test_async_ones_are_run(self):
        async def handler(request):
            await asyncio.sleep(0)
            return request.data["tool_name"] == "Read"

        counter = Counter(handler)
        assert counter.ask(data={"tool_name": "Read"}) == {"behavior": "allow"}
        assert counter.ask(data={"tool_name": "Bash"}) == {"behavior": "deny"}

    def test_none_denies(self):
        assert Counter().ask() == {"error": "there is no on_control handler"}

    def test_one_that_thinks_does_not_hold_up_the_next(self):
        """Each has a thread of its own: a person may be asked."""
        person = threading.Event()
        counter = Counter(lambda request: person.wait(LIMIT_S) if request.data else False)
        counter.put(data={"slow": True}, number=1)
        assert counter.ask(number=2) == {"behavior": "deny"}
        person.set()
        assert counter.wait(2) == {"behavior": "allow"}
        assert [reply.number for reply in counter.replies] == [2, 1]

    def test_asking_never_waits_nor_runs_the_handler_here(self):
        threads = []
        counter = Counter(lambda request: threads.append(threading.current_thread()) or True)
        counter.ask()
        assert threads[0] is not threading.current_thread()
        assert threads[0].daemon

    @pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
    def test_one_that_raises_denies(self, error, caplog):
        def handler(request):
            raise error

        with caplog.at_level(logging.CRITICAL, logger="soloist.supervisor"):
            reply = Counter(handler).ask()
        assert reply == {"error": f"the on_control handler raised {type(error).__name__}"}

    def test_a_question_that_cannot_be_read_denies(self):
        assert "error" in answers(True).ask(data=b"\xc1")


class TestBound:
    def test_what_is_asked_beyond_it_is_denied(self):
        person = threading.Event()
        counter = Counter(lambda request: person.wait(LIMIT_S))
        for number in range(MAX_QUESTIONS):
            counter.put(number=number)
        reply = counter.ask(number=999)
        assert str(MAX_QUESTIONS) in reply["error"]
        assert counter.replies[0].number == 999
        person.set()
        counter.wait(MAX_QUESTIONS + 1)

    @pytest.mark.parametrize("error", [None, ValueError("no")])
    def test_doesnt_leak_places(self, monkeypatch, caplog, error):
        monkeypatch.setattr(control, "MAX_QUESTIONS", 2)

        def handler(request):
            if error is not None:
                raise error
            return True

        with caplog.at_level(logging.CRITICAL, logger="soloist.supervisor"):
            counter = Counter(handler)
            places = counter.desk._places
            for _ in range(5):
                counter.ask()
                assert places.acquire(timeout=LIMIT_S), "the one before is given back"
                places.release()

    def test_without_another_thread_it_denies(self, monkeypatch):
        """Not on the I/O thread, and without ending that."""

        def fail(self):
            raise RuntimeError("can't start new thread")

        counter = answers(True)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            assert "can't start new thread" in counter.ask()["error"]
        assert counter.desk._places._value == MAX_QUESTIONS
        assert counter.ask() == {"behavior": "allow"}


class TestPermission:
    @pytest.mark.parametrize(
        ("value", "behavior"), [(True, "allow"), (False, "deny"), (None, "deny")]
    )
    def test_yes_and_no_will_do(self, value, behavior):
        assert answers(value).ask() == {"behavior": behavior}

    def test_a_map_is_passed_on(self):
        value = {"behavior": "deny", "message": "no", "interrupt": True}
        assert answers(value).ask() == value

    @pytest.mark.parametrize("value", [1, "allow", [True], object(), PermissionResultDeny])
    def test_nonsense_denies(self, value, caplog):
        with caplog.at_level(logging.CRITICAL, logger="soloist.supervisor"):
            assert answers(value).ask().keys() == {"error"}

    def test_what_cannot_be_sent_denies(self):
        assert answers({"behavior": "allow", "updated_input": {"x": object()}}).ask().keys() == {
            "error"
        }

    @pytest.mark.parametrize(
        "value",
        [
            PermissionResultAllow(),
            PermissionResultAllow(updated_input={"command": "ls"}),
            PermissionResultAllow(
                updated_permissions=[
                    PermissionUpdate(
                        type="addRules",
                        rules=[PermissionRuleValue("Bash", "ls *"), PermissionRuleValue("Read")],
                        behavior="deny",
                        destination="session",
                    ),
                    PermissionUpdate(type="setMode", mode="plan", destination="session"),
                ]
            ),
            PermissionResultDeny(message="not today", interrupt=True),
        ],
        ids=repr,
    )
    def test_objects_of_the_sdk_arrive_in_the_worker_as_they_are(self, value):
        assert _permission(answers(value).ask()) == value


class TestHook:
    def test_its_output_is_wrapped(self):
        assert answers({"continue_": False}).ask("hook") == {"output": {"continue_": False}}

    def test_nothing_is_an_empty_output(self):
        assert answers(None).ask("hook") == {"output": {}}


class TestOtherKinds:
    def test_any_map_will_do(self):
        assert answers({"text": "yes", "n": [1, None]}).ask("echo") == {
            "text": "yes",
            "n": [1, None],
        }

    def test_dataclasses_are_maps_too(self):
        @dataclasses.dataclass
        class Reply:
            text: str
            note: str | None = None

        assert answers(Reply("yes")).ask("echo") == {"text": "yes"}

    @pytest.mark.parametrize("value", [None, True, "yes"])
    def test_what_is_no_map_denies(self, value, caplog):
        with caplog.at_level(logging.CRITICAL, logger="soloist.supervisor"):
            assert answers(value).ask("echo").keys() == {"error"}

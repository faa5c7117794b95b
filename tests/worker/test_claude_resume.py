"""Another client goes on with a conversation of the claude CLI."""

import asyncio
import gc
import json
import uuid
from types import SimpleNamespace

import psutil
import pytest

from soloist.protocol import codec
from soloist.protocol.content import ResultMessage, SystemMessage
from soloist.protocol.errors import ClientConnectError, ClientError
from soloist.worker.clients.claude import ClaudeClient
from soloist.worker.clients.claude_resume import Resumption, UnknownConversation
from tests import stand_in
from tests.worker.test_claude import answer, ask, connected, pid_of, run

SAVED = {"session_id": "saved"}
NEW = {"session_id": "begun", "is_new": True}


def result(session_id):
    return ResultMessage(
        subtype="success",
        duration_ms=0,
        duration_api_ms=0,
        is_error=False,
        num_turns=1,
        session_id=session_id,
    )


def begun(**options):
    """A conversation that has just begun, and the options that its CLI was started with."""
    resumption = Resumption(options)
    (way,) = resumption.ways()
    resumption.connected()
    return resumption, way


def ways_after(snapshot, **options):
    resumption = Resumption(options)
    resumption.restore(snapshot)
    return list(resumption.ways())


class TestBeginning:
    def test_it_chooses_the_id_so_that_there_is_a_snapshot_at_once(self):
        resumption, way = begun(model="m")
        assert uuid.UUID(way["session_id"]).version == 4
        assert way == {"model": "m", "session_id": way["session_id"]}
        assert resumption.snapshot() == {"session_id": way["session_id"], "is_new": True}

    def test_every_connection_begins_another(self):
        resumption, first = begun()
        (second,) = resumption.ways()
        assert first["session_id"] != second["session_id"]
        assert resumption.snapshot()["session_id"] == second["session_id"]

    def test_the_users_own_choice_stands(self):
        resumption, way = begun(session_id="mine")
        assert way == {"session_id": "mine"}
        assert resumption.snapshot() == {"session_id": "mine", "is_new": True}
        resumption, way = begun(resume="old", resume_session_at="m1")
        assert way == {"resume": "old", "resume_session_at": "m1"}
        assert resumption.snapshot() == {"session_id": "old", "is_new": True}

    def test_a_fork_is_a_conversation_of_its_own(self):
        resumption, way = begun(resume="old", fork_session=True)
        own = way["session_id"]
        assert way == {"resume": "old", "fork_session": True, "session_id": own}
        assert own != "old"
        assert resumption.snapshot() == {"session_id": own, "is_new": True}

    @pytest.mark.parametrize(
        "options", [{"continue_conversation": True}, {"extra_args": {"resume": "old"}}]
    )
    def test_what_the_cli_chooses_is_known_with_its_first_result(self, options):
        resumption, way = begun(**options)
        assert way == options
        assert resumption.snapshot() is None
        resumption.saw(result("told"))
        assert resumption.snapshot() == {"session_id": "told"}

    def test_what_the_cli_does_not_keep_has_no_snapshot(self):
        resumption, _ = begun(extra_args={"no-session-persistence": None})
        resumption.saw(result("told"))
        assert resumption.snapshot() is None


class TestFollowing:
    def test_a_result_tells_that_something_was_answered_and_where(self):
        resumption, way = begun()
        resumption.saw(result(way["session_id"]))
        assert resumption.snapshot() == {"session_id": way["session_id"]}
        resumption.saw(result("another"))
        assert resumption.snapshot() == {"session_id": "another"}

    def test_until_then_nothing_moves_it(self):
        resumption, _ = begun()
        before = resumption.snapshot()
        for message in (
            SystemMessage(subtype="init", data={"session_id": "another"}),
            result(""),
            result(None),
            SimpleNamespace(session_id="another"),
            object(),
        ):
            resumption.saw(message)
        assert resumption.snapshot() == before

    def test_settings_go_along_until_a_new_conversation(self):
        resumption, _ = begun(model="m")
        resumption.chose("model", "n")
        resumption.chose("permission_mode", "plan")
        snapshot = resumption.snapshot()
        assert snapshot["settings"] == {"model": "n", "permission_mode": "plan"}
        way = ways_after({**snapshot, "is_new": False}, model="m")[0]
        assert (way["model"], way["permission_mode"]) == ("n", "plan")
        assert next(resumption.ways())["model"] == "m"
        assert "settings" not in resumption.snapshot()

    def test_its_state_can_be_seen(self):
        resumption, _ = begun(session_id="mine")
        assert repr(resumption) == "<Resumption session_id='mine' is_new=True>"


class TestRestoring:
    def test_a_conversation_with_answers_is_resumed_or_nothing(self):
        assert ways_after(SAVED, model="m") == [{"model": "m", "resume": "saved"}]

    @pytest.mark.parametrize(
        "choice",
        [
            {"session_id": "mine"},
            {"resume": "old"},
            {"resume": "old", "fork_session": True, "session_id": "mine"},
            {"resume": "old", "resume_session_at": "m1", "resume_drops_turn": "m2"},
            {"continue_conversation": True},
        ],
    )
    def test_what_the_user_began_with_is_not_begun_with_again(self, choice):
        assert ways_after(SAVED, **choice) == [{"resume": "saved"}]

    def test_nor_do_flags_of_the_users_choose_another(self):
        flags = {"session-id": "mine", "continue": None, "verbose": None}
        assert ways_after(SAVED, extra_args=flags) == [
            {"extra_args": {"verbose": None}, "resume": "saved"}
        ]

    def test_one_without_answers_may_begin_again_under_another_id(self):
        resumption = Resumption({"model": "m"})
        resumption.restore(NEW)
        ways = resumption.ways()
        assert next(ways) == {"model": "m", "resume": "begun"}
        assert resumption.snapshot() == NEW
        fresh = next(ways)["session_id"]
        assert fresh != "begun"
        assert resumption.snapshot() == {"session_id": fresh, "is_new": True}
        assert list(ways) == []

    def test_a_fork_without_answers_is_forked_again(self):
        first, second = ways_after(NEW, resume="old", fork_session=True)
        assert first == {"resume": "begun"}
        assert (second["resume"], second["fork_session"]) == ("old", True)

    def test_the_users_own_resume_begins_again_as_it_did(self):
        options = {"resume": "old", "resume_session_at": "m1"}
        assert ways_after({"session_id": "old", "is_new": True}, **options) == [options]

    @pytest.mark.parametrize(
        "options",
        [
            {"continue_conversation": True, "session_id": "mine", "fork_session": True},
            {"resume": "old", "extra_args": {"resume": "older"}},
        ],
    )
    def test_what_the_cli_would_choose_anew_is_never_begun_again(self, options):
        (way,) = ways_after(NEW, **options)
        assert way["resume"] == "begun"
        assert "continue_conversation" not in way

    def test_only_a_connection_uses_it_up(self):
        resumption = Resumption({})
        resumption.restore(SAVED)
        assert list(resumption.ways()) == list(resumption.ways()) == [{"resume": "saved"}]
        resumption.connected()
        assert resumption.snapshot() == SAVED
        (way,) = resumption.ways()
        assert "resume" not in way

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "saved",
            [],
            {},
            {"session_id": ""},
            {"session_id": b"saved"},
            {"session_id": None, "is_new": True},
            {"session_id": "x", "is_new": 1},
            {"session_id": "x", "settings": []},
            {"session_id": "x", "settings": {"cli_path": "/bin/sh"}},
            {"session_id": "x", "settings": {"model": 1}},
        ],
    )
    def test_what_is_no_snapshot_is_refused_for_good(self, value):
        with pytest.raises(ClientConnectError, match="no snapshot") as caught:
            ClaudeClient().restore(value)
        assert not caught.value.retryable


@pytest.fixture(autouse=True)
def _collected():
    """What a test left open complains (ResourceWarning) in that very test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    return stand_in.install(tmp_path_factory.mktemp("stand_in"))


@pytest.fixture
def options(cli, tmp_path):
    return {"cli_path": cli, "env": {stand_in.SESSIONS_VARIABLE: str(tmp_path)}}


async def killed(client):
    """Kill the client's CLI; gives the snapshot of before, as it travels."""
    snapshot = client.snapshot()
    psutil.Process(client._client._transport._process.pid).kill()
    await asyncio.wait({client._reader})
    await client.disconnect()
    return codec.decode_value(codec.encode_value(snapshot))


async def begin(options):
    client = ClaudeClient(**options)
    await client.connect()
    return client


async def history_after(snapshot, options):
    """What the CLI of another client remembers."""
    client = ClaudeClient(**options)
    client.restore(snapshot)
    await client.connect()
    try:
        return json.loads(await answer(client, "/history"))
    finally:
        await client.disconnect()


class TestWithTheSdk:
    def test_another_client_goes_on_after_the_cli_was_killed(self, options):
        async def scenario():
            client = await begin(options)
            assert (await ask(client, "one"))[-1].session_id == client.snapshot()["session_id"]
            await ask(client, "two")
            snapshot = await killed(client)
            history = await history_after(snapshot, options)
            return history, await history_after(snapshot, options)

        assert run(scenario()) == (["one", "two"], ["one", "two", "/history"])

    def test_the_snapshot_of_before_the_first_turn_holds_a_turn_that_was_cut_off(self, options):
        async def scenario():
            client = await begin(options)
            snapshot = client.snapshot()
            with pytest.raises(ClientError):
                await ask(client, "/crash 1 unfinished")
            await client.disconnect()
            return snapshot["is_new"], await history_after(snapshot, options)

        assert run(scenario()) == (True, ["/crash 1 unfinished"])

    def test_where_nothing_was_said_nothing_is_missing(self, options):
        async def scenario():
            return await history_after(await killed(await begin(options)), options)

        assert run(scenario()) == []

    def test_what_the_cli_has_lost_is_an_error_for_good_and_never_a_blank(self, options, tmp_path):
        async def scenario():
            client = await begin(options)
            await ask(client, "one")
            snapshot = await killed(client)
            (tmp_path / snapshot["session_id"]).unlink()
            with pytest.raises(ClientConnectError, match="No conversation found") as caught:
                await history_after(snapshot, options)
            return caught.value

        error = run(scenario())
        assert isinstance(error, UnknownConversation)
        assert not error.retryable

    def test_a_session_id_that_is_taken_is_an_error_for_good(self, options):
        async def scenario():
            async with connected(options["cli_path"], env=options["env"]) as client:
                session_id = (await ask(client, "one"))[-1].session_id
            with pytest.raises(ClientConnectError, match="already in use") as caught:
                await ClaudeClient(**options, session_id=session_id).connect()
            return caught.value.retryable

        assert not run(scenario())

    def test_other_errors_at_the_start_may_pass(self, options):
        failing = {**options, "extra_args": {"stand-in-start": "crash:3"}}
        client = ClaudeClient(**failing)
        client.restore(SAVED)
        with pytest.raises(ClientConnectError) as caught:
            run(client.connect())
        assert caught.value.retryable

    def test_the_id_is_followed_where_the_cli_goes(self, options):
        """After ``/clear``, and where it resumes under a new id."""

        async def scenario():
            client = await begin(options)
            await ask(client, "one")
            first = client.snapshot()
            await ask(client, "/clear two")
            cleared = await killed(client)
            renaming = {**options, "extra_args": {"stand-in-resume": "renamed"}}
            client = ClaudeClient(**renaming)
            client.restore(cleared)
            await client.connect()
            assert client.snapshot() == cleared  # until the CLI has written more
            await ask(client, "three")
            renamed = await killed(client)
            ids = {snapshot["session_id"] for snapshot in (first, cleared, renamed)}
            return len(ids), await history_after(renamed, options)

        assert run(scenario()) == (3, ["/clear two", "three"])

    def test_a_fork_goes_on_as_the_fork(self, options):
        async def scenario():
            client = await begin(options)
            await ask(client, "common")
            root = await killed(client)
            forking = {**options, "resume": root["session_id"], "fork_session": True}
            untouched = await history_after(await killed(await begin(forking)), forking)
            client = await begin(forking)
            await ask(client, "in the fork")
            forked = await history_after(await killed(client), forking)
            return untouched, forked, await history_after(root, options)

        assert run(scenario()) == (["common"], ["common", "in the fork"], ["common"])

    def test_the_model_and_the_permission_mode_go_along(self, options):
        async def scenario():
            client = await begin(options)
            await client.set_model("other")
            await client.set_permission_mode("plan")
            await ask(client, "one")
            snapshot = await killed(client)
            client = ClaudeClient(**options)
            client.restore(snapshot)
            await client.connect()
            argv = json.loads(await answer(client, "/argv"))
            await client.disconnect()
            return argv

        argv = run(scenario())
        assert argv[argv.index("--model") + 1] == "other"
        assert argv[argv.index("--permission-mode") + 1] == "plan"

    def test_connecting_once_more_begins_anew(self, options):
        async def scenario():
            client = await begin(options)
            await ask(client, "one")
            snapshot = await killed(client)
            client = ClaudeClient(**options)
            client.restore(snapshot)
            await client.connect()
            first = await pid_of(client)
            await client.connect()
            history = json.loads(await answer(client, "/history"))
            assert await pid_of(client) != first
            assert client.snapshot()["session_id"] != snapshot["session_id"]
            await client.disconnect()
            return history

        assert run(scenario()) == []

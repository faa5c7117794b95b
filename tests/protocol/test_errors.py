"""Errors: their hierarchy, and how they cross a process boundary."""

import copy
import http
import inspect
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol import codec, errors
from soloist.protocol.messages import Failure
from tests.protocol import strategies

LEAVES = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, errors.SoloistError)
]
DETAILS = {
    errors.ClientError: {"type_name": "ValueError", "traceback_text": "t", "api_status": 529},
    errors.ResultNotSerializable: {"type_name": "Lock", "traceback_text": "t", "api_status": None},
    errors.RateLimited: {
        "type_name": "E",
        "traceback_text": "t",
        "api_status": 429,
        "retry_after_s": 1.5,
    },
    errors.WorkerLost: {"exitcode": -9, "stderr": "last words"},
}
name_of = lambda cls: cls.__name__  # noqa: E731


def cross(error):
    """As it arrives in another process."""
    failure = Failure(1, 0.5, errors.to_info(error))
    return errors.from_info(codec.decode(codec.encode(failure)).error)


class TestHierarchy:
    def test_every_class_has_a_code_of_its_own(self):
        assert len({cls.code for cls in LEAVES}) == len(LEAVES) > 20

    @pytest.mark.parametrize(
        ("cls", "base"),
        [
            (errors.ClientConnectError, ConnectionError),
            (errors.GatewayLost, ConnectionError),
            (errors.ClientNotSerializable, TypeError),
            (errors.InvalidOptions, ValueError),
            (errors.InvalidPrompt, TypeError),
            (errors.RequestTimeout, TimeoutError),
            (errors.PayloadTooLarge, ValueError),
            (errors.TooManyWorkers, ValueError),
            (errors.ResultNotSerializable, errors.ClientError),
            (errors.RateLimited, errors.ClientError),
            (errors.LocalProtocolError, errors.ProtocolError),
            (errors.RemoteProtocolError, errors.ProtocolError),
        ],
    )
    def test_errors_are_caught_by_their_ordinary_names(self, cls, base):
        assert issubclass(cls, base)
        assert issubclass(cls, errors.SoloistError)

    def test_errors_before_the_start_say_so(self):
        never_started = {cls for cls in LEAVES if cls("x").started is False}
        assert never_started == {
            errors.InvalidOptions,
            errors.InvalidPrompt,
            errors.RestartLimitReached,
            errors.QueueFull,
            errors.SessionBusy,
            errors.HelloRequired,
        }
        assert {cls("x").started for cls in LEAVES} == {False, None}

    def test_errors_that_may_pass_are_retryable(self):
        assert {cls for cls in LEAVES if cls("x").retryable} == {
            errors.GatewayLost,
            errors.HelloRequired,
            errors.ClientConnectError,
            errors.RateLimited,
            errors.RequestTimeout,
            errors.WorkerLost,
            errors.QueueFull,
            errors.SessionBusy,
        }

    def test_completed_answers_are_each_errors_own(self):
        first, second = errors.WorkerLost(), errors.WorkerLost()
        first.completed.append("answer")
        assert second.completed == []

    @pytest.mark.parametrize("cls", LEAVES, ids=name_of)
    def test_errors_can_be_copied_and_pickled(self, cls):
        error = cls("it failed", started=None, **DETAILS.get(cls, {}))
        error.completed = ["answer"]
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(twin) is cls
            assert str(twin) == "it failed"
            assert vars(twin) == vars(error)


class TestCrossing:
    @pytest.mark.parametrize("cls", LEAVES, ids=name_of)
    @pytest.mark.parametrize("started", [None, False, True])
    def test_keeps_class_message_and_all_that_is_known(self, cls, started):
        for message, is_retryable in (("", True), ("it failed \N{SNOWMAN}\n", False)):
            error = cls(message, started=started, **DETAILS.get(cls, {}))
            error.retryable = is_retryable
            arrived = cross(error)
            assert type(arrived) is cls
            assert str(arrived) == message
            assert arrived.started is started
            assert arrived.retryable is is_retryable
            assert arrived.details() == error.details() == DETAILS.get(cls, {})

    def test_details_are_tried_for_every_class_that_has_any(self):
        assert {cls for cls in LEAVES if cls().details()} == set(DETAILS)

    def test_gives_a_foreign_exception_as_a_description(self):
        class Quota(Exception):
            pass

        try:
            raise Quota("no tokens left")
        except Quota as error:
            arrived = cross(error)
        assert type(arrived) is errors.ClientError
        assert str(arrived).endswith("Quota: no tokens left")
        assert arrived.type_name.endswith("Quota")
        assert 'raise Quota("no tokens left")' in arrived.traceback_text
        assert arrived.started is None
        assert not arrived.retryable

    def test_of_an_exception_without_a_message_gives_its_name(self):
        assert str(cross(ValueError())) == "ValueError"

    @pytest.mark.parametrize("base", [ValueError, errors.WorkerLost])
    @pytest.mark.parametrize("hostility", [RuntimeError, SystemExit])
    def test_survives_an_exception_that_cannot_be_printed(self, base, hostility):
        class Hostile(base):
            def __str__(self):
                raise hostility("not even this")

            __repr__ = __str__

        arrived = cross(Hostile())
        assert f"its message could not be read: {hostility.__name__}" in str(arrived)

    def test_survives_an_exception_whose_traceback_cannot_be_made(self):
        class Hostile(Exception):
            @property
            def __notes__(self):
                raise KeyboardInterrupt if self.args else RuntimeError

        try:
            raise Hostile
        except Hostile as error:
            arrived = cross(error)
        assert "test_survives_an_exception_whose_traceback" in arrived.traceback_text

    def test_survives_a_subclass_that_skips_the_constructor(self):
        class Skipping(errors.RateLimited):
            def __init__(self):
                pass

        arrived = cross(Skipping())
        assert type(arrived) is errors.RateLimited
        assert (arrived.started, arrived.retryable) == (None, True)

    def test_gives_a_users_subclass_as_the_nearest_of_ours(self):
        class Mine(errors.RateLimited):
            code = "worker_lost"

            def __init__(self, one, two):
                super().__init__(f"{one} {two}", retry_after_s=3)

        class Plain(errors.SoloistError):
            code = "plain"

        arrived = cross(Mine("a", "b"))
        assert (type(arrived), str(arrived)) == (errors.RateLimited, "a b")
        assert arrived.retry_after_s == 3
        assert type(cross(errors.WorkerLost())) is errors.WorkerLost
        assert type(cross(Plain("x"))) is errors.SoloistError

    def test_of_an_unknown_code_gives_the_root(self):
        info = errors.ErrorInfo("from_the_future", "x", True, False, {"new": 1})
        arrived = errors.from_info(info)
        assert (type(arrived), str(arrived)) == (errors.SoloistError, "x")
        assert (arrived.retryable, arrived.started) == (True, False)
        assert not hasattr(arrived, "new")

    def test_replaces_lone_surrogates_everywhere(self):
        error = errors.ClientError("a\ud800", type_name="b\ud800", traceback_text="c\ud800")
        arrived = cross(error)
        assert str(arrived) == "a\\ud800"
        assert (arrived.type_name, arrived.traceback_text) == ("b\\ud800", "c\\ud800")
        assert str(cross(ValueError("\udfff"))) == "ValueError: \\udfff"

    def test_cuts_the_middle_out_of_long_texts(self):
        long = "<" + "x" * 1_000_000 + ">"
        for error in (ValueError(long), errors.ClientError(long, traceback_text=long)):
            arrived = cross(error)
            for text in (str(arrived), arrived.traceback_text):
                assert len(text) < errors.MAX_TEXT_CHARS + 200
                assert "characters cut" in text
                assert text.rstrip().endswith(">")

    @pytest.mark.parametrize(
        "status", [http.HTTPStatus.TOO_MANY_REQUESTS, 429], ids=["enum", "number"]
    )
    def test_takes_a_subclass_of_a_details_type(self, status):
        assert cross(errors.RateLimited(api_status=status)).api_status == 429

    @pytest.mark.parametrize(
        "value",
        ["soon", object(), [1], math.nan, math.inf, -math.inf, 10**30, 1j],
        ids=lambda value: type(value).__name__,
    )
    def test_drops_a_detail_that_makes_no_sense(self, value):
        error = errors.RateLimited("x", retry_after_s=value, api_status=429)
        arrived = cross(error)
        assert arrived.retry_after_s is None
        assert arrived.api_status == 429

    @given(
        strategies.tuple_errors,
        st.dictionaries(st.sampled_from(["api_status", "type_name"]), strategies.values),
        st.sampled_from([cls.code for cls in LEAVES]),
    )
    def test_takes_whatever_details_a_peer_sends(self, info, details, code):
        error = errors.from_info(info._replace(code=code, details=details))
        assert isinstance(getattr(error, "type_name", ""), str)
        assert isinstance(getattr(error, "api_status", None), int | None)

    @given(strategies.tuple_errors)
    def test_is_stable_after_the_first_time(self, info):
        error = errors.from_info(info)
        assert errors.to_info(cross(error)) == errors.to_info(error)


class TestShorten:
    def test_leaves_alone_what_fits(self):
        assert errors.shorten("x" * 10, 10) == "x" * 10

    def test_keeps_both_ends(self):
        assert (
            errors.shorten("abc" + "x" * 100 + "def", 6) == "abc\n... 100 characters cut ...\ndef"
        )

"""Rate limits, pauses and retries with real workers: what they hold back, and what they repeat."""

import os
import time

import pytest

from soloist import InvalidOptions, RateLimit, RateLimited, Retry, Supervisor, WorkerLost
from tests.support import LIMIT_S


def now(prompt):
    return repr(time.monotonic())  # one clock for all processes


class TestRateLimit:
    def test_it_holds_over_all_workers(self):
        with Supervisor(4, client=now, rate_limit=RateLimit(100, burst=5)) as sup:
            began = sorted(float(result.text) for result in sup.map(["p"] * 45))
        for first, later in zip(began, began[15:], strict=False):
            assert later - first >= 10 / 100 * 0.9  # a burst, and 10 at their rate
        assert began[-1] - began[0] >= 0.4 * 0.9

    def test_it_holds_over_sessions_too(self):
        with Supervisor(1, client=now, rate_limit=RateLimit(20)) as sup:
            futures = [sup.shared("a").query("p"), sup.submit("p"), sup.shared("b").query("p")]
            began = sorted(float(future.result(LIMIT_S).text) for future in futures)
        assert began[2] - began[0] >= 2 / 20 * 0.9

    def test_a_limit_that_is_none_is_refused(self):
        with pytest.raises(InvalidOptions, match="per_second"):
            RateLimit(0)


class TestPause:
    def test_a_refusal_of_the_service_stops_all_workers(self):
        def limited(prompt):
            if prompt == "429":
                raise RateLimited("slow down", retry_after_s=0.5)
            return repr(time.monotonic())

        with Supervisor(4, client=limited) as sup:
            sup.map(["p"] * 40)
            refused = sup.submit("429")
            with pytest.raises(RateLimited) as error:
                refused.result(LIMIT_S)
            heard = time.monotonic()
            began = [float(result.text) for result in sup.map(["p"] * 20)]
        assert error.value.retry_after_s == 0.5
        assert min(began) >= heard + 0.4


class TestRetry:
    def test_what_may_have_run_is_repeated_only_if_the_policy_says_so(self, tmp_path):
        deaths = tmp_path / "deaths"

        def fragile(prompt):
            with deaths.open("a") as file:
                file.write("x")
            if deaths.stat().st_size == 1:
                os._exit(3)
            return "alive"

        once = Retry(attempts=3, on=(WorkerLost,), first_delay_s=0.01)
        with Supervisor(1, client=fragile, retry=once) as sup, pytest.raises(WorkerLost):
            sup.map(["p"])
        deaths.unlink()
        again = Retry(attempts=3, on=(WorkerLost,), first_delay_s=0.01, may_have_run=True)
        with Supervisor(1, client=fragile, retry=again) as sup:
            (result,) = sup.map(["p"])
        assert (result.text, result.attempts) == ("alive", 2)

    def test_the_pause_of_the_service_is_waited_for(self, tmp_path):
        asked = tmp_path / "asked"

        def limited(prompt):
            with asked.open("a") as file:
                file.write("x")
            if asked.stat().st_size == 1:
                raise RateLimited("slow down", retry_after_s=0.3)
            return repr(time.monotonic())

        retry = Retry(attempts=2, may_have_run=True, first_delay_s=0.01)
        with Supervisor(1, client=limited, retry=retry) as sup:
            started = time.monotonic()
            (result,) = sup.map(["p"])
        assert float(result.text) >= started + 0.3
        assert result.attempts == 2

    def test_a_conversation_is_never_repeated(self, tmp_path):
        asked = tmp_path / "asked"

        def limited(prompt):
            with asked.open("a") as file:
                file.write("x")
            raise RateLimited("slow down", started=False)

        with Supervisor(1, client=limited, retry=Retry(attempts=3, first_delay_s=0.01)) as sup:
            with pytest.raises(RateLimited):
                sup.shared("chat").query("p").result(LIMIT_S)
            assert asked.stat().st_size == 1
            with pytest.raises(RateLimited):
                sup.map(["p"])
            assert asked.stat().st_size == 4

"""The main job on the Claude client: the scripted stand-in, then the real CLI, offline."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from soloist import (
    AssistantMessage,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    RateLimited,
    ResultMessage,
    StreamEvent,
    Supervisor,
    WorkerLost,
)
from tests import stand_in
from tests.support import (
    LIMIT_S,
    descendants_of_runs,
    environment,
    eventually,
    is_running,
    run_dirs_of,
)
from tests.support_netns import output_of

pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")


@pytest.fixture(scope="module")
def cli_path(tmp_path_factory):
    return stand_in.install(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """What the scripted CLIs of ``sup`` and ``warm`` are asked."""
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def sup(cli_path, log):
    """Shared, because importing the SDK is slow; no test leaves anything running in it."""
    options = {
        "cli_path": cli_path,
        "include_partial_messages": True,
        "env": {stand_in.LOG_VARIABLE: str(log)},
    }
    with Supervisor(size=2, client="claude", options=options) as shared:
        yield shared


@pytest.fixture(scope="module")
def warm(cli_path, log):
    """One whose worker keeps its conversation; shared for the same reason."""
    options = {"cli_path": cli_path, "env": {stand_in.LOG_VARIABLE: str(log)}}
    with Supervisor(
        1, client="claude", options=options, isolation="worker", interrupt_grace_s=0.3
    ) as shared:
        yield shared


def begun(log, prompt):
    """Whether a scripted CLI has begun a turn on a prompt that ends so."""
    return log.exists() and any(
        entry.event == "begin" and entry.prompt.endswith(prompt) for entry in stand_in.read_log(log)
    )


class TestStandIn:
    def test_every_prompt_is_a_conversation_of_its_own(self, sup):
        results = sup.map([f"/history {i}" for i in range(12)])
        assert [(r.text, r.num_turns) for r in results] == [("[]", 1)] * 12

    def test_a_warm_conversation_is_kept_if_asked_for(self, warm):
        first, *others = [r.num_turns for r in warm.map(["a", "b", "c"])]
        assert others == [first + 1, first + 2]

    def test_query_streams_the_parts(self, sup):
        messages = list(sup.query("/parts 3 hello"))
        kinds = [type(message) for message in messages]
        assert kinds.count(StreamEvent) >= 3
        assert kinds[-2:] == [AssistantMessage, ResultMessage]

    def test_content_blocks_arrive(self, sup):
        assert sup.map([[{"type": "text", "text": "hello"}]])[0].text == "hello"

    def test_errors_are_typed_and_cost_one_prompt(self, sup):
        prompts = ["a", "/fail 500 x", "b", "/fail 429 x", "c", "/crash 7 x", "d"]
        results = sup.map(prompts, return_exceptions=True)
        assert [r.text for r in results[::2]] == list("abcd")
        assert [type(r) for r in results[1::2]] == [ClientError, RateLimited, ClientError]
        assert results[1].api_status == 500
        assert 0 < results[3].retry_after_s <= 2

    def test_cancel_of_a_running_turn_and_the_next_answer_is_right(self, sup):
        before = sup.stats().restarts
        for prompt in ("/delay 600 /parts 100 long", "/slow-start 0.05 /delay 600 long"):
            future = sup.submit(prompt)
            is_running(future)
            assert future.cancel()
            done, _ = concurrent.futures.wait([future], timeout=LIMIT_S)
            assert done == {future}
            assert [r.text for r in sup.map(["x", "y", "z"])] == ["x", "y", "z"]
        assert sup.stats().restarts == before

    def test_cancel_of_an_asyncio_task_interrupts_the_turn(self, sup):
        async def main():
            future = sup.submit("/delay 600 long")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.wrap_future(future)
            await asyncio.to_thread(concurrent.futures.wait, [future], LIMIT_S)
            return (await asyncio.wrap_future(sup.submit("next"))).text

        assert asyncio.run(main()) == "next"

    def test_a_turn_that_ignores_its_interrupt_costs_the_worker_and_its_cli(self, warm, log):
        before = warm.stats().restarts
        cli = psutil.Process(int(warm.map(["/pid"])[0].text))
        future = warm.submit("/silent deaf")
        eventually(lambda: begun(log, "deaf"))
        future.cancel()
        concurrent.futures.wait([future], timeout=LIMIT_S)
        assert warm.map(["next"])[0].text == "next"
        assert warm.stats().restarts == before + 1
        eventually(lambda: not cli.is_running(), timeout_s=2)

    def test_permission_callbacks_of_the_main_module_work_in_the_worker(self, cli_path):
        async def allow(name, arguments, context):
            from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny

            if name == "Read":
                return PermissionResultAllow()
            return PermissionResultDeny(message=f"no {name} here")

        options = {"cli_path": cli_path, "can_use_tool": allow}
        with Supervisor(1, client="claude", options=options) as one:
            answers = [r.text for r in one.map(["/tool Read", "/tool Bash"])]
        assert answers[0].startswith("allow")
        assert "no Bash here" in answers[1]


class TestStart:
    def test_a_cli_that_is_not_there_fails_the_caller_at_once(self):
        with (
            Supervisor(2, client="claude", options={"cli_path": "/nowhere/claude"}) as sup,
            pytest.raises(ClientNotFound, match="claude-agent-sdk carries it"),
        ):
            sup.map(["a"])

    def test_unknown_options_are_refused_before_anything_is_spawned(self, monkeypatch):
        monkeypatch.setattr("subprocess.Popen.__init__", pytest.fail)
        with pytest.raises(InvalidOptions, match=r"modle.*model"):
            Supervisor(client="claude", options={"modle": "x"})


class TestKills:
    def test_a_worker_killed_in_mid_prompt_costs_one_prompt(self, sup, log):
        futures = [sup.submit(f"/delay {600 if i == 3 else 0} p{i}") for i in range(10)]
        eventually(lambda: begun(log, "p3"))
        others = [f for i, f in enumerate(futures) if i != 3]
        concurrent.futures.wait(others, timeout=LIMIT_S)
        (victim,) = [worker for worker in sup.stats().workers if worker.running]
        os.kill(victim.pid, signal.SIGKILL)
        assert type(futures[3].exception(LIMIT_S)) is WorkerLost
        assert [f.result(0).text for f in others] == [f"p{i}" for i in range(10) if i != 3]

    def test_sigkill_of_the_callers_process_in_mid_turn_leaves_nothing(self, cli_path, tmp_path):
        code = (
            "from soloist import Supervisor\n"
            f"sup = Supervisor(2, client='claude', options={{'cli_path': {cli_path!r}}})\n"
            "print(sup.map(['/spawn'])[0].text, flush=True)\n"
            "stream = sup.query('/delay 600 /parts 600 long')\n"
            "next(stream)\n"
            "print('streaming', flush=True)\n"
            "for _ in stream: pass\n"
        )
        log = tmp_path / "log"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            env=environment(**{stand_in.LOG_VARIABLE: str(log)}),
        ) as process:
            grandchild = int(process.stdout.readline())
            assert process.stdout.readline() == b"streaming\n"
            run_dirs = run_dirs_of(process.pid)
            pids = {entry.pid for entry in stand_in.read_log(log)} | {grandchild}
            trees = [p for p in map(_process, pids) if p is not None]
            process.kill()
        assert trees
        assert len(run_dirs) == 1
        eventually(lambda: not any(p.is_running() for p in trees), timeout_s=2)
        eventually(lambda: not descendants_of_runs(run_dirs), timeout_s=2)
        assert not os.path.exists(run_dirs.pop())


class TestCommandLine:
    def test_map_over_jsonl_is_in_order_and_fresh_and_leaves_no_process(self, cli_path, tmp_path):
        prompts, results, log = (tmp_path / name for name in ("p.jsonl", "r.jsonl", "log"))
        rows = [{"id": f"row{i}", "prompt": f"question {i}"} for i in range(16)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "soloist.supervisor.cli", "map", str(prompts)),
                *("--client", "claude", "--set", f"cli_path={cli_path}", "--size", "4"),
                *("-o", str(results)),
            ],
            env=environment(**{stand_in.LOG_VARIABLE: str(log)}),
            timeout=120,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        assert [line["id"] for line in lines] == [row["id"] for row in rows]
        assert [line["text"] for line in lines] == [row["prompt"] for row in rows]
        assert {line["num_turns"] for line in lines} == {1}
        started = {entry.pid for entry in stand_in.read_log(log)}
        assert len(started) >= len(rows)
        assert not [pid for pid in started if _process(pid) is not None]


def test_the_real_cli_end_to_end(tmp_path):
    """``soloist map`` on the bundled CLI against a stub of the Messages API on loopback."""
    rows = [{"id": i, "prompt": f"question {i}"} for i in range(3)]
    prompts, results = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = ["-m", "tests.integration.real_cli_map", str(prompts), str(results), "2"]
    output = output_of(script, tmp_path, timeout_s=120)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["id"], line["text"], line["num_turns"]) for line in lines] == [
        (row["id"], row["prompt"], 1) for row in rows
    ]
    report = json.loads(output.splitlines()[-1])
    assert report == {"left": [], "histories": [[row["prompt"]] for row in rows]}


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None

"""Agent callbacks: what a client asks in mid-turn is answered in its worker, or by its caller.

Prints::

    a callable of yours, in the worker: ran 'ls', denied 'rm -rf /'
    on_control, in your process: ran 'ls', denied 'rm -rf /'
    a handler for one call: denied 'ls'
    one that says nothing: denied 'ls'
"""

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from soloist import (
    AssistantMessage,
    ControlRequest,
    Message,
    ResultMessage,
    SoloistError,
    Supervisor,
    TextBlock,
    ask_caller,
)

Permit = Callable[[str, dict[str, Any]], bool]
HERE = os.getpid()


class Agent:
    """A client that uses a tool for every prompt, and asks before it does."""

    def __init__(self, *, can_use_tool: Permit | None = None) -> None:
        self.can_use_tool = can_use_tool

    async def connect(self) -> None:
        pass

    async def query(self, prompt: str) -> None:
        self.command = prompt

    async def receive_response(self) -> AsyncIterator[Message]:
        verdict = "ran" if await self.is_allowed({"command": self.command}) else "denied"
        text = f"{verdict} {self.command!r}"
        yield AssistantMessage(content=[TextBlock(text)], model="agent")
        yield ResultMessage("success", 0, 0, is_error=False, num_turns=1, session_id="")

    async def is_allowed(self, tool_input: dict[str, Any]) -> bool:
        if self.can_use_tool is not None:
            return self.can_use_tool("Bash", tool_input)
        try:
            reply = await ask_caller("permission", {"tool_name": "Bash", "input": tool_input})
        except SoloistError:
            return False
        return reply["behavior"] == "allow"

    async def interrupt(self) -> None:
        pass

    async def disconnect(self) -> None:
        pass


def is_harmless(tool_name: str, tool_input: dict[str, Any]) -> bool:
    """Travels to the workers by value and runs there."""
    assert os.getpid() != HERE
    return tool_name == "Bash" and tool_input["command"] == "ls"


def ask_a_person(request: ControlRequest) -> bool:
    """Runs on a thread of its own in this process: it may open a window and wait."""
    assert os.getpid() == HERE
    return request.kind == "permission" and request.data["input"]["command"] == "ls"


commands = ["ls", "rm -rf /"]

with Supervisor(size=1, client=Agent, options={"can_use_tool": is_harmless}) as sup:
    answers = [result.text for result in sup.map(commands)]
    print("a callable of yours, in the worker:", ", ".join(answers))

with Supervisor(size=1, client=Agent, on_control=ask_a_person, control_timeout_s=30) as sup:
    answers = [result.text for result in sup.map(commands)]
    print("on_control, in your process:", ", ".join(answers))

    answer, _ = sup.query("ls", on_control=lambda _: False)
    print("a handler for one call:", answer.content[0].text)
    answer, _ = sup.query("ls", on_control=lambda _: None)
    print("one that says nothing:", answer.content[0].text)

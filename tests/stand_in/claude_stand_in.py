#!/usr/bin/env python3
"""The stand-in itself; the package's docstring is its manual.

Owns one conversation. One thread, one loop: while a turn waits, control requests are served and
prompts queued. Imports little, because every test pays for its start.
"""

import json
import os
import select
import signal
import sys
import time

VERSION = "2.1.330"
ARGUMENTS = {
    "delay": float,
    "slow-start": float,
    "parts": int,
    "bytes": int,
    "env": str,
    "tool": str,
    "hook": str,
    "stderr": str,
    "fail": int,
    "crash": int,
    "inject": str,
    "history": None,
    "clear": None,
    "argv": None,
    "pid": None,
    "model": None,
    "spawn": None,
    "stop": None,
    "silent": None,
    "ignore-interrupt": None,
    "deaf": None,
    "garbage": None,
    "unparsable": None,
    "no-uuid": None,
}


class Ended(Exception):
    """Standard input is closed."""


def parse(text):
    """Split a prompt into what the stand-in is told to do and the text to say."""
    if text.lstrip().startswith("{"):
        try:
            script = json.loads(text)
        except ValueError:
            return {"text": text}
        return {"text": text, **script}
    script = {}
    while True:
        word, _, rest = text.partition(" ")
        name = word[1:]
        if not word.startswith("/") or name not in ARGUMENTS:
            return {"text": text, **script}
        kind = ARGUMENTS[name]
        if kind is None:
            script[name], text = True, rest
        else:
            argument, _, text = rest.partition(" ")
            script[name] = kind(argument)


def new_id():
    raw = os.urandom(16).hex()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def send(message):
    data = (json.dumps(message) + "\n").encode()
    while data:
        data = data[os.write(1, data) :]


def log(event, prompt=""):
    path = os.environ.get("SOLOIST_STAND_IN_LOG")
    if not path:
        return
    line = f"{time.monotonic_ns()}\t{os.getpid()}\t{event}\t{json.dumps(prompt)}\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


class Conversation:
    def __init__(self, session_id, history):
        self.session_id = session_id
        self.history = history
        self.model = "stand-in"
        self.permission_mode = "default"
        self.is_deaf = False
        self.is_closed = False
        self.is_interrupted = False
        self.queue = []
        self.hooks = {}
        self.replies = {}
        self.rest = b""

    def serve(self):
        while True:
            self.wait(None, lambda: self.queue)
            self.turn(self.queue.pop(0))

    def wait(self, seconds, is_done):
        """Serve standard input until ``is_done()`` or for ``seconds``; tells whether it is done."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not is_done():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            inputs = [] if self.is_closed else [0]
            if not select.select(inputs, [], [], left)[0]:
                return False
            self.read()
        return True

    def read(self):
        data = os.read(0, 65536)
        if not data and not self.is_deaf:
            raise Ended
        self.is_closed = not data
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                self.receive(json.loads(line))

    def receive(self, message):
        kind = message["type"]
        if kind == "user":
            self.queue.append(message)
        elif kind == "control_request":
            answer = self.control(message["request"])
            response = {"request_id": message["request_id"], "subtype": "success"}
            send({"type": "control_response", "response": {**response, "response": answer}})
        elif kind == "control_response":
            self.replies[message["response"]["request_id"]] = message["response"]

    def control(self, request):
        subtype = request["subtype"]
        if subtype == "initialize":
            self.hooks = request.get("hooks") or {}
            return {"commands": [], "output_style": "default"}
        if subtype == "interrupt":
            log("interrupt")
            self.is_interrupted = True
        elif subtype == "set_model":
            self.model = request["model"]
        elif subtype == "set_permission_mode":
            self.permission_mode = request["mode"]
        return {}

    def turn(self, message):
        content = message["message"]["content"]
        said = content if isinstance(content, str) else text_of(content)
        script = parse(said)
        if "inject" in script:
            Turn(self, None, {"text": script["inject"]}, "").run()
        log("begin", said)
        try:
            outcome = Turn(self, message.get("uuid"), script, said).run()
        except Ended:
            log("end:closed", said)
            raise
        log(f"end:{outcome}", said)

    def save(self):
        path = path_of(self.session_id)
        if path is not None:
            with open(path + ".new", "w") as file:
                json.dump(self.history, file)
            os.replace(path + ".new", path)

    def clear(self):
        send(
            {
                "type": "conversation_reset",
                "new_conversation_id": new_id(),
                "session_id": self.session_id,
                "uuid": new_id(),
            }
        )
        self.session_id, self.history = new_id(), []


class Turn:
    def __init__(self, conversation, uuid, script, said):
        self.on = conversation
        self.is_injected = uuid is None
        self.echo = {}
        if uuid is not None and not script.get("no-uuid"):
            self.echo = {"user_message_uuid": uuid, "user_message_uuids": [uuid]}
        self.is_first = True
        self.script = script
        self.said = said
        self.started = time.monotonic()

    def run(self):
        if "slow-start" in self.script:
            self.on.wait(self.script["slow-start"], lambda: False)
        self.on.is_interrupted = False
        if "clear" in self.script:
            self.on.clear()
        self.message({"type": "system", "subtype": "init", "claude_code_version": VERSION})
        before = list(self.on.history)
        if not self.is_injected:
            self.on.history.append(self.said)
            self.on.save()  # as the real CLI does: a turn that is cut off leaves its prompt
        self.misbehave()
        answer = self.answer(before)
        if self.on.is_interrupted or not self.stream(answer):
            return self.interrupted()
        if "crash" in self.script:
            log(f"end:crash {self.script['crash']}", self.said)
            os._exit(self.script["crash"])
        if "fail" in self.script:
            return self.failed(self.script["fail"])
        self.say(answer)
        self.result(result=answer, terminal_reason="completed")
        return "success"

    def misbehave(self):
        script = self.script
        if "stderr" in script:
            sys.stderr.write(script["stderr"] + "\n")
            sys.stderr.flush()
        if "deaf" in script:
            self.on.is_deaf = True
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "stop" in script:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "garbage" in script:
            os.write(1, b'{"type": "assistant", broken\n')
        if "unparsable" in script:
            self.message({"type": "assistant", "message": {"content": 1, "model": "x"}})
        if "silent" in script:
            self.on.wait(None, lambda: False)

    def answer(self, before):
        script, conversation = self.script, self.on
        answers = {
            "tool": lambda: self.ask_permission(script["tool"]),
            "hook": lambda: self.ask_hooks(script["hook"]),
            "bytes": lambda: "x" * script["bytes"],
            "history": lambda: json.dumps(before),
            "argv": lambda: json.dumps(sys.argv),
            "env": lambda: os.environ.get(script["env"], ""),
            "pid": lambda: str(os.getpid()),
            "model": lambda: json.dumps([conversation.model, conversation.permission_mode]),
            "spawn": lambda: str(spawn()),
        }
        return next((answers[word]() for word in answers if word in script), script["text"])

    def stream(self, answer):
        """Send the pieces over the turn's time; tells whether nobody interrupted."""
        parts = self.script.get("parts", 0)
        pause = self.script.get("delay", 0) / max(parts, 1)
        for i in range(max(parts, 1)):
            if self.on.wait(pause, self.has_to_stop):
                return False
            if parts:
                piece = answer[len(answer) * i // parts : len(answer) * (i + 1) // parts]
                delta = {"type": "text_delta", "text": piece}
                event = {"type": "content_block_delta", "index": 0, "delta": delta}
                self.content({"type": "stream_event", "event": event})
        return True

    def has_to_stop(self):
        return self.on.is_interrupted and "ignore-interrupt" not in self.script

    def ask_permission(self, tool):
        self.say(None, [{"type": "tool_use", "id": "tool_1", "name": tool, "input": {}}])
        rule = {"type": "addRules", "rules": [{"toolName": tool}], "behavior": "allow"}
        reply = self.ask(
            {
                "subtype": "can_use_tool",
                "tool_name": tool,
                "tool_use_id": "tool_1",
                "input": {"text": self.script["text"]},
                "permission_suggestions": [{**rule, "destination": "session"}],
            }
        )
        if reply is None:
            return ""
        if reply["subtype"] == "error":
            return f"error {reply['error']}"
        decision = reply["response"]
        if decision["behavior"] == "allow":
            return f"allow {json.dumps(decision['updatedInput'])}"
        self.on.is_interrupted = decision.get("interrupt", False)
        return f"deny {decision['message']}"

    def ask_hooks(self, tool):
        """Let every ``PreToolUse`` hook speak; gives what they said, or why they failed."""
        tool_input = {"text": self.script["text"]}
        event = {"hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": tool_input}
        said = []
        for matcher in self.on.hooks.get("PreToolUse", []):
            for callback in matcher["hookCallbackIds"]:
                call = {"subtype": "hook_callback", "callback_id": callback, "input": event}
                reply = self.ask({**call, "tool_use_id": "tool_1"}) or {}
                said.append(reply.get("response", reply.get("error")))
        return json.dumps(said)

    def ask(self, request):
        """Send a control request; gives the reply, ``None`` if the turn was interrupted first."""
        request_id = new_id()
        send({"type": "control_request", "request_id": request_id, "request": request})
        replies = self.on.replies
        self.on.wait(None, lambda: request_id in replies or self.has_to_stop())
        if request_id not in replies:
            send({"type": "control_cancel_request", "request_id": request_id})
        return replies.pop(request_id, None)

    def interrupted(self):
        text = [{"type": "text", "text": "[Request interrupted by user]"}]
        self.message({"type": "user", "message": {"role": "user", "content": text}})
        self.result(
            subtype="error_during_execution",
            is_error=True,
            errors=["interrupted"],
            terminal_reason="aborted_streaming",
        )
        return "interrupted"

    def failed(self, status):
        if status == 429:
            limit = {"status": "rejected", "resetsAt": int(time.time()) + 2}
            limit["rateLimitType"] = "five_hour"
            self.message({"type": "rate_limit_event", "rate_limit_info": limit})
        text = f"API Error: {status} {self.script['text']}".strip()
        kind = {401: "authentication_failed", 429: "rate_limit"}.get(status, "server_error")
        self.say(text, error=kind)
        reason = {"api_error_status": status, "terminal_reason": "api_error"}
        self.result(is_error=True, result=text, **reason)
        return f"fail {status}"

    def say(self, text, blocks=None, **fields):
        content = blocks or [{"type": "text", "text": text}]
        message = {"role": "assistant", "model": self.on.model, "content": content}
        self.content({"type": "assistant", "message": message, **fields})

    def content(self, message):
        """What the real CLI marks: the first content of a turn names the prompt it answers."""
        echo = self.echo if self.is_first else {}
        self.is_first = False
        self.message({"parent_tool_use_id": None, **message, **echo})

    def result(self, **fields):
        taken_ms = round((time.monotonic() - self.started) * 1000)
        origin = {"origin": {"kind": "task-notification"}} if self.is_injected else {}
        result = {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "duration_ms": taken_ms,
            "duration_api_ms": taken_ms,
            "num_turns": len(self.on.history),
            "total_cost_usd": 0.0,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        self.message({**result, **fields, **self.echo, **origin})

    def message(self, message):
        send({**message, "session_id": self.on.session_id, "uuid": new_id()})


def text_of(blocks):
    return "".join(block.get("text", "") for block in blocks)


def spawn():
    """Start what is hard to get rid of; it ends by itself after two minutes."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(120)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(readable)
        os.close(writable)
        while True:
            signal.pause()
    os.close(writable)
    os.read(readable, 1)  # ends when the child has closed its copy: it is ready by then
    os.close(readable)
    return pid


def option(name):
    """An option's value, be it ``--name value`` or ``--name=value``."""
    for i, argument in enumerate(sys.argv):
        if argument == f"--{name}":
            return sys.argv[i + 1]
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
    return None


def begin():
    start, _, value = (option("stand-in-start") or "").partition(":")
    if start == "slow":
        time.sleep(float(value))
    elif start == "hang":
        while os.read(0, 65536):
            pass
        sys.exit(0)
    elif start in ("crash", "exit"):
        sys.stderr.write(f"stand-in told to {start} at its start\n")
        sys.stderr.flush()
        os._exit(int(value))


def path_of(session_id):
    folder = os.environ.get("SOLOIST_STAND_IN_SESSIONS")
    return os.path.join(folder, session_id) if folder else None


def refuse(words):
    sys.stderr.write(words + "\n")
    sys.exit(1)


def conversation():
    """The one to resume, or a new one; refuses as the real CLI does."""
    resume, session_id = option("resume"), option("session-id")
    if session_id and os.path.exists(path_of(session_id) or ""):
        refuse(f"Error: Session ID {session_id} is already in use.")
    if resume is None:
        return Conversation(session_id or new_id(), [])
    try:
        with open(path_of(resume) or "") as file:
            history = json.load(file)
    except OSError:
        refuse(f"No conversation found with session ID: {resume}")
    is_renamed = "--fork-session" in sys.argv or option("stand-in-resume") == "renamed"
    return Conversation((session_id or new_id()) if is_renamed else resume, history)


def main():
    if {"-v", "--version"} & set(sys.argv):
        sys.stdout.write(f"{VERSION} (Claude Code)\n")
        return
    log("start")
    begin()
    try:
        conversation().serve()
    except (Ended, BrokenPipeError, KeyboardInterrupt):
        log("exit")


if __name__ == "__main__":
    main()

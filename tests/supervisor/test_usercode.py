"""User code: what is taken for what, what is refused and why, and how it travels."""

import asyncio
import contextlib
import functools
import importlib.metadata
import inspect
import socket
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from soloist.protocol import clientfile
from soloist.protocol.errors import (
    ClientNotFound,
    ClientNotSerializable,
    InvalidOptions,
    SoloistError,
)
from soloist.supervisor import usercode
from soloist.supervisor.usercode import prepare
from soloist.worker import usercode as worker_usercode
from soloist.worker.clients.base import METHODS
from soloist.worker.clients.echo import EchoClient
from tests.support import name_of


def main_module(source):
    """The names of a script: its functions and classes can travel by value alone."""
    names = {"__name__": "__main__"}
    exec(textwrap.dedent(source), names)
    return names


class Contract:
    def __init__(self, *, level=1):
        self.level = level

    async def connect(self):
        pass

    async def query(self, prompt):
        pass

    async def receive_response(self):
        yield None

    async def interrupt(self):
        pass

    async def disconnect(self):
        pass


class Callable:
    def __call__(self, prompt):
        return prompt


class AsyncCallable:
    async def __call__(self, prompt):
        return prompt


def plain(prompt):
    return prompt


async def coroutine(prompt):
    return prompt


def with_option(prompt, *, mark="!"):
    return prompt + mark


def factory(level=2):
    return Contract(level=level)


def stored(client, options=None):
    return clientfile.unpack(prepare(client, options or {}).data)


@pytest.fixture
def travel(tmp_path):
    """Take a client through the file into what a worker would have of it."""

    def through(client, options=None):
        path = tmp_path / "client"
        path.write_bytes(prepare(client, options or {}).data)
        return worker_usercode.load(str(path))

    return through


class TestKinds:
    @pytest.mark.parametrize(
        "client",
        [
            plain,
            coroutine,
            with_option,
            Callable(),
            AsyncCallable(),
            Callable().__call__,
            lambda prompt: prompt,
            lambda *prompts: "",
            functools.partial(with_option, mark="?"),
            str.upper,
            len,
            print,
            "{}".format,
        ],
        ids=name_of,
    )
    def test_what_needs_a_prompt_is_called_with_it(self, client):
        assert stored(client).kind == "function"

    @pytest.mark.parametrize(
        "client",
        [
            Contract,
            EchoClient,
            factory,
            lambda: Contract(),
            functools.partial(Contract, level=3),
            lambda *, level=1: Contract(level=level),
        ],
        ids=name_of,
    )
    def test_what_needs_none_makes_clients(self, client):
        assert stored(client).kind == "contract"

    def test_a_builtin_without_a_signature_is_called_with_the_prompt(self):
        with pytest.raises(ValueError, match="no signature"):
            inspect.signature(max)
        assert stored(max).kind == "function"

    @pytest.mark.parametrize("cls", [str, Callable, object])
    def test_a_class_that_is_no_client_is_refused_with_what_it_lacks(self, cls):
        with pytest.raises(InvalidOptions, match=r"no client: it has no connect, query") as caught:
            prepare(cls, {})
        assert "__call__" in str(caught.value)

    def test_a_class_that_lacks_one_method_is_told_which(self):
        class Almost(Contract):
            interrupt = None

        with pytest.raises(InvalidOptions, match=r"it has no interrupt;"):
            prepare(Almost, {})

    @pytest.mark.parametrize("client", [None, 5, Contract(), b"echo", ["echo"]], ids=name_of)
    def test_anything_else_is_refused(self, client):
        with pytest.raises(InvalidOptions, match="a registered name, a class"):
            prepare(client, {})

    def test_the_methods_are_those_of_the_contract(self):
        assert usercode._METHODS == METHODS


class Checked(Contract):
    """Refuses values before anything is spawned."""

    preload = ("json", "csv")
    error: BaseException | None = None

    @classmethod
    def check_options(cls, **options):
        if cls.error is not None:
            raise cls.error


class TestOptions:
    def test_those_of_the_signature_are_taken_and_travel(self, travel):
        code = travel(Contract, {"level": 5})
        assert code.new_client().level == 5

    @pytest.mark.parametrize(
        ("client", "name"),
        [(Contract, "Contract"), (with_option, "with_option"), (factory, "factory"),
         (EchoClient, "EchoClient"), (functools.partial(with_option, mark="?"), "partial")],
    )  # fmt: skip
    def test_an_unknown_one_is_refused_by_name(self, client, name):
        with pytest.raises(InvalidOptions, match=f"{name}: .*'colour'"):
            prepare(client, {"colour": "red"})

    def test_one_that_takes_the_place_of_the_prompt_is_refused(self):
        with pytest.raises(InvalidOptions, match="prompt"):
            prepare(plain, {"prompt": "x"})

    def test_one_that_is_missing_is_named(self):
        with pytest.raises(InvalidOptions, match="'key'"):
            prepare(lambda prompt, *, key: prompt, {})

    @pytest.mark.parametrize("options", [{1: 2}, {None: 1}])
    def test_names_are_text(self, options):
        with pytest.raises(InvalidOptions, match="option names are str"):
            prepare(plain, options)

    @pytest.mark.parametrize("options", ["x", 5, ["a"], {"a"}], ids=name_of)
    def test_they_are_a_mapping(self, options):
        with pytest.raises(InvalidOptions, match="options are a mapping"):
            prepare(plain, options)

    def test_the_clients_own_check_comes_first_and_its_word_is_kept(self, monkeypatch):
        error = InvalidOptions("level must be odd")
        monkeypatch.setattr(Checked, "error", error)
        with pytest.raises(InvalidOptions) as caught:
            prepare(Checked, {"level": 2, "unknown": 1})
        assert caught.value is error

    @pytest.mark.parametrize(
        "error", [ValueError("level"), KeyError("level"), TypeError("level"), AssertionError()],
        ids=name_of,
    )  # fmt: skip
    def test_whatever_the_clients_own_check_raises_refuses_them(self, monkeypatch, error):
        monkeypatch.setattr(Checked, "error", error)
        with pytest.raises(InvalidOptions, match=r"Checked: .\w") as caught:
            prepare(Checked, {})
        assert caught.value.__cause__ is error

    def test_a_check_that_says_the_client_is_missing_is_kept(self, monkeypatch):
        monkeypatch.setattr(Checked, "error", ClientNotFound("install it"))
        with pytest.raises(ClientNotFound, match="install it"):
            prepare(Checked, {})

    def test_nothing_is_checked_where_there_is_no_signature(self):
        assert stored(max, {"anything": 1}).kind == "function"


class TestPreload:
    def test_the_clients_modules_are_known(self):
        assert prepare(Checked, {}).preload == ("json", "csv")

    def test_a_registered_client_is_imported_beforehand_too(self):
        assert prepare("echo", {}).preload == ("soloist.worker.clients.echo",)
        assert prepare("claude", {}).preload[0] == "soloist.worker.clients.claude"

    @pytest.mark.parametrize("value", ["numpy", 5, None, plain, [1, None], object()], ids=name_of)
    def test_an_attribute_of_that_name_that_means_something_else_is_left_alone(self, value):
        class Other(Contract):
            preload = value

        assert prepare(Other, {}).preload == ()


class TestRegistered:
    def test_a_registered_name_travels_by_reference(self, travel):
        code = travel("echo", {"chunks": 3})
        assert code.target is EchoClient
        assert code.options == {"chunks": 3}
        assert stored("echo").reference == "soloist.worker.clients.echo:EchoClient"

    def test_its_options_are_checked(self):
        with pytest.raises(InvalidOptions, match="delay_s must be"):
            prepare("echo", {"delay_s": -1})

    def test_an_unknown_name_gets_a_suggestion(self):
        with pytest.raises(ClientNotFound, match=r"'ecko'; did you mean 'echo'\?") as caught:
            prepare("ecko", {})
        assert "claude, echo" in str(caught.value)
        assert caught.value.started is False

    def test_a_name_near_to_none_gets_the_list(self):
        with pytest.raises(ClientNotFound, match=r"'zzz' \(known: claude, echo\)"):
            prepare("zzz", {})

    def test_without_any_it_asks_for_the_installation(self, monkeypatch):
        monkeypatch.setattr(usercode, "entry_points", lambda group: ())
        with pytest.raises(ClientNotFound, match="is soloist installed"):
            prepare("echo", {})

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("no_such_module_at_all:Client", "ModuleNotFoundError"),
            ("json:NoSuchName", "AttributeError"),
            ("broken_third_party:Client", "ZeroDivisionError"),
        ],
    )
    def test_a_broken_third_party_is_named(self, monkeypatch, tmp_path, value, reason):
        (tmp_path / "broken_third_party.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        entry = importlib.metadata.EntryPoint("theirs", value, usercode.GROUP)
        monkeypatch.setattr(usercode, "entry_points", lambda group: (entry,))
        with pytest.raises(ClientNotFound, match=f"'theirs' .* cannot be imported: {reason}"):
            prepare("theirs", {})

    def test_a_broken_third_party_does_not_disturb_the_others(self, monkeypatch):
        entries = importlib.metadata.entry_points(group=usercode.GROUP)
        entry = importlib.metadata.EntryPoint("theirs", "no_such_module:Client", usercode.GROUP)
        monkeypatch.setattr(usercode, "entry_points", lambda group: (entry, *entries))
        assert stored("echo").kind == "contract"

    def test_a_third_party_that_explains_itself_is_passed_on(self, monkeypatch, tmp_path):
        (tmp_path / "explaining_third_party.py").write_text(
            "from soloist.protocol.errors import ClientNotFound\n"
            "raise ClientNotFound('pip install it')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        value = "explaining_third_party:Client"
        entry = importlib.metadata.EntryPoint("theirs", value, usercode.GROUP)
        monkeypatch.setattr(usercode, "entry_points", lambda group: (entry,))
        with pytest.raises(ClientNotFound, match="pip install it"):
            prepare("theirs", {})

    def test_a_third_party_may_register_a_bare_callable(self, monkeypatch, travel):
        entry = importlib.metadata.EntryPoint("dump", "json:dumps", usercode.GROUP)
        monkeypatch.setattr(usercode, "entry_points", lambda group: (entry,))
        code = travel("dump")
        assert code.kind == "function"
        assert code.target("x") == '"x"'


SCRIPT = """
    import dataclasses, enum, functools, threading

    lock = threading.Lock()
    rlock = threading.RLock()

    def with_lock(prompt):
        with lock, rlock:
            return prompt

    def recursive(prompt):
        return prompt if len(prompt) < 2 else recursive(prompt[1:])

    def even(prompt):
        return "even" if not prompt else odd(prompt[1:])

    def odd(prompt):
        return "odd" if not prompt else even(prompt[1:])

    class Colour(enum.Enum):
        RED = "red"

    def with_enum(prompt):
        return Colour(prompt).name

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2

    def with_dataclass(prompt):
        return repr(Point(int(prompt)))

    class Base:
        def greet(self, prompt):
            return "hello " + prompt

    class Child(Base):
        def greet(self, prompt):
            return super().greet(prompt) + "!"

        def __call__(self, prompt):
            return self.greet(prompt)

    child = Child()

    def counter(step):
        def count(prompt):
            return prompt * step
        return count

    thrice = counter(3)

    def inner_recursion():
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
        return lambda prompt: str(fibonacci(int(prompt)))

    fibonacci = inner_recursion()

    @functools.lru_cache(maxsize=8)
    def cached(prompt):
        return prompt.upper()

    def with_cached(prompt):
        return cached(prompt)

    async def coroutine(prompt):
        return prompt

    SETTING = {"mark": "?"}

    def with_global(prompt):
        return prompt + SETTING["mark"]

    class Session:
        def __init__(self, mark="."):
            self.mark = mark
        async def connect(self): self.is_open = True
        async def query(self, prompt): self.prompt = prompt
        async def receive_response(self): yield self.prompt + self.mark
        async def interrupt(self): pass
        async def disconnect(self): pass
"""


class TestTravel:
    @pytest.mark.parametrize(
        ("name", "prompt", "answer"),
        [
            ("with_lock", "x", "x"),
            ("recursive", "abc", "c"),
            ("even", "abc", "odd"),
            ("with_enum", "red", "RED"),
            ("with_dataclass", "4", "Point(x=4, y=2)"),
            ("child", "you", "hello you!"),
            ("thrice", "ab", "ababab"),
            ("fibonacci", "10", "55"),
            ("cached", "x", "X"),
            ("with_cached", "x", "X"),
            ("with_global", "x", "x?"),
        ],
    )
    def test_a_scripts_code_travels_by_value(self, travel, name, prompt, answer):
        names = main_module(SCRIPT)
        code = travel(names[name])
        assert code.kind == "function"
        assert code.target is not names[name]
        assert code.target(prompt) == answer

    def test_a_coroutine_function_stays_one(self, travel):
        code = travel(main_module(SCRIPT)["coroutine"])
        assert asyncio.iscoroutinefunction(code.target)
        assert asyncio.run(code.target("x")) == "x"

    def test_a_class_of_a_script_travels_with_its_options(self, travel):
        code = travel(main_module(SCRIPT)["Session"], {"mark": "!"})
        client = code.new_client()
        assert client is not code.new_client()
        assert client.mark == "!"
        assert all(callable(getattr(client, name)) for name in METHODS)

    @pytest.mark.parametrize("make", [threading.Lock, threading.RLock, threading.Condition])
    @pytest.mark.parametrize("is_held", [False, True])
    def test_a_lock_arrives_free(self, travel, make, is_held):
        """dill by itself gives one that is held for ever: each call would hang."""
        lock = make()

        def is_free(prompt):
            return str(lock.acquire(blocking=False))

        with lock if is_held else contextlib.nullcontext():
            code = travel(is_free)
        assert code.target("x") == "True"

    def test_two_names_of_one_lock_stay_one_lock(self, travel):
        first = second = threading.Lock()

        def is_same(prompt):
            return str(first is second)

        assert travel(is_same).target("x") == "True"

    def test_a_lambda_travels(self, travel):
        assert travel(lambda prompt: prompt[::-1]).target("abc") == "cba"

    def test_what_can_be_imported_goes_by_name(self, travel):
        assert travel(plain).target is plain

    def test_options_travel_by_value(self, travel):
        options = {"level": [1, {"deep": ("x", None)}]}
        assert travel(Contract, options).options == options

    def test_the_file_is_the_same_for_every_worker(self, tmp_path):
        path = tmp_path / "client"
        path.write_bytes(prepare(main_module(SCRIPT)["recursive"], {}).data)
        first, second = (worker_usercode.load(str(path)) for _ in range(2))
        assert first.target("ab") == second.target("ab") == "b"
        assert first.target is not second.target

    def test_cloudpickle_is_tried_first_and_dill_carries_the_rest(self):
        names = main_module(SCRIPT)
        for name in ("with_enum", "with_lock", "with_cached"):
            assert stored(names[name]).pickler == "cloudpickle"
        known = weakref.WeakValueDictionary()
        assert stored(lambda prompt: str(known.get(prompt))).pickler == "dill"


class TestLoading:
    def test_what_fails_in_the_worker_says_why(self, travel):
        class Bomb:
            def __reduce__(self):
                return (exec, ("raise ValueError('only here')",))

            def __call__(self, prompt):
                return prompt

        with pytest.raises(ClientNotSerializable, match="ValueError: only here") as caught:
            travel(Bomb())
        assert "do not import the main module" in str(caught.value)

    def test_even_an_exit_is_reported(self, travel):
        class Exit:
            def __reduce__(self):
                return (sys.exit, (3,))

            def __call__(self, prompt):
                return prompt

        with pytest.raises(ClientNotSerializable, match="SystemExit: 3"):
            travel(Exit())

    def test_a_reference_that_is_gone_is_reported(self, tmp_path):
        file = clientfile.ClientFile("contract", "json:Gone", *usercode._dump((None, {})))
        path = tmp_path / "client"
        path.write_bytes(clientfile.pack(file))
        with pytest.raises(ClientNotSerializable, match="Gone"):
            worker_usercode.load(str(path))

    def test_a_factory_that_gives_no_client_is_told_what_it_lacks(self, travel):
        code = travel(lambda: Callable())
        with pytest.raises(ClientNotSerializable, match=r"gave a Callable, .* no connect, query"):
            code.new_client()

    def test_the_clients_own_word_is_kept(self, travel):
        class Explaining:
            def __reduce__(self):
                return (_explain, ())

            def __call__(self, prompt):
                return prompt

        with pytest.raises(ClientNotFound, match="pip install it"):
            travel(Explaining())


def _explain():
    raise ClientNotFound("pip install it")


class TestCulprits:
    """The message names what was captured, by the user's own name for it."""

    @pytest.fixture
    def sock(self):
        with socket.socket() as sock:
            yield sock

    def refused(self, client, options=None):
        with pytest.raises(ClientNotSerializable) as caught:
            prepare(client, options or {})
        assert caught.value.started is False
        assert isinstance(caught.value, SoloistError)
        return str(caught.value)

    def test_a_captured_socket(self, sock):
        def ask(prompt):
            return str(sock)

        message = self.refused(ask)
        assert "client -> sock (a socket.socket) cannot be serialized" in message
        assert "Create it inside" in message

    def test_a_file_that_is_written(self, tmp_path):
        with (tmp_path / "log").open("w") as log:
            assert "client -> log (a _io.TextIOWrapper)" in self.refused(lambda p: log.write(p))
        with (tmp_path / "log").open("ab") as log:
            assert "client -> log (a _io.BufferedWriter)" in self.refused(lambda p: log.write(p))

    def test_a_thread(self):
        thread = threading.Thread(target=print)
        message = self.refused(lambda prompt: str(thread.is_alive()))
        assert "client -> thread (a threading.Thread)" in message

    def test_a_process(self):
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            assert "client -> process (a subprocess.Popen)" in self.refused(
                lambda prompt: str(process.pid)
            )

    def test_a_generator(self):
        numbers = (i for i in range(3))
        assert "client -> numbers (a builtins.generator)" in self.refused(lambda p: next(numbers))

    def test_a_global_of_a_script_through_another_function(self):
        names = main_module("""
            import socket
            connection = socket.socket()
            connection.close()
            def helper(prompt):
                return str(connection) + prompt
            def ask(prompt):
                return helper(prompt)
        """)
        assert "client -> helper -> connection (a socket.socket)" in self.refused(names["ask"])

    def test_one_that_only_a_nested_function_uses(self):
        names = main_module("""
            import socket
            connection = socket.socket()
            connection.close()
            def ask(prompt):
                return [str(connection) for _ in range(2)] and (lambda: connection)()
        """)
        assert "client -> connection (a socket.socket)" in self.refused(names["ask"])

    def test_an_attribute_of_a_bound_method(self, sock):
        class Holder:
            def __init__(self):
                self.sock = sock

            def ask(self, prompt):
                return prompt

        assert "client -> self -> sock (a socket.socket)" in self.refused(Holder().ask)

    def test_an_attribute_of_a_class(self, sock):
        class Client(Contract):
            connection = sock

        assert "client -> connection (a socket.socket)" in self.refused(Client)

    def test_an_argument_of_a_partial(self, sock):
        client = functools.partial(lambda s, prompt: prompt, sock)
        assert "client -> args -> [0] (a socket.socket)" in self.refused(client)

    def test_a_default(self, sock):
        assert "client -> s (a socket.socket)" in self.refused(lambda prompt, s=sock: prompt)

    def test_an_option_however_deep(self, sock):
        message = self.refused(lambda prompt, **options: prompt, {"servers": [{"main": sock}]})
        assert "options -> servers -> [0] -> main (a socket.socket)" in message

    def test_beside_a_variable_that_has_no_value_yet(self, sock):
        def make():
            def ask(prompt):
                return str(sock) + later

            message = self.refused(ask)
            later = ""
            return message + later

        assert "client -> sock (a socket.socket)" in make()

    def test_an_object_that_refuses_by_itself(self):
        class Proud:
            def __reduce__(self):
                raise ValueError("I do not travel")

            def __call__(self, prompt):
                return prompt

        message = self.refused(Proud())
        assert "Proud) cannot be serialized" in message
        assert "I do not travel" in message

    def test_standard_output_is_no_culprit(self, travel):
        lock = threading.Lock()  # takes it to dill, which has its own way with files
        out = sys.__stderr__

        def ask(prompt):
            with lock:
                return f"{prompt} {out.name}"

        assert travel(ask).target("x") == "x <stderr>"

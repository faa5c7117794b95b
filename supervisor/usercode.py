"""From what the user named as ``client`` to a file that every worker can load.

Owns the resolution of registered names (entry points ``soloist.clients``), the check of options
before anything is spawned, and the serialization by value. The only place in the supervisor that
pickles; nothing here reads what came over a network.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import cloudpickle
import dill

from soloist.protocol import clientfile
from soloist.protocol.clientfile import ClientFile
from soloist.protocol.errors import (
    ClientNotFound,
    ClientNotSerializable,
    InvalidOptions,
    SoloistError,
)

GROUP = "soloist.clients"
_METHODS = ("connect", "query", "receive_response", "interrupt", "disconnect")


class Client(NamedTuple):
    """A client that is ready to travel: the file's bytes, and what to import beforehand."""

    data: bytes
    preload: tuple[str, ...]


def prepare(client: object, options: Mapping[str, Any]) -> Client:
    """Resolve, check and serialize.

    Args:
        client: a registered name, a class or factory of the client contract, or any callable
            ``prompt -> str``.
        options: keyword arguments of the client, or of each call of a callable.

    Raises:
        ClientNotFound: no such name, or its package is not installed.
        InvalidOptions: an option is unknown or refused.
        ClientNotSerializable: neither cloudpickle nor dill can carry it; the culprit is named.
    """
    if isinstance(client, str):
        entry = _find(client)
        target = _load(entry)
        kind, reference = _kind(target), entry.value
    elif callable(client):
        target, kind, reference = client, _kind(client), ""
    else:
        raise InvalidOptions(
            "client is a registered name, a class, a factory or a callable, not "
            f"{type(client).__name__}"
        )
    _check_options(target, kind, options)
    value = (None if reference else target, dict(options))
    pickler, code = _dump(value)
    preload = _preload(target)
    if reference:
        preload = (reference.partition(":")[0], *preload)
    return Client(clientfile.pack(ClientFile(kind, reference, pickler, code)), preload)


def _find(name: str) -> EntryPoint:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join(sorted(found)) or "none: is soloist installed?"
    raise ClientNotFound(
        f"no client is registered as {name!r}{hint} (known: {known})", started=False
    )


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except SoloistError:
        raise
    except Exception as error:
        raise ClientNotFound(
            f"the client {entry.name!r} ({entry.value}) cannot be imported: "
            f"{type(error).__name__}: {error}",
            started=False,
        ) from error


def _kind(target: Any) -> str:
    """``"contract"`` for a class or factory of clients, ``"function"`` for ``prompt -> str``.

    A class with the contract's methods and a callable that needs no argument make clients;
    whatever needs one is called with the prompt.
    """
    if inspect.isclass(target):
        missing = [name for name in _METHODS if not callable(getattr(target, name, None))]
        if missing:
            raise InvalidOptions(
                f"the class {target.__qualname__} is no client: it has no {', '.join(missing)}; "
                "pass an instance with __call__ if you meant a callable"
            )
        return "contract"
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return "function"
    positional = {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }
    needs_prompt = any(
        parameter.kind is inspect.Parameter.VAR_POSITIONAL
        or (parameter.kind in positional and parameter.default is inspect.Parameter.empty)
        for parameter in parameters
    )
    return "function" if needs_prompt else "contract"


def _preload(target: object) -> tuple[str, ...]:
    """The modules that a client wants imported beforehand; its attribute may be anything."""
    preload = getattr(target, "preload", ())
    if isinstance(preload, list | tuple):
        return tuple(name for name in preload if isinstance(name, str))
    return ()


def _check_options(target: Any, kind: str, options: Mapping[str, Any]) -> None:
    """Have the client check the values and its signature the names."""
    if not isinstance(options, Mapping):
        raise InvalidOptions(f"options are a mapping, not {type(options).__name__}")
    for name in options:
        if not isinstance(name, str):
            raise InvalidOptions(f"option names are str, not {type(name).__name__}")
    check = getattr(target, "check_options", None)
    try:
        if callable(check):
            check(**options)
        _bind(target, [""] if kind == "function" else [], options)
    except SoloistError:
        raise
    except Exception as error:  # the client's own check may raise anything
        name = getattr(target, "__qualname__", type(target).__name__)
        raise InvalidOptions(f"{name}: {str(error) or type(error).__name__}") from error


def _bind(target: Any, prompt: list[str], options: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if ``target`` cannot be called like that."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some builtins have none
        return
    signature.bind(*prompt, **options)


def _dump(value: tuple[Any, dict[str, Any]]) -> tuple[str, bytes]:
    """Serialize by value: cloudpickle first, dill second."""
    reasons: list[str] = []
    for name, dump in _PICKLERS:
        try:
            return name, dump(value)
        except Exception as error:  # noqa: BLE001 - picklers raise anything
            reasons.append(f"{name}: {type(error).__name__}: {error}")
    culprit = _culprit(value)
    raise ClientNotSerializable(
        f"the client cannot travel to a worker: {culprit}. Create it inside the function or "
        f"client instead of capturing it. ({'; '.join(reasons)})",
        started=False,
    )


_ALIVE = (threading.Thread, subprocess.Popen)
"""What a pickler would carry as a dead copy of something alive here."""
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_CACHED = type(functools.lru_cache(_LOCK))


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is untyped
    """cloudpickle, and what it refuses or carries by a name that a worker cannot find.

    A lock arrives free, a function's cache arrives empty: each worker has its own.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _ALIVE):
            raise TypeError(f"cannot pickle {type(obj).__name__!r} object")
        if isinstance(obj, _LOCK):
            return threading.Lock, ()
        if isinstance(obj, _RLOCK):
            return threading.RLock, ()
        if isinstance(obj, _CACHED) and not _is_importable(obj):
            parameters = obj.cache_parameters()
            return clientfile.cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        return super().reducer_override(obj)


def _is_importable(value: Any) -> bool:
    """Whether a worker, which does not import the main module, finds it by its name."""
    found: Any = sys.modules.get(value.__module__)
    if found is None or value.__module__ == "__main__":
        return False
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _cloudpickle_dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _CloudPickler(buffer).dump(value)
    return buffer.getvalue()


class _Dill(dill.Pickler):  # type: ignore[misc] # dill is untyped
    """dill, but for what it would carry as a dead copy of something alive here."""

    dispatch = type(dill.Pickler.dispatch)(dill.Pickler.dispatch)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:  # noqa: FBT001, FBT002
        if isinstance(obj, _ALIVE) or _is_written(obj):
            raise TypeError(f"cannot pickle {type(obj).__name__!r} object")
        super().save(obj, save_persistent_id)


def _save_lock(pickler: Any, lock: object) -> None:
    # dill's own way gives a lock that is held for ever: always with an RLock, and with a Lock
    # that somebody holds just now.
    make = threading.RLock if isinstance(lock, type(threading.RLock())) else threading.Lock
    pickler.save_reduce(make, (), obj=lock)


_Dill.dispatch[type(threading.Lock())] = _save_lock
_Dill.dispatch[type(threading.RLock())] = _save_lock


def _is_written(value: Any) -> bool:
    """Whether it is a file open for writing: two processes would write over each other."""
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    if not isinstance(value, io.TextIOWrapper | io.BufferedIOBase | io.RawIOBase):
        return False
    return not isinstance(value, io.BytesIO) and value not in standard and value.writable()


def _dill_dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Dill(buffer, recurse=True, byref=False).dump(value)
    return buffer.getvalue()


_PICKLERS: tuple[tuple[str, Callable[[object], bytes]], ...] = (
    ("cloudpickle", _cloudpickle_dumps),
    ("dill", _dill_dumps),
)


def _culprit(value: tuple[Any, dict[str, Any]]) -> str:
    """Name the innermost captured thing that no pickler carries."""
    target, options = value
    found = _search("options", options, depth=4) or _search("client", target, depth=4)
    return found or "something in it cannot be serialized"


def _search(name: str, value: Any, depth: int) -> str | None:
    if _travels(value):
        return None
    if depth and not isinstance(value, _ALIVE):
        for inner_name, inner in _parts(value):
            found = _search(f"{name} -> {inner_name}" if name else inner_name, inner, depth - 1)
            if found:
                return found
    return f"{name} (a {type(value).__module__}.{type(value).__qualname__}) cannot be serialized"


def _travels(value: Any) -> bool:
    for _, dump in _PICKLERS:
        try:
            dump(value)
        except Exception:  # noqa: BLE001, S112 - picklers raise anything
            continue
        return True
    return False


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value would drag along, by the name the user gave it."""
    match value:
        case dict():
            yield from ((str(key), item) for key, item in value.items())
        case list() | tuple() | set() | frozenset():
            yield from ((f"[{i}]", item) for i, item in enumerate(value))
        case types.FunctionType():
            yield from _captured(value)
        case types.MethodType():
            yield "self", value.__self__
        case functools.partial():
            yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
        case type():
            yield from ((name, item) for name, item in vars(value).items() if name[:2] != "__")
        case _:
            yield from getattr(value, "__dict__", {}).items()


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """A function's variables from outside, and its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            yield name, cell.cell_contents
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, parameter in inspect.signature(function).parameters.items():
        yield name, parameter.default


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)

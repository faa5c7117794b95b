"""The file that carries the client from the constructor to every worker of one Supervisor.

Pure: the layout only. ``code`` is the serialized pair ``(target, options)``; ``target`` is ``None``
if ``reference`` names it. It is read by the workers of the Supervisor that wrote it, from a
folder that only its user may enter; nothing received over the network ever comes here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from soloist.protocol.errors import RemoteProtocolError


class ClientFile(NamedTuple):
    """What a worker needs to build its client.

    ``kind`` is ``"contract"`` (a class or factory of the client contract) or ``"function"``;
    ``reference`` is ``"module:name"`` or empty; ``pickler`` is ``"cloudpickle"`` or ``"dill"``.
    """

    kind: str
    reference: str
    pickler: str
    code: bytes


def pack(client: ClientFile) -> bytes:
    """Give the file's bytes."""
    data: bytes = msgpack.packb(tuple(client), use_bin_type=True)
    return data


def cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:  # noqa: FBT001
    """Wrap a function of the user's as ``functools.lru_cache`` did; what a worker unpickles."""
    return functools.lru_cache(maxsize, typed)(function)


def unpack(data: bytes) -> ClientFile:
    """Rebuild from the file's bytes.

    Raises:
        RemoteProtocolError: not such a file.
    """
    try:
        kind, reference, pickler, code = msgpack.unpackb(data, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not a client file: {error}") from error
    if not (
        isinstance(kind, str)
        and isinstance(reference, str)
        and isinstance(pickler, str)
        and isinstance(code, bytes)
    ):
        raise RemoteProtocolError("not a client file")
    return ClientFile(kind, reference, pickler, code)

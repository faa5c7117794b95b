"""Loads the user's client from the run folder. The only place here that unpickles.

The file was written by this worker's own supervisor into a folder of mode 0700; nothing received
over a socket ever comes here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import dill

from soloist.protocol import clientfile
from soloist.protocol.errors import ClientNotSerializable, SoloistError
from soloist.worker.clients.base import METHODS

_LOADERS: dict[str, Callable[[bytes], Any]] = {
    "cloudpickle": cloudpickle.loads,
    "dill": dill.loads,
}


class UserCode(NamedTuple):
    """The user's client, loaded.

    ``target`` is a factory of clients (``kind`` ``"contract"``) or a callable
    ``prompt -> str`` (``"function"``).
    """

    kind: str
    target: Callable[..., Any]
    options: dict[str, Any]

    def new_client(self) -> Any:
        """Build one client.

        Raises:
            ClientNotSerializable: what was built is no client; the message says what it lacks.
        """
        client = self.target(**self.options)
        missing = [name for name in METHODS if not callable(getattr(client, name, None))]
        if missing:
            raise ClientNotSerializable(
                f"{_name(self.target)} gave a {type(client).__name__}, which is no client: it has "
                f"no {', '.join(missing)}"
            )
        return client


def load(path: str) -> UserCode:
    """Load what the constructor stored.

    Raises:
        ClientNotSerializable: it cannot be loaded in this process; the user's, and why.
        SoloistError: the client's own word.
    """
    file = clientfile.unpack(Path(path).read_bytes())
    try:
        target, options = _LOADERS[file.pickler](file.code)
        if file.reference:
            target = _resolve(file.reference)
    except SoloistError:
        raise
    except BaseException as error:  # user code of any kind runs here
        raise ClientNotSerializable(
            f"the client cannot be loaded in a worker: {type(error).__name__}: {error}. Workers "
            "do not import the main module; what the client needs must travel with it or be "
            "importable"
        ) from error
    return UserCode(file.kind, target, options)


def _resolve(reference: str) -> Any:
    module, _, name = reference.partition(":")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _name(target: object) -> str:
    return getattr(target, "__qualname__", type(target).__name__)

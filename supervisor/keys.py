"""CURVE key pairs in files, as ``zmq.auth`` writes them.

Owns the files' names and modes: ``NAME.key`` holds the public key, ``NAME.key_secret`` both, for
its owner's eyes alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import zmq
import zmq.auth

from soloist.protocol.errors import InvalidOptions

KEY_CHARS = 40
"""A key of 32 bytes in Z85."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def new_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key pair.

    Args:
        folder: made with mode 0700 if it is not there.
        name: of both files.

    Returns:
        The paths of the public and of the secret file.

    Raises:
        InvalidOptions: there is such a file already, or it cannot be written.
    """
    if not name or Path(name).name != name:
        raise InvalidOptions(f"{name!r} is no name of a file")
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists():
            raise InvalidOptions(f"{path} is there already; a key in use is not overwritten")
    before = os.umask(0o077)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        zmq.auth.create_certificates(folder, name)
    except OSError as error:
        raise InvalidOptions(f"cannot write to {folder}: {error.strerror}") from error
    finally:
        os.umask(before)
    public.chmod(0o644)
    secret.chmod(0o600)
    return public, secret


def pairs(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Every key of a folder: its name, the public key in Z85, whether the secret one is there."""
    for path in sorted(folder.glob("*.key")):
        public, _ = load(path)
        yield path.stem, public.decode(), path.with_suffix(".key_secret").exists()


def load(path: Path, *, is_secret: bool = False) -> tuple[bytes, bytes]:
    """Read a key file.

    Args:
        path: of a public or a secret file.
        is_secret: whether the secret key is needed.

    Returns:
        The public and the secret key, in Z85; the latter empty if it is not there.

    Raises:
        InvalidOptions: it cannot be read, is no key file, or others can read a secret.
    """
    try:
        public, secret = zmq.auth.load_certificate(path)
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InvalidOptions(f"cannot read the key file {path}: {error}") from error
    if any(len(key) != KEY_CHARS for key in (public, secret) if key):
        raise InvalidOptions(f"the key in {path} is not {KEY_CHARS} characters long")
    if is_secret and not secret:
        raise InvalidOptions(f"{path} has no secret key; name the file that ends with _secret")
    if secret and mode & _OTHERS:
        raise InvalidOptions(f"others can read {path}: chmod 600 {path}")
    return public, secret or b""


def load_allowed(folder: Path) -> frozenset[bytes]:
    """Read the public keys of all who are let in.

    Raises:
        InvalidOptions: the folder is not there, or has none.
    """
    if not folder.is_dir():
        raise InvalidOptions(f"there is no folder {folder} with the clients' public keys")
    allowed = frozenset(load(path)[0] for path in folder.glob("*.key"))
    if not allowed:
        raise InvalidOptions(f"no client is let in: there is no public key (*.key) in {folder}")
    return allowed

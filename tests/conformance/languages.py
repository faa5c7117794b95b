"""The reference clients in ``protocol/clients``: how each is run, and what it needs to be run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.support import LIMIT_S, ROOT

_CLIENTS = ROOT / "protocol" / "clients"
_MSGPACK_C = "pkg-config --exists msgpack-c || pkg-config --exists msgpack"


class Language(NamedTuple):
    """One reference client.

    ``command`` runs its scenario program; ``needs`` are commands that succeed, in its ``folder``,
    if what it needs is installed; ``make`` then builds it.
    """

    folder: Path
    command: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()
    make: tuple[str, ...] = ()

    def missing(self) -> str:
        """What is not installed; empty if all is."""
        for need in self.needs:
            if shutil.which(need[0]) is None:
                return f"there is no {need[0]}"
            if _run(need, self.folder).returncode != 0:
                return f"this fails: {' '.join(need)}"
        return ""

    def build(self) -> None:
        """Build it, if need be.

        Raises:
            AssertionError: with what the compiler said.
        """
        if self.make:
            made = _run(self.make, self.folder)
            assert made.returncode == 0, made.stdout + made.stderr


LANGUAGES: Mapping[str, Language] = MappingProxyType(
    {
        "python": Language(ROOT, (sys.executable, str(Path(__file__).with_name("raw.py")))),
        "node": Language(
            _CLIENTS / "node",
            ("node", str(_CLIENTS / "node" / "scenario.mjs")),
            needs=(
                ("node", "-e", "require.resolve('zeromq'); require.resolve('@msgpack/msgpack')"),
            ),
        ),
        "c": Language(
            _CLIENTS / "c",
            (str(_CLIENTS / "c" / "scenario"),),
            needs=(
                ("cc", "--version"),
                ("pkg-config", "--exists", "libzmq"),
                ("sh", "-c", _MSGPACK_C),
            ),
            make=("make",),
        ),
        "ruby": Language(
            _CLIENTS / "ruby",
            ("ruby", str(_CLIENTS / "ruby" / "scenario.rb")),
            needs=(("ruby", "-e", "require 'ffi-rzmq'; require 'msgpack'"),),
        ),
    }
)
"""By name; ``python`` plays ``shared`` and ``stream`` alone, with nothing of Soloist."""


def _run(command: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=4 * LIMIT_S, check=False
    )

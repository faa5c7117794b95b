"""``python -m benchmarks NAME``: run one; without a name, list them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def names() -> list[str]:
    """Every benchmark: a module of this folder with a ``main``."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def main() -> int:
    """Run what the command line names."""
    known = names()
    if len(sys.argv) > 1 and sys.argv[1] in known:
        name = sys.argv.pop(1)
        sys.argv[0] = f"python -m benchmarks {name}"
        importlib.import_module(f"benchmarks.{name}").main()
        return 0
    for name in known:
        title = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]
        print(f"{name:22} {title}")
    return 0 if len(sys.argv) == 1 else 2


if __name__ == "__main__":
    sys.exit(main())

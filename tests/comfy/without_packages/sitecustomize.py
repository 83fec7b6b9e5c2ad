"""Makes chosen packages look uninstalled; Python imports this file at start when its folder is on PYTHONPATH."""

from __future__ import annotations

import importlib.abc
import os
import sys

BLOCKED = frozenset(filter(None, os.environ.get("BLOCKED_PACKAGES", "").split(",")))


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses the blocked packages and their submodules, as if they were not there."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


sys.meta_path.insert(0, Blocker())

"""The search as a whole: plan, pipeline, session, and what a user sees of it.

`autoprune.search` is the public function and this folder at once, so the folder can be called.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.config import Config
    from autoprune.run.results import SearchResult


class _CallablePackage(ModuleType):
    def __call__(self, config: "Config | Mapping[str, Any] | str | Path") -> "SearchResult":
        """See `autoprune.search.pipeline.search`."""
        from autoprune.search.pipeline import search

        return search(config)


sys.modules[__name__].__class__ = _CallablePackage

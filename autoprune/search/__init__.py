"""The search as a whole. `autoprune.search(config)` runs one and returns its `SearchResult`.

`config` is a `Config`, a mapping of its fields, or the path of a YAML file; all about it is in
`autoprune.search.pipeline.search`.
The public function and this folder have the same name, so the folder is what is called, pickled and copied.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.config import Config
    from autoprune.run.results import SearchResult


class _CallablePackage(ModuleType):
    def __call__(
        self, config: "Config | Mapping[str, Any] | str | Path", accept_data_change: bool = False
    ) -> "SearchResult":
        """See `autoprune.search.pipeline.search`."""
        from autoprune.search.pipeline import search

        return search(config, accept_data_change)

    def __reduce__(self) -> tuple[Any, ...]:  # modules are not pickled; other processes find it by its name
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallablePackage

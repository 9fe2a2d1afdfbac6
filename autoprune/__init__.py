"""autoprune finds the pruning ratios that make object detectors several times cheaper with most of their mAP.

The public names load on first use: importing autoprune is cheap, and imports neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.export import load
    from autoprune.graph import ChannelGraph, ChannelGroup, analyze, prune
    from autoprune.policy import Policy
    from autoprune.search.pipeline import SearchResult, search

__version__ = "0.1.0"

_HOME = {
    "ChannelGraph": "autoprune.graph",
    "ChannelGroup": "autoprune.graph",
    "Policy": "autoprune.policy",
    "SearchResult": "autoprune.search.pipeline",
    "analyze": "autoprune.graph",
    "load": "autoprune.export",
    "prune": "autoprune.graph",
    "search": "autoprune.search",  # the folder itself, which can be called
}

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Policy",
    "SearchResult",
    "__version__",
    "analyze",
    "load",
    "prune",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    module = import_module(_HOME[name])
    # Importing a file of the folder `search` binds that name to the folder, so the folder itself is callable.
    return module if name == "search" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__

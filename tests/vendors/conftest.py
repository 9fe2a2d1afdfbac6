"""Tests of a library's detectors run where the library is installed: `pip install -e '.[ultralytics]'`."""

import importlib.util

from autoprune.fields import VENDORS

MISSING = [library for library in VENDORS if importlib.util.find_spec(library) is None]
collect_ignore_glob = [f"test_{library}*.py" for library in MISSING]

"""A run to show: searched, checked, four of its trials recovered."""

import pytest


@pytest.fixture(scope="session")
def run(checked_run):
    """Its directory."""
    return checked_run

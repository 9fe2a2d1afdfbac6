"""What tests of engines share: events to wait for, and a clock by which no worker is ever overdue."""

import time

SAFETY_LIMIT_S = 900  # far above what any machine needs; nothing is tested by it


def wait_until(condition, process=None):
    """Waits for an event; fails if ``process`` ends before it."""
    end = time.monotonic() + SAFETY_LIMIT_S
    while not condition():
        assert process is None or process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < end, "the event did not come"
        time.sleep(0.05)


def stopped_clock():
    """For engines whose workers must not be taken for hung ones, however busy the machine is."""
    return 0.0

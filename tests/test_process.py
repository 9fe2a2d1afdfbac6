"""What foreign code prints, by Python or by C, never reaches standard output; in a process of its own."""

import logging
import signal
import subprocess
import sys

import pytest

from autoprune.process import loggers_at, signals_interrupt, stdout_to_stderr

pytestmark = pytest.mark.usefixtures("foreground")
SCRIPT = """
import ctypes, logging, os, sys
from autoprune.process import stdout_to_stderr

early = logging.StreamHandler(sys.stdout)  # as Ultralytics' logger, if it was imported before
libc = ctypes.CDLL(None)
print("before")
with stdout_to_stderr():
    print("by print")
    early.stream.write("by an early handler\\n")
    os.write(1, b"by the descriptor\\n")
    libc.printf(b"by C\\n")  # stays in the C library's buffer until it is flushed
    with stdout_to_stderr():
        print("nested")
print("after")
try:
    with stdout_to_stderr():
        raise KeyError
except KeyError:
    print("restored")
"""


def test_every_way_to_print_is_redirected_and_restored():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["before", "after", "restored", ""]
    printed = {"by print", "by an early handler", "by the descriptor", "by C", "nested"}
    assert printed == set(done.stderr.splitlines())


def test_a_process_without_standard_output_is_served():
    script = (
        "import os, sys; os.close(1); sys.stdout = None\n"
        "from autoprune.process import stdout_to_stderr\n"
        "with stdout_to_stderr(): print('seen')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "seen\n")


def test_it_works_where_the_streams_are_replaced(capsys):
    with stdout_to_stderr():
        print("in a test or a notebook")
    assert capsys.readouterr() == ("", "in a test or a notebook\n")


# `_decimal`, in C, imports `numbers` while it is initialized.
INTERRUPTED_IMPORT = """
import importlib.util, numbers, signal, sys, time
from autoprune.process import signals_interrupt

class Numbers:
    def find_spec(name, path=None, target=None):
        if name == "numbers":
            return importlib.util.spec_from_loader(name, Numbers)
    def create_module(spec):
        pass
    def exec_module(module):
        module.__dict__.update(vars(numbers))
        signal.raise_signal(NUMBER)
        print("goes on")

for name in ("_decimal", "decimal", "numbers"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Numbers)
try:
    with signals_interrupt():
        import _decimal
        while True:
            time.sleep(0.01)  # not signal.pause: a signal just before it would be waited for in vain
except KeyboardInterrupt:
    print("interrupted", "_decimal" in sys.modules)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_an_extensions_import(number):
    script = INTERRUPTED_IMPORT.replace("NUMBER", str(int(number)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.split("\n"), done.stderr) == (["goes on", "interrupted True", ""], "")


# In a process of its own: Ray, of other tests, leaves a handler that ends its process.
INTERRUPTED = """
import signal
from autoprune.process import signals_interrupt

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a command in the background ignores
numbers = (signal.SIGINT, signal.SIGTERM)
before = [signal.getsignal(number) for number in numbers]
for number in numbers:
    try:
        with signals_interrupt():
            signal.raise_signal(number)
            print("goes on")
    except KeyboardInterrupt:
        print("interrupted")
print([signal.getsignal(number) for number in numbers] == before)
"""


def test_a_signal_elsewhere_interrupts_at_once_and_the_handlers_are_restored():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["interrupted", "interrupted", "True"], "")


def test_an_ignored_interrupt_stays_ignored():
    """As of a command in the background of a script, which Ctrl-C is not meant for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# As Ray starts its processes: Python code runs after the fork, and what it raises is dropped.
INTERRUPTED_FORK = """
import os, signal, time
from autoprune.process import signals_interrupt

def after():
    if not sent:
        sent.append(True)
        signal.raise_signal(NUMBER)

def other(number, frame):
    raise SystemExit(number)

sent = []
os.register_at_fork(after_in_parent=after)
try:
    with signals_interrupt():
        if HANDLER:
            signal.signal(NUMBER, other)
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        print("goes on", flush=True)
        while True:
            time.sleep(0.01)
except (KeyboardInterrupt, SystemExit) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("number", "other", "raised"),
    [
        (signal.SIGINT, False, "KeyboardInterrupt"),
        (signal.SIGTERM, False, "KeyboardInterrupt"),
        (signal.SIGTERM, True, "SystemExit"),
    ],
)
def test_a_signal_whose_exception_is_dropped_comes_again(number, other, raised):
    script = INTERRUPTED_FORK.replace("NUMBER", str(int(number))).replace("HANDLER", str(other))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.split("\n"), done.stderr) == (["goes on", raised, ""], "")


# The block ends before the signal comes again; the handler of before is another's.
ENDED_EARLY = """
import signal, threading, time
from autoprune import process

resent = threading.Event()
start = process._thread.start_new_thread
process._thread.start_new_thread = lambda send, given: start(lambda: (send(*given), resent.set()), ())
signal.signal(signal.SIGTERM, lambda *_: print("sent to another's handler"))
process._extension_is_imported = lambda frame: True
with process.signals_interrupt():
    signal.raise_signal(signal.SIGTERM)
resent.wait()
time.sleep(0.01)  # where Python runs handlers
"""


def test_a_signal_does_not_come_again_after_the_block():
    done = subprocess.run([sys.executable, "-c", ENDED_EARLY], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_loggers_have_their_own_levels_again_after_an_error() -> None:
    loggers = [logging.getLogger(f"autoprune.test.{name}") for name in ("one", "other")]
    loggers[0].setLevel(logging.INFO)

    def fail() -> None:
        with loggers_at(logging.ERROR, *loggers):
            assert [logger.level for logger in loggers] == [logging.ERROR, logging.ERROR]
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert [logger.level for logger in loggers] == [logging.INFO, logging.NOTSET]

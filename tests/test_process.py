"""What foreign code prints, by Python or by C, never reaches standard output; in a process of its own."""

import subprocess
import sys

from autoprune.process import stdout_to_stderr

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

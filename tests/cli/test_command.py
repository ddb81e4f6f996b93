"""What a command shows of TensorFlow's own messages: nothing, unless it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from keras_ntt.cli.command import without_notices

NOTICE = b"I0000 00:00:1796085290.541773   25735 port.cc:153] oneDNN custom operations are on.\n"


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_notices_are_dropped_and_all_else_passes(capfd):
    with without_notices():
        os.write(2, NOTICE + b"an error\n" + NOTICE + b"the end without a new line")
        sys.stderr.write("from Python\n")  # at once, while the others are on their way
        sys.stderr.flush()
    os.write(2, NOTICE)
    found = capfd.readouterr().err
    for words in ("an error\n", "from Python\n", "the end without a new line"):
        assert found.count(words) == 1
    assert found.count("oneDNN") == 1  # the one after the command


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with without_notices():
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ


def test_an_error_inside_leaves_standard_error_as_it_was(capfd):
    before = sys.stderr
    with pytest.raises(KeyError), without_notices():
        raise KeyError
    assert sys.stderr is before
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_process_without_standard_error_runs():
    code = (
        "import os; os.close(2)\n"
        "from keras_ntt.cli.command import without_notices\n"
        "with without_notices(): print('done')"
    )
    assert run(code).stdout == "done\n"


def test_help_and_version_come_without_tensorflow():
    code = (
        "import sys; from keras_ntt.cli import main\n"
        "code = main(sys.argv[1:]); assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    for option, shown in (("--help", "Usage: keras-ntt"), ("--version", "keras-ntt 0")):
        done = run(code, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert shown in done.stdout


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.long
def test_a_command_shows_tensorflow_s_messages_only_if_it_is_asked_to(tmp_path, verbose):
    code = (
        "import os, sys; os.environ.pop('TF_CPP_MIN_LOG_LEVEL', None)\n"
        "from keras_ntt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "none.keras").write_bytes(b"")
    done = run(code, "report", str(tmp_path / "none.keras"), *["--verbose"] * verbose)
    assert done.returncode == 1
    assert ("0000 00:00:" in done.stderr) == verbose, done.stderr
    assert "keras-ntt: " in done.stderr

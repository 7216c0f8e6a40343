"""``python -m greenws``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import greenws
from greenws.__main__ import COMMANDS, main

pytestmark = pytest.mark.no_io


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "greenws", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"greenws {greenws.__version__}\n")


def test_the_help_is_the_same_without_docstrings():
    outputs = [
        subprocess.run(
            [sys.executable, *options, "-m", "greenws", "send", "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()  # a docstring is stripped there
        for options in ((), ("-OO",))
    ]
    assert outputs[0] == outputs[1]


def test_help_lists_the_commands_without_importing_them(capsys):
    program = (
        "import sys\nfrom greenws.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not [n for n in sys.modules if n.startswith(('greenws.cli.', 'gevent'))]"
    )
    # Where coverage is measured, it would bring gevent along.
    env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert name in done.stdout


def test_errors_do_not_go_to_the_output_if_the_standard_error_is_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["connect", "ws+unix:///nowhere:/"]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["connect", "--nonsense"])
    sys.stderr.close()
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: python -m greenws {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "usage", "error"),
    [
        ([], "[-h]", "required: COMMAND"),
        (["nothing"], "[-h]", "invalid choice: 'nothing'"),
        (
            ["doctor", "--nothing"],
            "doctor [-h]",
            "doctor: error: unrecognized arguments: --nothing",
        ),
        (["connect", "ws://h/", "x"], "connect [-h]", "unrecognized arguments: x"),
        (["connect", "--max-size", "0", "ws://h/"], "connect [-h]", "--max-size: must be a number"),
        (["connect", "--max-size", "1k", "ws://h/"], "connect [-h]", "below 2**63, not '1k'"),
        (["connect", "--max-size", "9" * 19, "ws://h/"], "connect [-h]", "--max-size: must be"),
        (["connect", "--max-size", "9" * 30, "ws://h/"], "connect [-h]", "--max-size: must be"),
        (["send", "--nothing=1", "u", "r"], "send [-h]", "unrecognized arguments: --nothing=1"),
    ],
)
def test_a_wrong_call_ends_with_2_and_the_usage(arguments, usage, error, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"usage: python -m greenws {usage}")
    assert error in errors.splitlines()[-1]

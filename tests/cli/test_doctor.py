"""``python -m greenws doctor``."""

from __future__ import annotations

import greenws
from greenws.__main__ import main


def test_it_says_which_form_runs(capsys):
    main(["doctor"])
    output = capsys.readouterr().out
    assert f"greenws {greenws.__version__}" in output
    assert greenws.form.DESCRIPTION in output

"""The tests, in the folders of what they test: greenws/http/head.py has tests/http/test_head.py.

What they share is in support/, fixtures are in each folder's conftest.py, programs that run in
processes of their own in programs/. Imports are relative, and pytest puts no folder on sys.path:
one with http/ in it would hide the standard library's.
"""

import pytest

pytest.register_assert_rewrite("tests.support")

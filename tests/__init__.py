"""A package, so that its folders may be called http and redis without hiding anybody's."""

import pytest

pytest.register_assert_rewrite("tests.support")

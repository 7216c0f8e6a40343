"""How many examples Hypothesis tries: all in CI, a tenth while one works.

``GREENWS_HYPOTHESIS`` says which (``quick`` or ``full``). Both are reproducible, and without a
limit of time that a busy machine would break.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

__all__ = ["examples", "load_profile"]


def load_profile() -> None:
    for name, count in (("quick", 10), ("full", 100)):
        settings.register_profile(
            name, max_examples=count, deadline=None, derandomize=True, database=None
        )
    in_ci = os.environ.get("GREENWS_REQUIRE_ALL") == "1"
    settings.load_profile(os.environ.get("GREENWS_HYPOTHESIS") or ("full" if in_ci else "quick"))


def examples(count: int, **options: Any) -> settings:
    """Settings of a test with ``count`` examples, in full."""
    if settings.get_current_profile_name() == "quick":
        count = max(10, count // 10)
    return settings(max_examples=count, **options)

"""Has ``importlib.metadata.entry_points`` read the metadata of all packages once in a process.

While it patches, gevent asks 25 times who wants to know of it, and each time Python reads what
every package declares. With the packages of all tests that is a seventh of a second, in hundreds
of processes. `.ci/run` installs this module into the environment of the tests, where it does
nothing without the variable that `.ci/run` sets.
"""

import os
import sys
from importlib.machinery import PathFinder


class Finder:
    """Waits until ``importlib.metadata`` is imported, which most processes never do."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "importlib.metadata":
            return None
        sys.meta_path.remove(Finder)
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            read, found = module.entry_points, []

            def entry_points(**parameters):
                if not found:
                    found.append(read())
                return found[0].select(**parameters)

            module.entry_points = entry_points

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("GREENWS_REQUIRE_ALL") == "1":
    sys.meta_path.insert(0, Finder)

"""The extension modules; everything else about the distribution is in pyproject.toml.

The modules are the same Python files that run without it, compiled by Cython with the C types of
the .pxd files beside them; and the twin of ``apply_mask`` in C. Where they cannot be built (without
a C compiler, or without Cython), the pure form is installed: all of them are built, or none.
"""

import contextlib
import filecmp
import glob
import os
import shutil
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

COMPILED = [
    "protocol/frames",
    "protocol/messages",
    "protocol/connection",
    "protocol/shared",
    "hub/turns",
    "hub/polling",
    "hub/transport",
    "websocket",
    "keepalive",
    "http/head",
    "protocol/handshake",
    "upgrade",
    "stats",
    "session",
    "server/admission",
    "server/opening",
    "server/environ",
    "server/response",
]
HEADERS = ["greenws/protocol", "greenws/hub"]

# Symbols would be two thirds of the files. With "-g" in CFLAGS they stay.
STRIP = sys.platform == "linux" and "-g" not in os.environ.get("CFLAGS", "").split()

NOTE = """
============================================================================
greenws: the extension modules are not built, so the pure form is installed.
Reason: {reason}
It does the same, a few times slower. To get the compiled form, install a C
compiler and Python's headers (on Debian: apt-get install gcc python3-dev),
then: pip install --force-reinstall --no-deps --no-cache-dir -v (the same)
`python -m greenws doctor` shows which form runs.
============================================================================
"""


# On the path of a message. The others run once for a connection or a request, and are optimized for
# size, which makes them a third smaller.
HOT = {
    "protocol/_masking",
    "protocol/frames",
    "protocol/messages",
    "protocol/connection",
    "protocol/shared",
    "hub/turns",
    "hub/polling",
    "hub/transport",
    "websocket",
}


def level_of(extension):
    name = extension.name.removeprefix("greenws.").replace(".", "/")
    return "-O3" if name in HOT else "-Os"


class NotHere(Exception):
    """Why no extension module can be built."""


def extensions():
    twin = Extension(
        "greenws.protocol._masking",
        ["greenws/protocol/_masking.c"],
        depends=["greenws/protocol/_masking.h"],
    )
    compiled = [
        Extension(
            f"greenws.{name.replace('/', '.')}",
            [f"greenws/{name}.py"],
            include_dirs=[*HEADERS],
            depends=[header for folder in HEADERS for header in glob.glob(f"{folder}/*.h")],
        )
        for name in COMPILED
    ]
    return [twin, *compiled]


def check_platform():
    """
    Raises:
        NotHere: the pure form was asked for, or this is no platform of the compiled form.
    """
    if os.environ.get("GREENWS_PURE_PYTHON", "") not in ("", "0"):
        raise NotHere("GREENWS_PURE_PYTHON is set")
    if sys.platform == "win32":
        raise NotHere("on Windows sockets are not file descriptors")
    if sys.implementation.name != "cpython":
        raise NotHere(f"the modules are for CPython, not for {sys.implementation.name}")


def copy_if_new(source, target):
    """Copies a file whole or not at all, since another build may read it at the same time."""
    if os.path.exists(target) and filecmp.cmp(source, target, shallow=False):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.{os.getpid()}"
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def translate(modules):
    """Makes C of the modules, by Cython.

    Raises:
        NotHere: Cython, greenlet or its header is missing, as it may be with --no-build-isolation.
    """
    try:
        import Cython
        import greenlet
        from Cython.Build import cythonize
    except ImportError as error:
        raise NotHere(f"{error}; building needs Cython>=3.1 and greenlet") from None
    if tuple(map(int, Cython.__version__.split(".")[:2])) < (3, 1):
        raise NotHere(f"Cython {Cython.__version__} is too old; building needs Cython>=3.1")
    # A copy, since pip puts greenlet into another folder each time, which ccache would see.
    header = os.path.join(os.path.dirname(greenlet.__file__), "greenlet.h")
    try:
        copy_if_new(header, "build/include/greenlet.h")
    except OSError as error:
        raise NotHere(f"{error}; building needs the header of greenlet") from None
    for module in modules:
        module.include_dirs.append("build/include")
    # Annotations are for people and mypy: `str` must not refuse a subclass of it.
    # None of their objects is to be pickled; the methods for it are a tenth of the files.
    directives = {"language_level": 3, "annotation_typing": False, "auto_pickle": False}
    sources = {m.name: m.sources for m in cythonize(modules, compiler_directives=directives)}
    for module in modules:
        module.sources = sources[module.name]


class BuildAllOrNone(build_ext):
    """Builds all extension modules, since they need one another; or none, and says why."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        inplace, modules = self.inplace, self.extensions
        try:
            check_platform()
            super().run()
        except (NotHere, CompileError, LinkError, BaseError) as error:
            for self.inplace in {0, inplace}:
                for module in modules:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(self.get_ext_fullpath(module.name))
            self.extensions = self.distribution.ext_modules = []
            print(NOTE.format(reason=error), file=sys.stderr, flush=True)

    def build_extensions(self):
        modules = self.extensions
        self.extensions = modules[:1]
        super().build_extensions()  # without a compiler it ends here, before the long part
        translate(modules[1:])
        self.extensions = modules
        super().build_extensions()

    def build_extension(self, ext):
        # Beside Python's own flags, in whose place setuptools takes CFLAGS.
        flags = os.environ.get("GREENWS_CFLAGS", "").split()
        debug = ["-g0"] if STRIP else []  # a quarter of the time goes into what would be stripped
        ext.extra_compile_args = [level_of(ext), *debug, *flags]
        ext.extra_link_args = ["-Wl,-s"] if STRIP else []
        super().build_extension(ext)


class TaggedWheel(bdist_wheel):
    """A wheel of the pure form is for any Python and machine, and its name says so."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildAllOrNone, "bdist_wheel": TaggedWheel},
)

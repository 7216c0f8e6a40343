"""The package, and its extension modules where a compiler is at hand.

The modules are the same Python files that run without it, compiled by Cython with the C types of
the .pxd files beside them; and the twin of ``apply_mask`` in C. A machine without a compiler
installs the pure form.
"""

import glob
import os
import sys

from setuptools import Extension, find_packages, setup

COMPILED = [
    "protocol/frames",
    "protocol/messages",
    "protocol/connection",
    "protocol/shared",
    "hub/turns",
    "hub/polling",
    "hub/transport",
    "websocket",
]
HEADERS = ["greenws/protocol", "greenws/hub"]


def extensions():
    masking = Extension(
        "greenws.protocol._masking",
        ["greenws/protocol/_masking.c"],
        depends=["greenws/protocol/_masking.h"],
        extra_compile_args=["-O3"],
        optional=True,
    )
    if sys.platform == "win32":  # sockets are no descriptors there
        return [masking]
    try:
        import greenlet
        from Cython.Build import cythonize
    except ImportError:  # building without isolation, without Cython
        return [masking]
    modules = cythonize(
        [
            Extension(
                f"greenws.{name.replace('/', '.')}",
                [f"greenws/{name}.py"],
                include_dirs=[*HEADERS, os.path.dirname(greenlet.__file__)],
                depends=[header for folder in HEADERS for header in glob.glob(f"{folder}/*.h")],
                extra_compile_args=["-O3"],
                optional=True,
            )
            for name in COMPILED
        ],
        # Annotations are for people and mypy: `str` must not refuse a subclass of it.
        compiler_directives={"language_level": 3, "annotation_typing": False},
    )
    return [masking, *modules]


setup(
    name="greenws",
    version="0.1.0",
    description="WebSockets for any WSGI application, in plain blocking Python, on gevent",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["greenws", "greenws.*"]),
    package_data={"": ["py.typed", "*.pxd", "*.h", "*.lua"]},
    ext_modules=extensions(),
    python_requires=">=3.10",
    install_requires=[
        "gevent>=24.10",
        "gevent-websocket>=0.10.1",
        "httptools>=0.6.4",  # llhttp, the strict parser of HTTP requests
        "werkzeug>=3.0",
    ],
    extras_require={
        "redis": ["redis>=5.0"],
        "gunicorn": ["gunicorn[gevent]>=23"],
        "metrics": ["prometheus-client>=0.20"],
        # Every client, server and framework that the tests set against greenws.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "coverage>=7.10",  # with patch = subprocess
            "hypothesis>=6.100",
            "websockets>=14",
            "wsproto>=1.2",
            "websocket-client>=1.8",
            "flask>=3.0",
            "flask-login>=0.6.3",
            "flask-socketio>=5.5",
            "python-socketio[client]>=5.11",
            "bottle>=0.13",
            "bottle-websocket>=0.2.9",
            "gunicorn[gevent]>=23",
            "redis>=5.0",
            "prometheus-client>=0.20",
            "waitress>=3",
            "selenium>=4.20",
            "trustme>=1.1",
            "h11>=0.14",
        ],
        "fuzz": ["atheris>=3; python_version < '3.14'", "h11>=0.14"],
        "lint": ["ruff>=0.6", "mypy>=1.11", "types-gevent", "build>=1.2"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Web Environment",
        "Framework :: Flask",
        "Programming Language :: Python :: 3",
        "Topic :: Internet :: WWW/HTTP :: WSGI :: Server",
        "Typing :: Typed",
    ],
)

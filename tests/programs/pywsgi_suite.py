"""Runs gevent's own tests of pywsgi against WebSocketServer, and prints those that fail."""

import unittest

from gevent import monkey

monkey.patch_all()

from gevent import pywsgi  # noqa: E402

from greenws import UpgradeHandler, WebSocketServer  # noqa: E402

pywsgi.WSGIServer, pywsgi.WSGIHandler = WebSocketServer, UpgradeHandler  # before they are used

from gevent.tests import test__pywsgi  # noqa: E402

with open("/dev/null", "w") as nowhere:
    suite = unittest.defaultTestLoader.loadTestsFromModule(test__pywsgi)
    result = unittest.TextTestRunner(stream=nowhere).run(suite)
for case, _ in [*result.failures, *result.errors]:
    print("failed:", ".".join(case.id().split(".")[-2:]), flush=True)
print(f"ran {result.testsRun}", flush=True)

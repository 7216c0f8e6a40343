"""gevent's own tests of pywsgi, run against ``WebSocketServer``; each difference has its reason."""

from __future__ import annotations

from ..support.limits import limit
from ..support.processes import PROGRAMS, Process

NO_HOST = "a request of HTTP/1.1 without Host gets 400 (RFC 9112, section 3.2)"
TWO_LENGTHS = "Transfer-Encoding with Content-Length gets 400 (RFC 9112, section 6.1): smuggling"
INPUT = "wsgi.input ends with the body of the request: what follows a handshake is the WebSocket's"

DIFFERENCES = {
    "ChunkedInputTests.test_chunked_readline": TWO_LENGTHS,
    "ChunkedInputTests.test_close_before_finished": NO_HOST,
    "ChunkedInputTests.test_dirt": NO_HOST,
    "ChunkedInputTests.test_short_read": NO_HOST,
    "ChunkedInputTests.test_short_read_with_content_length": TWO_LENGTHS,
    "ChunkedInputTests.test_short_read_with_zero_content_length": TWO_LENGTHS,
    "Expect100ContinueTests.test_continue": (
        "the connection ends where a body was announced with Expect, and not asked for"
    ),
    "MultipleCookieHeadersTest.test": "Cookie2 (RFC 2965, obsolete) is joined as any other header",
    "TestConnectionUpgrades.test_connection_upgrade": INPUT,
    "TestConnectionUpgrades.test_upgrade_websocket": INPUT,
    "TestHandlerSubclass.test": "heads are read at once: read_requestline() is not called",
    "TestMultiLineHeader.test_multiline_116": (
        "a header over several lines gets 400 (RFC 9112, section 5.2)"
    ),
    "TestNonLatin1HeaderFromApplication.test": NO_HOST,
    "TestNonLatin1UnicodeHeaderFromApplication.test": NO_HOST,
}


def test_all_but_the_differences_pass():
    with Process(PROGRAMS / "pywsgi_suite.py") as process:
        ran = int(process.wait_for(r"^ran (\d+)$")[1])
        process.popen.wait(limit(20))
    failed = [line.split()[1] for line in process.lines if line.startswith("failed: ")]
    assert ran >= 120
    assert sorted(failed) == sorted(DIFFERENCES)

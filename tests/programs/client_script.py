"""A script with clients: in plain threads, or in the main thread until it is interrupted.

client_script.py URL threads|interrupted|forked [patched]
"""

import os
import signal
import sys
import threading
import time
import warnings

if "patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import greenws


def figures() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def leaked_since(before: tuple[int, int]) -> list[int]:
    """What there is more of than before. Threads that must end may take a moment."""
    for _ in range(500):
        leaked = [max(0, now - then) for now, then in zip(figures(), before, strict=True)]
        if not any(leaked):
            break
        time.sleep(0.01)
    return leaked


def converse(url: str, close: bool) -> None:
    socket = greenws.connect(url)
    socket.send("x")
    assert socket.receive() == "x"
    if close:
        socket.close()


def threads(url: str) -> None:
    """Each thread resolves a name, for which gevent starts threads too."""
    for close in (True, False):
        before = None
        for _ in range(5):
            group = [threading.Thread(target=converse, args=(url, close)) for _ in range(4)]
            for thread in group:
                thread.start()
            for thread in group:
                thread.join()
            before = before or figures()
        print(f"leaked {leaked_since(before)}")
    outlived(url)


def outlived(url: str) -> None:
    """A socket that is kept for longer than its thread; a child that is forked then."""
    kept: list[greenws.WebSocket] = []
    before = figures()
    thread = threading.Thread(target=lambda: kept.append(greenws.connect(url)))
    thread.start()
    thread.join()
    leaked = leaked_since(before)
    kept[0].close()
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    print(f"leaked {leaked}, closed {kept[0].close_code:d}, {kept[0].close_reason}")


def interrupted(url: str) -> None:
    """By SIGINT while it reads; a thread has used greenws, and imported gevent, before."""
    thread = threading.Thread(target=converse, args=(url, True))
    thread.start()
    thread.join()
    with greenws.connect(url) as socket:
        import gevent  # not before: the thread was to be the first
        from gevent.monkey import get_original

        def kill() -> None:
            if get_original("os", "fork")() == 0:
                get_original("time", "sleep")(0.05)
                os.kill(os.getppid(), signal.SIGINT)
                os._exit(0)

        gevent.spawn(kill)  # it runs when the main greenlet waits
        socket.receive()


def forked(url: str) -> None:
    """The child's half of the socket is closed, and the parent's goes on."""
    from gevent.monkey import get_original  # gevent's own waitpid() misses a child at times

    # From 3.12 on, for the threads of gevent's resolver.
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    with greenws.connect(url) as socket:
        child = get_original("os", "fork")()
        if child == 0:
            try:
                socket.send("from the child")
            except greenws.ConnectionClosed as error:
                os._exit(7 if error.code == 1006 else 8)
            os._exit(9)
        code = os.waitstatus_to_exitcode(get_original("os", "waitpid")(child, 0)[1])
        socket.send("from the parent")
        print(f"child {code}, parent {socket.receive()!r}")


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1])

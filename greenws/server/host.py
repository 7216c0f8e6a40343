"""The interface of any server for its HTTP handler and its upgrades."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..config import Config
from ..hub.polling import current_process
from ..hub.sockets import adopt, is_inherited
from ..stats import ServerStats
from ..surroundings import warn_drivers, warn_unpatched
from .admission import Admission

__all__ = ["ForeignHost", "Host", "host_of"]


class Host(Protocol):
    """A server, as the handler and the upgrades see it. ``WebSocketServer`` is one."""

    config: Config
    admission: Admission
    proxy_fix: Any
    """Rewrites an environ by the headers of trusted proxies; None if there are none."""
    _adapt: Any
    """Called with each environ, the address and the head of its request; may raise RequestError.
    Its ``leaves_unchanged(raw_head, address)`` returns whether it changes and refuses nothing in
    a handshake."""
    clients: dict[Any, Any]
    """gevent-websocket's register: its ``Client`` of each open socket, by address."""
    pre_start_hook: Any
    application: Any

    @property
    def stats(self) -> ServerStats | None:
        """The counters of the server, if it has any."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether it accepts no more upgrades and keeps no connection alive."""
        ...

    @property
    def _ends_connections(self) -> bool:
        """Whether the current response is the last on its connection."""
        ...

    def get_environ(self) -> dict[str, Any]:
        """The part of an environ that is the same for all requests."""
        ...


class ForeignHost:
    """Any other pywsgi server with ``UpgradeHandler`` as its ``handler_class``."""

    is_stopping = _ends_connections = False
    stats: ServerStats | None = None
    proxy_fix = None
    _adapt = None
    admission = Admission(Config(max_connections=None, max_connections_per_address=None))

    def __init__(self, server: Any, config: Config) -> None:
        self.config = config
        self.pre_start_hook = getattr(server, "pre_start_hook", None)
        self.get_environ = server.get_environ
        if not hasattr(server, "clients"):
            server.clients = {}
        self.clients = server.clients
        self.application = server.application
        warn_unpatched(self.application)
        warn_drivers()
        _guard_listener(server)


_REPLACED = ("do_read", "start_accepting", "_start_accepting_if_started", "serve_forever")


class _Listener:
    """Makes a foreign server accept in a forked child only after ``start_accepting()`` or
    ``serve_forever()`` there. The child inherits the listener and its watcher."""

    def __init__(self, server: Any) -> None:
        self._server: Callable[[], Any] = weakref.ref(server)
        self._process = current_process()
        self._own = {  # methods that the program has replaced
            name: server.__dict__[name] for name in _REPLACED if name in server.__dict__
        }
        for name in _REPLACED:
            setattr(server, name, getattr(self, name))
        self._guard_handle(server)

    def _guard_handle(self, server: Any) -> None:
        if server._handle in (server.handle, server.wrap_socket_and_handle):
            server._handle = self.handle

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        server = self._server()
        if name in self._own:
            return self._own[name](*args, **options)
        return getattr(type(server), name)(server, *args, **options)

    def do_read(self) -> Any:
        """Replaces the server's method."""
        server = self._server()
        if self._process != current_process():
            server.stop_accepting()
            return None
        accepted = self._call("do_read")
        if accepted:
            adopt(accepted[0])
        return accepted

    def handle(self, sock: Any, *args: Any) -> None:
        """Replaces what the server runs in a greenlet for each connection: a greenlet that was
        spawned before a fork, and had not run yet, runs in the child too."""
        server = self._server()
        if server is not None and not is_inherited(sock):
            (server.wrap_socket_and_handle if server.ssl_enabled else server.handle)(sock, *args)

    def start_accepting(self) -> None:
        """Replaces the server's method."""
        self._process = current_process()
        self._call("start_accepting")
        self._guard_handle(self._server())  # stop() has removed it

    def _start_accepting_if_started(self, _event: Any = None) -> None:
        """Replaces the server's method, which a pool calls when it has room again."""
        if self._process == current_process():
            self._call("_start_accepting_if_started", _event)

    def serve_forever(self, *args: Any, **options: Any) -> None:
        """Replaces the server's method."""
        if self._process != current_process() and self._server().started:
            self.start_accepting()
        self._call("serve_forever", *args, **options)

    def disown(self) -> None:
        """Stops accepting in the child, unless the child has begun to accept itself."""
        server = self._server()
        if server is not None and self._process != current_process():
            server.stop_accepting()


_listeners: weakref.WeakKeyDictionary[Any, _Listener] = weakref.WeakKeyDictionary()


def _guard_listener(server: Any) -> None:
    if server in _listeners or not hasattr(server, "stop_accepting"):
        return
    _listeners[server] = _Listener(server)


def _after_fork() -> None:
    for listener in list(_listeners.values()):
        listener.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def host_of(server: Any, config: Config) -> Host:
    """``server`` itself if it is a ``WebSocketServer``; otherwise a ``ForeignHost`` with
    ``config``."""
    host: Host = server if hasattr(server, "admission") else ForeignHost(server, config)
    return host

# C types for upgrade.py, where it is compiled.
import cython

from .hub cimport forks
from .hub.transport cimport Transport
from .protocol.handshake cimport Offer
from .websocket cimport WebSocket


cdef class Upgrade:
    cdef public long process
    cdef public Offer offer
    cdef public object config
    cdef public WebSocket socket
    cdef public object refusal_reason
    cdef public bint unused_handler

    cdef int _begin(self, Offer offer, config) except -1
    cpdef follow(self, environ)
    @cython.locals(socket=WebSocket, transport=Transport)
    cpdef WebSocket accept(self, subprotocol=*, config=*, request=*, headers=*)
    cpdef leave_to_parent(self)
    cpdef bint take_error(self, error) except -1
    cpdef _check_open(self)
    cpdef _record(self, WebSocket socket, config)
    cpdef tuple _take_transport(self, config)
    cpdef tuple _take_socket(self)
    cpdef _remote_address(self)


cdef class _SocketUpgrade(Upgrade):
    cdef object _sock
    cdef object _environ

# C types for stats.py, where it is compiled.
import cython

from .hub.transport cimport Transport
from .protocol.connection cimport Connection
from .websocket cimport WebSocket


cdef class ServerStats:
    cdef public long long connections_total
    cdef public long long pings_timed_out
    cdef public long long expired
    cdef public object refused
    cdef public object closes
    cdef long long _messages_in, _bytes_in, _messages_out, _bytes_out
    cdef set _open
    cdef object __weakref__
    cdef dict __dict__

    cpdef bint take_error(self, error) except -1
    cpdef begin(self, SessionRecord session)
    @cython.locals(connection=Connection, transport=Transport)
    cpdef end(self, SessionRecord session, int code)


cdef class SessionRecord:
    cdef public WebSocket socket
    cdef public object path
    cdef object _on_end
    cdef object _format
    cdef ServerStats _stats
    cdef double _began

    @cython.locals(socket=WebSocket, code=int)
    cpdef end(self)

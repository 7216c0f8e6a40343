# C types for session.py, where it is compiled.
import cython

from .upgrade cimport Upgrade
from .websocket cimport WebSocket


cdef class OpenSession:
    cdef object _handler
    cdef object _request
    cdef public WebSocket socket
    cdef object _handle(self)


cdef int _close(WebSocket socket, escaped, bint log) except -1

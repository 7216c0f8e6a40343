# C types for websocket.py, where it is compiled.
import cython

from .protocol cimport Protocol
from .transport cimport Transport


cdef class WebSocket:
    cdef public object read_timeout_seconds
    cdef public object subprotocol
    cdef public object request
    cdef public object remote_address
    cdef public Transport _transport
    cdef public Protocol _protocol
    cdef double _max_inbox
    cdef object _close_timeout
    cdef double _close_deadline
    cdef object _thread
    cdef bint _corking
    # read state
    cdef bint _reading
    cdef bint _leading
    cdef object _followers
    cdef object _inbox
    cdef long long _inbox_size
    cdef public double _looked
    # write state
    cdef object _sender
    cdef object _sent
    cdef object _handed
    cdef dict _couriers
    cdef long _carried
    cdef object __weakref__
    cdef dict __dict__

    cdef tuple _read_fragment(self)
    cdef void _begin_read(self) except *
    @cython.locals(protocol=Protocol, event=int)
    cdef tuple _next_fragment(self, double deadline)
    @cython.locals(transport=Transport, size=Py_ssize_t)
    cdef bint _pump(self, double deadline) except -1
    cdef bint _follow(self, double deadline) except -1
    cdef void _wake_followers(self) except *
    @cython.locals(protocol=Protocol, event=int)
    cdef void _absorb(self) except *
    cdef void _put_back(self, tuple fragment) except *
    cdef void _send_data(self, int opcode, payload, bint final, bint whole) except *
    @cython.locals(protocol=Protocol, transport=Transport)
    cpdef void _send_as(self, sender, int opcode, payload, bint final, bint whole) except *
    cdef void _put(self, bytes frame) except *
    cdef void _put_control(self, bytes frame) except *
    @cython.locals(protocol=Protocol)
    cdef void _send_replies(self) except *
    cdef void _wait_turn(self, sender, bint whole) except *
    cdef void _finish_message(self) except *
    cdef void _look(self) except *
    cdef bint _elsewhere(self) except -1
    cdef void _check_thread(self, str what) except *


cdef double _deadline(seconds) except -1

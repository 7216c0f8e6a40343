# C types for transport.py, where it is compiled.
import cython

from . cimport forks, syscalls, tls
from .polling cimport Cork, ReceiveBuffer, TlsMemory, Waiter
from .turns cimport Turns


cdef double _FOREVER, _POLL
cdef int _TIMED_OUT, _READABLE, _DEADLINE, _CORK_LIMIT, _COPY_LIMIT, _TLS_RECORD, _STALL_CHECKS
cdef int _MAX_ANSWERS, _MAX_LATE


cdef class Accepted:
    cdef int number
    cdef public int family

    cpdef int detach(self) except? -1
    cpdef void close(self) except *


@cython.final
cdef class Transport(Waiter):
    cdef public long long received
    cdef public long long sent
    cdef public bint closed
    cdef public str failure
    cdef public object on_close
    cdef bint _borrowed
    cdef object _timeout
    cdef object _sock
    cdef bint _tls
    cdef public object _ssl
    cdef public object _raw
    cdef public bint _direct
    cdef public size_t _engine
    cdef bint _may_attach
    cdef Py_ssize_t _answers
    # read state
    cdef public bytearray buffer
    cdef bint _input_drained
    cdef str _tls_end
    cdef bint _receiving
    cdef double _deadline
    cdef double _late_deadline
    cdef long long _late_end
    cdef public object _timer
    # write state
    cdef public Py_ssize_t backlog
    cdef public bytes pending_reply
    cdef public object on_outbox_empty
    cdef public list _outbox
    cdef double _high_water
    cdef object _room
    cdef object _write_watcher
    cdef bint _writing
    cdef object _write_timeout
    cdef double _progress
    cdef object _stall_timer
    cdef public long long _unacknowledged
    cdef bint _finishing
    cdef bint _shut

    @cython.locals(size=Py_ssize_t, in_time=bint)
    cpdef Py_ssize_t receive(self, double deadline) except -2
    cdef bint _may_poll_late(self) except -1
    @cython.locals(size=Py_ssize_t, receive_buffer=ReceiveBuffer)
    cpdef Py_ssize_t poll(self) except -2
    @cython.locals(turns=Turns)
    cdef bint _take_step(self, double deadline) except -1
    cdef bint _wait_readable(self, double deadline) except -1
    cpdef int advance_deadline(self, double deadline) except -1
    @cython.locals(cork=Cork)
    cpdef Py_ssize_t reserve(self, Py_ssize_t size) except -2
    @cython.locals(cork=Cork, first=bint)
    cpdef int commit(self, Py_ssize_t end, bint hold) except -1
    @cython.locals(cork=Cork, size=Py_ssize_t, sent=Py_ssize_t)
    cdef void _flush_cork(self) except *
    @cython.locals(sent=Py_ssize_t)
    cpdef void send(self, bytes data) except *
    @cython.locals(sent=Py_ssize_t)
    cpdef void send_large(self, bytes header, payload) except *
    cpdef void reply(self, bytes data) except *
    @cython.locals(position=Py_ssize_t, end=Py_ssize_t)
    cpdef void hold(self, bytes data) except *
    cpdef void wait_for_room(self) except *
    cdef Py_ssize_t _write(self, data) except -2
    cdef bint _is_tls_drained(self) except -1
    cdef bint _attach(self) except -1
    @cython.locals(memory=TlsMemory, received=Py_ssize_t, size=Py_ssize_t, answers=Py_ssize_t)
    cdef Py_ssize_t _poll_engine(self) except -2
    @cython.locals(memory=TlsMemory, out=bytearray, encrypted=Py_ssize_t, sent=Py_ssize_t)
    cdef void _encrypt_and_send(self, data, Py_ssize_t size) except *
    cdef int _drop_first(self, Py_ssize_t size) except -1
    @cython.locals(place=Py_ssize_t)
    cdef void _keep_encrypted(self, bytes records) except *
    @cython.locals(size=Py_ssize_t, encrypted=Py_ssize_t, out=bytearray)
    cdef bint _encrypt_next(self) except -1
    cdef void _answer(self, bytes records) except *
    cdef void _detach(self) except *
    cdef void _append(self, data) except *
    cpdef int set_limits(self, high_water, write_timeout) except -1
    cdef int _start_timer(self, double delay, double due) except -1
    cdef int _flush_unless_writing(self) except -1
    cdef void _start_writing(self) except *
    cdef int _start_stall_timer(self, double delay) except -1
    cpdef Py_ssize_t undelivered(self) except? -1
    cdef int _stop_writing(self) except -1
    cdef int _fail(self, str reason) except -1
    cdef int _make_room(self) except -1
    cpdef int finish_writing(self) except -1
    cdef void _shut_down(self) except *
    cpdef int finish(self, double deadline) except -1
    cdef int _close_watchers(self) except -1
    cpdef void close(self, str reason=*) except *

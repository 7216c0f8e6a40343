# C types for transport.py, where it is compiled.
import cython


cdef class Transport:
    cdef public object hub
    cdef public bint closed
    cdef public str failure
    cdef bint _borrowed
    cdef object _timeout
    cdef object _sock
    cdef bint _tls
    cdef public object _raw
    cdef int _fileno
    # read state
    cdef public bytearray buffer
    cdef bint _drained
    cdef int _turns
    cdef object _reader
    cdef int _wake
    cdef double _deadline
    cdef double _last_chance
    cdef object _read_watcher
    cdef bint _watching
    cdef object _timer
    cdef double _timer_due
    # write state
    cdef public long long backlog
    cdef public bytes late
    cdef public object _outbox
    cdef double _high_water
    cdef object _room
    cdef object _write_watcher
    cdef bint _writing
    cdef object _write_timeout
    cdef double _progress
    cdef object _stall_timer
    cdef bint _uncorking
    cdef bint _finishing
    cdef bint _shut
    cdef dict __dict__

    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t receive(self, double deadline) except -2
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t poll(self) except -2
    cdef bint _wait_readable(self, double deadline) except -1
    cpdef void hasten(self, double deadline) except *
    @cython.locals(sent=Py_ssize_t)
    cpdef void send(self, bytes data) except *
    @cython.locals(sent=Py_ssize_t)
    cpdef void send_large(self, bytes header, payload) except *
    cpdef void reply(self, bytes data) except *
    cpdef void hold(self, bytes data) except *
    cpdef void flush(self) except *
    cpdef void wait_for_room(self) except *
    cdef void _append(self, data) except *

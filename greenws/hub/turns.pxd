# C types for turns.py, where it is compiled.
import cython

from . cimport forks, switching, syscalls


cdef long long _TURN, _SHORT, _LONG
cdef int _MAX_STEPS


@cython.final
cdef class Turns:
    cdef public int steps
    cdef int _stride
    cdef long long _end
    cdef long long _read_at
    cdef bint _after_poll
    cdef object _iteration
    cdef long _process
    cdef object _queue
    cdef object _timer
    cdef object __weakref__

    @cython.locals(now=cython.longlong, gap=cython.longlong)
    cpdef bint is_over(self, hub) except -1
    cdef bint _is_new_iteration(self, hub) except -1
    cpdef int begin(self) except -1
    cpdef int renew(self) except -1
    cpdef int leave(self) except -1
    cpdef void end(self, hub) except *
    cpdef int step(self, hub) except -1
    cdef int _start_timer(self, hub) except -1
    cdef int _run(self, hub, greenlet) except -1

# C types for polling.py, where it is compiled.
import cython

from . cimport switching, syscalls


cdef int _ASLEEP, _READABLE, _BATCH, _OBJECT


cdef class Poller:
    cdef public bytearray buffer
    cdef public object borrower
    cdef public bytearray cork
    cdef public Py_ssize_t held
    cdef public Waiter corked
    cdef public long ticks
    cdef public bint dispatching
    cdef long _users
    cdef object _ticker

    cpdef void add(self, Waiter waiter) except *
    cpdef void remove(self, Waiter waiter) except *
    cpdef int switch(self, Waiter waiter) except -1
    @cython.locals(corked=Waiter)
    cpdef int uncork(self) except -1
    cpdef int uncork_soon(self) except -1
    cdef void _open(self, loop) except *
    cdef void _close(self) except *


cdef class EpollPoller(Poller):
    cdef object _epoll
    cdef int _fileno
    cdef unsigned int _mask
    cdef object _watcher
    cdef list _waiters
    cdef bytearray _events
    cdef Py_ssize_t _count
    cdef Py_ssize_t _next_event

    @cython.locals(following=Waiter)
    cpdef int switch(self, Waiter waiter) except -1
    @cython.locals(index=Py_ssize_t, waiter=Waiter)
    cdef Waiter _next(self)
    cdef int _register(self, int fileno) except -1
    @cython.locals(ahead=Waiter)
    cdef int _look_ahead(self) except -1
    cdef Waiter _ahead(self, Py_ssize_t steps)
    cdef int _run(self, greenlet) except -1


cdef class WatcherPoller(Poller):
    pass


cdef class Waiter:
    cdef public object hub
    cdef public int fileno
    cdef public Poller poller
    cdef public object greenlet
    cdef public int why
    cdef public bint pending
    cdef public bint ends
    cdef public bint watched
    cdef public object watcher
    cdef size_t _near1
    cdef size_t _near2
    cdef size_t _near3
    cdef size_t _near4

    cpdef void lies_near(self, near1, near2, near3, near4) except *
    cpdef int wait(self) except -1
    cpdef int wake(self, int why) except -1
    cpdef void wake_soon(self) except *
    cpdef void unwatch(self) except *
    cpdef int flush(self) except -1

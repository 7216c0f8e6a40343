# C types for polling.py, where it is compiled.
import cython

cdef class Waiter


from . cimport forks, slots, switching, syscalls
from .turns cimport Turns


cdef int _ASLEEP, _READABLE, _BATCH, _ALONE, _QUICK
cdef double _FOREVER


@cython.final
cdef class ReceiveBuffer:
    cdef public bytearray data
    cdef public object borrower

    cpdef int reclaim(self) except -1


@cython.final
cdef class Cork:
    cdef public bytearray data
    cdef public Py_ssize_t size
    cdef public Waiter owner
    cdef public bint flushed_by_batch

    @cython.locals(owner=Waiter)
    cpdef int flush(self) except -1
    cpdef int flush_soon(self) except -1


@cython.final
cdef class TlsMemory:
    cdef public bytearray sealed
    cdef public bytearray out
    cdef public list ends


cdef class Poller:
    cdef public long process
    cdef public set writers
    cdef public ReceiveBuffer receive_buffer
    cdef public Cork cork
    cdef public TlsMemory tls
    cdef public Turns turns
    cdef public long ticks
    cdef long _watched
    cdef object _ticker

    cpdef void add(self, Waiter waiter) except *
    cpdef void remove(self, Waiter waiter, bint closing) except *
    cpdef int switch(self, Waiter waiter) except -1
    cpdef int disown(self) except -1
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
    cdef Py_ssize_t _rest_count
    cdef Py_ssize_t _rest
    cdef object _rest_timer
    cdef public Waiter lone
    cdef object _lone_watcher
    cdef object _lone_loop
    cdef bint _runs_lone
    cdef long long _hub_due
    cdef long _alone

    @cython.locals(next_waiter=Waiter)
    cpdef int switch(self, Waiter waiter) except -1
    @cython.locals(index=Py_ssize_t, waiter=Waiter, turns=Turns)
    cdef Waiter _next_waiter(self)
    @cython.locals(now=cython.longlong, end=cython.longlong, was_quick=bint)
    cdef int _wait_alone(self, Waiter waiter) except -1
    @cython.locals(active=int)
    cdef bint _is_loop_idle(self, Waiter waiter, long long now) except -1
    @cython.locals(
        waiter=Waiter, waiters=list, events=bytearray, first=Py_ssize_t, left=Py_ssize_t
    )
    cdef int _prefetch(self) except -1
    @cython.locals(waiter=Waiter)
    cdef void _start_lone(self) except *
    cdef void _stop_lone(self) except *
    cdef void _close_lone(self) except *
    cdef int _run(self, greenlet) except -1


cdef class WatcherPoller(Poller):
    cdef set _waiters


cdef class Waiter:
    cdef public long process
    cdef public object hub
    cdef public int fileno
    cdef public Poller poller
    cdef public object greenlet
    cdef public int woken_by
    cdef public bint pending
    cdef public bint hung_up
    cdef public bint watched
    cdef public object watcher
    cdef public double timer_due
    cdef size_t _prefetch1
    cdef size_t _prefetch2
    cdef size_t _prefetch3
    cdef size_t _prefetch4

    cdef int _begin(self, hub, int fileno) except -1
    cpdef void set_prefetch(self, first, second, third, fourth) except *
    cpdef int watch(self) except -1
    cpdef int wait(self) except -1
    @cython.locals(waiting=bint)
    cpdef int wake(self, int cause) except -1
    cpdef void wake_soon(self) except *
    cpdef void unwatch(self, bint closing=*) except *
    cpdef int disown(self) except -1
    cpdef int flush(self) except -1

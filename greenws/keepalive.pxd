# C types for keepalive.py, where it is compiled.
import cython

from .hub cimport forks
from .hub.transport cimport Transport
from .protocol.connection cimport Ping
from .websocket cimport WebSocket


cdef double _MORE_INPUT_INTERVAL, _LIFETIME_WIDTH
cdef double _LIFETIME_SPREAD, _TURN, _FOREVER
cdef object _random_bits, _NO_BUCKET


# Two intervals stay globals of Python, which tests shorten.


cdef class TimedPing(Ping):
    cdef Pulse _pulse
    cdef double _sent
    cdef long long _end

    cpdef void answer(self) except *


cdef class Pulse:
    cdef object _socket
    cdef public Heartbeat _heartbeat
    cdef double _interval
    cdef double _timeout
    cdef double _next_ping
    cdef double _deadline
    cdef object _delivery
    cdef long long _ping_begin
    cdef long long _delivered
    cdef long long _bytes_in
    cdef public double _lifetime_end
    cdef tuple _close_at
    cdef public object latency
    cdef public bint timed_out
    cdef public bint expired
    cdef public double width
    cdef public object bucket
    cdef object __weakref__

    cdef void _take_pong(self, double latency, long long end) except *
    @cython.locals(socket=WebSocket, is_open=bint, is_closing=bint, due=double)
    cpdef double beat(self, double now) except? -1
    cdef double _end(self, double now) except? -1
    cdef double _chosen_end(self, double now) except? -1
    @cython.locals(begin=double, end=double)
    cdef double _bucket_time(self, double now, double when) except? -1
    cdef void _expire(self, WebSocket socket, double now) except *
    @cython.locals(soon=double, latest=double, transport=Transport, ping=TimedPing)
    cdef double _keep_alive(self, WebSocket socket, double now) except? -1


cdef class Heartbeat:
    cdef public long process
    cdef public object _loop
    cdef public dict _buckets
    cdef public list _times
    cdef public object _due
    cdef public object _timer
    cdef double _timer_time
    cdef public object _rest_timer
    cdef object __weakref__

    @cython.locals(bucket=set)
    cpdef add(self, Pulse pulse, double begin)
    @cython.locals(bucket=set)
    cpdef remove(self, Pulse pulse)
    @cython.locals(first=double)
    cdef void _arm(self) except *
    @cython.locals(now=double)
    cpdef void _on_timer(self) except *
    @cython.locals(now=double, end=double, next_beat=double, pulse=Pulse)
    cpdef void _beat(self) except *

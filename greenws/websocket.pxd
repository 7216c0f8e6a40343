# C types for websocket.py, where it is compiled.
import cython

from .hub cimport forks, switching
from .hub.polling cimport ReceiveBuffer
from .hub.transport cimport Transport
from .hub.turns cimport Turns
from .protocol.connection cimport Connection
from .protocol.shared cimport SharedMessage


cdef double _FOREVER, _POLL
cdef int _OPEN, _CLOSED, _MAX_HEADER, _MAX_CLOSE, _MAX_POLLS, _MAX_MESSAGE_POLLS, _COPY_LIMIT, _ENTRY_OVERHEAD
cdef int _POLL_INPUT_TICKS
cdef int _TEXT, _BINARY, _CLOSE, _PING, _PONG, _NOTHING, _STEP_BITS


cdef list _before_wait


cdef class WebSocket:
    cdef public object read_timeout_seconds
    cdef public object subprotocol
    cdef public object request
    cdef public object response
    cdef public object remote_address
    cdef public Transport _transport
    cdef public Connection _connection
    cdef double _max_inbox
    cdef object _close_timeout
    cdef double _close_deadline
    cdef long long _undelivered
    cdef unsigned long _thread_id
    cdef bint _corking
    cdef public object _pulse
    cdef public object _record
    # read state
    cdef bint _reading
    cdef bint _leading
    cdef bint _prepared
    cdef object _followers
    cdef object _inbox
    cdef long long _inbox_size
    cdef public long _polled_at
    # write state
    cdef object _sender
    cdef object _message_finished
    cdef object _ready_callbacks
    cdef object _cross_thread_calls
    cdef object __weakref__
    cdef dict __dict__

    cdef object _receive(self, seconds, bint iterating)
    @cython.locals(final=bint)
    cdef object _receive_rest(self, int event, double deadline, seconds, bint iterating)
    cdef object _read_error(self, int event, seconds, bint iterating)
    cdef int _read_fragment(self) except -2
    cdef object _take_data(self)
    cdef int _begin_read(self) except -1
    @cython.locals(received=object, state=int)
    cdef bint _may_poll(self, int polls) except -1
    cdef bint _call_before_wait(self) except -1
    cdef int _take_step(self) except -1
    @cython.locals(turns=Turns)
    cdef int _check_turn(self) except -1
    @cython.locals(connection=Connection, event=int, prepared=bint, polls=int)
    cdef int _next_fragment(self, double deadline) except -2
    @cython.locals(transport=Transport, receive_buffer=ReceiveBuffer, size=Py_ssize_t)
    cdef bint _pump(self, double deadline) except -1
    @cython.locals(receive_buffer=ReceiveBuffer)
    cdef int _feed(self, Py_ssize_t size) except -1
    cdef bint _follow(self, double deadline) except -1
    cdef void _wake_followers(self) except *
    @cython.locals(connection=Connection, event=int, count=int)
    cdef void _fill_inbox(self, double end, bint may_switch=*) except *
    @cython.locals(connection=Connection, transport=Transport)
    cdef bint _offer_now(self, SharedMessage message, bint hold) except -1
    cdef void _return_to_inbox(self, tuple fragment) except *
    cdef int _send_data(self, int opcode, payload, bint final, bint whole, compress) except -1
    cpdef int _send_as(
        self, sender, int opcode, payload, bint final, bint whole, compress
    ) except -1
    @cython.locals(connection=Connection, transport=Transport, size=Py_ssize_t, position=Py_ssize_t,
                   end=Py_ssize_t)
    cdef int _send_frame(self, int opcode, payload, bint final, compress) except -1
    cdef int _send_or_hold(self, bytes frame) except -1
    cdef void _send_control(self, bytes frame) except *
    @cython.locals(connection=Connection)
    cdef void _send_replies(self) except *
    cdef void _wait_turn(self, sender, bint whole) except *
    cdef void _finish_message(self) except *
    @cython.locals(transport=Transport, size=Py_ssize_t)
    cdef void _poll_input(self, double end, bint may_switch=*) except *
    cdef bint _extend_close(self) except -1
    @cython.locals(connection=Connection, event=int)
    cdef int _discard_input(self, bint may_switch) except -1
    cpdef bint _poll_unread(self) except -1
    cpdef void _send_heartbeat(self, ping) except *
    cpdef bint _is_inherited(self) except -1
    cdef int _disown(self) except -1
    cdef bint _in_other_thread(self) except -1
    cdef void _check_thread(self, str action) except *


@cython.locals(socket=WebSocket, taken=Py_ssize_t)
cpdef tuple offer_to_all(dict sockets, SharedMessage message, exclude, bint hold=*)

cdef double _deadline(seconds) except -1

cdef object _flat(data)

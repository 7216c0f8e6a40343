# C types for connection.py, where it is compiled.
import cython

from .frames cimport (
    FrameParser, Masks, encode_frame, encode_header, write_frame, write_masked_frame,
)
from .messages cimport FragmentAssembler


cdef int _OPEN, _CLOSING, _CLOSED
cdef int _CONTINUATION, _CLOSE, _PING, _PONG, _NOTHING, _RSV1, _MAX_CONTROL_FRAMES


cdef Masks _masks


cdef class Ping:
    cdef public bytes payload
    cdef public bint wanted
    cdef public bint answered

    cpdef void answer(self) except *


@cython.final
cdef class Connection:
    cdef public bint client
    cdef public int state
    cdef public int close_code
    cdef public str close_reason
    cdef public FrameParser _parser
    cdef FragmentAssembler _assembler
    cdef bint _in_payload
    cdef bint _eof
    cdef str _eof_reason
    cdef public bint closed_here
    cdef public object limiter
    cdef public long long messages_in
    cdef public long long messages_out
    cdef public object data
    cdef public bint final
    cdef public object deflate
    cdef public list replies
    cdef public int sending
    cdef list _pings
    cdef int _sent_code
    cdef str _sent_reason

    cpdef int feed(self, bytearray data, Py_ssize_t size) except -1
    cpdef void feed_eof(self, str reason=*) except *
    cpdef int keep(self) except -1
    @cython.locals(parser=FrameParser, event=int)
    cpdef int next_event(self) except -2
    cpdef bint has_frame(self) except -1
    cpdef bint is_in_data(self) except -1
    @cython.locals(parser=FrameParser, complete=bint, opcode=int, taken=int, payload=bytes)
    cdef int _next_event(self) except -2
    @cython.locals(ping=Ping)
    cdef bint _answers(self, bytes payload) except -1
    cdef void _check_rate(self) except *
    cpdef bytes send_ping(self, Ping ping)
    cdef void _record(self, Ping ping) except *
    cdef void _receive_close(self, bytes payload) except *
    cpdef void _fail(self, error) except *
    cdef void _close(self, int code, str reason) except *
    cpdef int begin_message(self, int opcode, bint final) except -1
    @cython.locals(first=bint)
    cpdef tuple compress(self, int opcode, bint final, payload, wanted)
    cpdef bytes encode(self, int opcode, bint final, payload)
    cpdef Py_ssize_t write(
        self, bytearray buffer, Py_ssize_t position, int opcode, bint final, bytes payload
    ) except -1
    cpdef tuple divide(self, int opcode, bint final, payload)
    cpdef bytes close(self, code, reason)
    cpdef void check_close(self, code, reason) except *
    cpdef object closed_error(self)
    cpdef tuple first_close(self)
    cdef bytes _control(self, int opcode, bytes payload)
    cdef bytes _frame(self, int opcode, bytes payload)

# C types for frames.py, where it is compiled.
import cython

from libc.stdint cimport uint32_t

from . cimport masking

ctypedef unsigned char *Octets

cdef int _RSV1
cdef bytearray _NO_BUFFER
cdef Py_ssize_t _POOL_SIZE


@cython.final
cdef class FrameParser:
    cdef public bint expect_mask
    cdef public bint allow_compressed
    cdef public bytearray data
    cdef public Py_ssize_t position
    cdef public Py_ssize_t end
    cdef public bint owned
    cdef public bint final
    cdef public bint compressed
    cdef public int opcode
    cdef public long long length
    cdef uint32_t key
    cdef public long long remaining
    cdef object _gathered

    cpdef int feed(self, bytearray data, Py_ssize_t size) except -1
    cpdef int keep(self) except -1
    cpdef void drop(self) except *
    @cython.locals(
        data=Octets, position=Py_ssize_t, available=Py_ssize_t, first=int, second=int,
        masked=bint, length=cython.longlong, size=int,
    )
    cpdef bint next_header(self) except -1
    cpdef bint has_payload(self)
    @cython.locals(size=Py_ssize_t, used=Py_ssize_t)
    cpdef void gather(self) except *
    @cython.locals(size=Py_ssize_t, start=Py_ssize_t, payload=bytes)
    cpdef bytes take(self)
    @cython.locals(
        data=Octets, position=Py_ssize_t, available=Py_ssize_t, length=cython.longlong, size=int
    )
    cpdef bint has_frame(self) except -1


@cython.locals(opcode=int)
cdef void _check_first(int first, bint allow_compressed) except *

@cython.locals(first=int, masked=int)
cpdef bytes encode_header(int opcode, bint final, long long length, bytes mask=*)

cpdef bytes encode_frame(int opcode, bint final, payload, bytes mask=*)

@cython.locals(out=Octets, length=Py_ssize_t)
cpdef Py_ssize_t write_frame(
    bytearray buffer, Py_ssize_t position, int opcode, bint final, bytes payload
) except -1


@cython.final
cdef class Masks:
    cdef public bytearray pool
    cdef public Py_ssize_t position
    cdef public Py_ssize_t end

    @cython.locals(position=Py_ssize_t)
    cpdef Py_ssize_t advance(self) except -1
    @cython.locals(position=Py_ssize_t)
    cpdef bytes take(self)
    cpdef void drop(self)


@cython.locals(out=Octets, length=Py_ssize_t, start=Py_ssize_t)
cpdef Py_ssize_t write_masked_frame(
    bytearray buffer, Py_ssize_t position, int opcode, bint final, bytes payload, Masks masks
) except -1

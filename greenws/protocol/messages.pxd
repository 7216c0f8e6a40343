# C types for messages.py, where it is compiled.
import cython


cdef int _TEXT, _CONTINUATION


@cython.final
cdef class Utf8Decoder:
    cdef public bytes head

    @cython.locals(head=bytes)
    cpdef str decode(self, bytes piece, bint end)


@cython.final
cdef class FragmentAssembler:
    cdef object _deflate
    cdef long long _max_size
    cdef long long _max_fragments
    cdef public bint open
    cdef public bint gradual
    cdef bint _is_text
    cdef bint _compressed
    cdef long long _size
    cdef long long _inflated
    cdef long long _count
    cdef Utf8Decoder _decoder
    cdef object _text
    cdef object _bytes

    @cython.locals(limit=cython.longlong)
    cpdef int begin(self, int opcode, bint final, long long length, bint compressed=*) except -1
    cpdef void add(self, bytes piece) except *
    @cython.locals(text=str)
    cpdef object end(self, bytes piece)
    cpdef void drop(self) except *
    @cython.locals(room=cython.longlong)
    cdef bytes _inflate(self, bytes piece, bint end)
    cdef object _too_big(self)
    cdef str _decode(self, bytes piece, bint end)

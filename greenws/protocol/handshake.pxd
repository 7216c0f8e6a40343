# C types for handshake.py, where it is compiled.
import cython


cdef int _REQUIRED
cdef bytes _BASE64

cdef class Offer:
    cdef public object key
    cdef public object protocols
    cdef public object extensions
    cdef public object error


@cython.locals(found=dict)
cpdef parse_offer(environ)
@cython.locals(name=bytes, value=bytes, key=bytes, host=bytes, origin=bytes, protocols=bytes,
               extensions=bytes, digits=bytes, size=Py_ssize_t, found=int, bit=int)
cpdef Offer offer_in(list headers, dict fields)
cdef int _check_method(environ) except -1
@cython.locals(response=str)
cpdef bytes accept_response(Offer offer, subprotocol=*, deflate=*, headers=*)
@cython.locals(text=str, value=bytes)
cdef str _accept_value(key)
cdef list _tokens(header)
cdef list _parse_protocols(header)

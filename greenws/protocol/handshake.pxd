# C types for handshake.py, where it is compiled.


cdef class Offer:
    cdef public object key
    cdef public object protocols
    cdef public object extensions
    cdef public object error


cdef int _check_method(environ) except -1
cdef str _accept_value(key)
cdef list _tokens(header)
cdef list _parse_protocols(header)

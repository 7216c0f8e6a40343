# C types for head.py, where it is compiled.
import cython


cdef dict _KEYS, _VALUES
cdef bytes _PLAIN_TARGET, _PLAIN_HOST


cdef class RequestHead:
    cdef public str method
    cdef public str target
    cdef public str version
    cdef public list headers
    cdef public str host
    cdef public object content_length
    cdef public bint chunked
    cdef public Py_ssize_t size
    cdef public bint upgrade
    cdef public bint keep_alive

    cpdef on_header(self, bytes name, bytes value)
    @cython.locals(into=dict, name=bytes, value=bytes, path=str, query=str, key=str, text=str)
    cpdef add_to(self, environ)


cpdef Py_ssize_t find_head(data, Py_ssize_t start, config) except -2
@cython.locals(head=RequestHead, target=bytes, name=bytes, value=bytes, start=Py_ssize_t,
               size=Py_ssize_t, i=Py_ssize_t, hosts=list, codings=list, options=list)
cpdef RequestHead parse_head(bytes data, config)

cdef str _environ_key(bytes name)
@cython.locals(target=bytes)
cdef tuple _parse_request_line(data)
@cython.locals(name=bytes, port=bytes)
cdef bint _is_host(bytes value) except -1
cdef list _options(bytes value)
cdef int _check_host(RequestHead head, bytes target, list hosts) except -1
cdef int _check_codings(RequestHead head, list codings) except -1

# C types for admission.py, where it is compiled.


cdef class Admission:
    cdef object _limit
    cdef object _address_limit
    cdef public object _addresses
    cdef public Py_ssize_t open
    cdef public Py_ssize_t busy
    cdef public set greenlets
    cdef public dict idle
    cdef public set _waiting

    cpdef str enter(self, address)
    cdef bint _make_room(self) except -1
    cpdef leave(self, address)
    cpdef bint claim(self, address) except -1
    cpdef release(self, address)
    cpdef begin_work(self)
    cpdef end_work(self)

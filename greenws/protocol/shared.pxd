# C types for shared.py, where it is compiled.
from .connection cimport Connection


cdef class SharedMessage:
    cdef public object data
    cdef bytes _frame
    cdef dict _compressed
    cdef object __weakref__

    cpdef bytes frame(self, Connection connection)
    cdef bytes _encode(self, Connection connection)

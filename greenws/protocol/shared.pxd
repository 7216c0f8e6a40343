# C types for shared.py, where it is compiled.
from .connection cimport Protocol


cdef class SharedMessage:
    cdef public object data
    cdef bytes _frame
    cdef dict _compressed
    cdef object __weakref__

    cpdef bytes frame(self, Protocol protocol)
    cdef bytes _encode(self, Protocol protocol)

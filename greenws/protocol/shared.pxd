# C types for shared.py, where it is compiled.
from .connection cimport Connection


cdef class SharedMessage:
    cdef public object data
    cdef readonly Py_ssize_t count
    cdef bytes _frame
    cdef dict _compressed
    cdef object __weakref__

    cpdef bytes frame(self, Connection connection)
    cdef bytes _encode(self, Connection connection)


cdef class SharedBatch(SharedMessage):
    cdef list _messages

    cdef bytes _encode(self, Connection connection)

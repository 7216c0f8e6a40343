# slots.py as C, for the compiled modules. The compiler relies on the types that these return, without checking
# the type of each object.
from .polling cimport Waiter

cdef extern from "_slots.h":
    Waiter waiter_at "greenws_waiter_at"(list waiters, Py_ssize_t index)

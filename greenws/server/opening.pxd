# C types for opening.py, where it is compiled.
import cython

from ..hub.transport cimport Transport
from ..http.head cimport RequestHead, find_head
from ..protocol.handshake cimport Offer
from ..session cimport OpenSession
from ..upgrade cimport Upgrade
from .admission cimport Admission


cdef double _FOREVER
cdef int _TIMED_OUT


cdef class ServerUpgrade(Upgrade):
    cdef public object _host
    cdef object _path
    cdef object _claimed

    cpdef release(self)


cdef class _DirectUpgrade(ServerUpgrade):
    cdef Transport _transport
    cdef bytes _early
    cdef object _address


cdef class _EnvironSource:
    cdef object _host
    cdef object _address
    cdef bytes _raw_head
    cdef dict _changes


cdef class Opening:
    cdef public object host
    cdef public object address
    cdef public object error
    cdef public RequestHead head
    cdef public bytes rest
    cdef public bytes raw_head
    cdef public object environ
    cdef public Offer offer
    cdef public object refused
    cdef public object application
    cdef public str refusal_reason
    cdef public Transport transport
    cdef public double deadline

    @cython.locals(head=RequestHead)
    cpdef OpenSession open(self)
    cdef _answer(self, response, str reason)
    @cython.locals(admission=Admission, session=OpenSession)
    cdef OpenSession _open(self, handler, _DirectUpgrade upgrade)
    @cython.locals(transport=Transport, size=Py_ssize_t, seen=Py_ssize_t, length=Py_ssize_t)
    cdef RequestHead _read_head(self)

# C types for opening.py, where it is compiled.
import cython

from ..hub cimport forks
from ..hub.transport cimport Transport
from ..http.head cimport RequestHead, find_head
from ..protocol.handshake cimport Offer
from ..session cimport OpenSession
from ..upgrade cimport Upgrade
from ..websocket cimport WebSocket
from .admission cimport Admission


cdef double _FOREVER
cdef int _TIMED_OUT


cdef class ServerUpgrade(Upgrade):
    cdef public object _host
    cdef object _path
    cdef object _claimed

    cdef int _admit(self, Offer offer, host, environ, str target) except -1
    cpdef release(self)


cdef class _DirectUpgrade(ServerUpgrade):
    cdef Transport _transport
    cdef object _config_at_accept
    cdef bytes _early
    cdef object _address


cdef class _EnvironSource:
    cdef object _host
    cdef object _address
    cdef bytes _raw_head
    cdef dict _changes


@cython.locals(environ=dict)
cdef _make_environ(host, address, RequestHead head)


cdef class Opening:
    cdef public object host
    cdef public object config
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
    cdef public _DirectUpgrade upgrade

    cpdef OpenSession open(self)
    @cython.locals(head=RequestHead)
    cdef OpenSession _open_session(self)
    cdef _answer(self, response, str reason)
    @cython.locals(target=str)
    cdef _find_handler(self, RequestHead head, dict fields)
    @cython.locals(admission=Admission, session=OpenSession, upgrade=_DirectUpgrade)
    cdef OpenSession _open(self, handler, RequestHead head, dict fields)
    @cython.locals(transport=Transport, size=Py_ssize_t, seen=Py_ssize_t, length=Py_ssize_t)
    cdef RequestHead _read_head(self)


cdef class DirectClient:
    cdef object __weakref__
    cdef public object server
    cdef public object address
    cdef public Opening opening
    cdef object _sock
    cdef WebSocket _socket
    cdef object _ws
    cdef Admission _admission
    cdef object _counted
    cdef bint _is_shared

    @cython.locals(admission=Admission, opening=Opening, session=OpenSession, reason=str)
    cpdef OpenSession open(self, long process)
    @cython.locals(admission=Admission)
    cpdef begin(self, WebSocket socket)
    @cython.locals(admission=Admission)
    cpdef end(self)
    @cython.locals(admission=Admission)
    cpdef leave(self)

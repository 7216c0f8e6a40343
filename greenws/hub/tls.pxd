# tls.py as C, for the compiled modules.
cdef extern from "_tls.h":
    int available "greenws_tls_available"() except -1
    size_t attach "greenws_tls_attach"(object ssl_object) except? -1
    void detach "greenws_tls_detach"(size_t engine, int fileno)
    Py_ssize_t decrypt "greenws_tls_open"(
        size_t engine, bytearray sealed, Py_ssize_t size, bytearray buffer, bytearray out, list ends
    ) except -2
    Py_ssize_t replies "greenws_tls_replies"()
    Py_ssize_t encrypt "greenws_tls_seal"(
        size_t engine, object data, Py_ssize_t size, bytearray out
    ) except -2
    Py_ssize_t end "greenws_tls_end"(size_t engine, bytearray out)

# switching.py as C, for the compiled modules. Each calls load() once, when it is imported.
cdef extern from "_switching.h":
    int load "greenws_load"() except -1
    object current "greenws_current"()
    object switch "greenws_switch"(object greenlet)
    unsigned long thread "greenws_thread"()

cdef extern from "_chunks.h":
    void keep_chunks "greenws_keep_chunks"()

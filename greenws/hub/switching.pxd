# switching.py as C, for the compiled modules. Each calls load() once, when it is imported.
cdef extern from "_switching.h":
    int load "greenws_load"() except -1
    object current "greenws_current"()
    object switch "greenws_switch"(object greenlet)
    unsigned long thread "greenws_thread"()
    const bint FETCHES "GREENWS_FETCHES"
    void fetch_at "greenws_fetch_at"(size_t address, size_t size)
    void fetch_object "greenws_fetch_object"(object fetched, size_t size)
    void fetch_state "greenws_fetch_state"(object greenlet)

cdef extern from "_chunks.h":
    void keep_chunks "greenws_keep_chunks"()

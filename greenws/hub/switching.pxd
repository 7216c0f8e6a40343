# switching.py as C, for the compiled modules. Each of them calls load() once, when it is imported.
cdef extern from "_switching.h":
    int load "greenws_load"() except -1
    object current "greenws_current"()
    object switch "greenws_switch"(object greenlet)
    unsigned long thread_id "greenws_thread_id"()
    const bint PREFETCHES "GREENWS_PREFETCHES"
    void prefetch_at "greenws_prefetch_at"(size_t address)
    void prefetch_object "greenws_prefetch_object"(object target)
    void prefetch_state "greenws_prefetch_state"(object greenlet)

cdef extern from "_chunks.h":
    void keep_chunks "greenws_keep_chunks"()
    int use_small_chunk "greenws_use_small_chunk"() except -1

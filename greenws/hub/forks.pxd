# forks.py as C, for the compiled modules. Each calls load() once, when it is imported.
cdef extern from "_forks.h":
    int load "greenws_forks_load"() except -1
    long process "greenws_process"()

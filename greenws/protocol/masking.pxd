# masking.py as C, for the compiled modules.
from libc.stdint cimport uint32_t


cdef extern from "_masking.h":
    uint32_t read_key "greenws_read_key"(bytearray data, Py_ssize_t position)
    uint32_t turn_key "greenws_turn_key"(uint32_t key, Py_ssize_t offset)
    bytes unmask "greenws_unmask"(bytearray data, Py_ssize_t start, Py_ssize_t size, uint32_t key)
    bytes copy "greenws_copy"(bytearray data, Py_ssize_t start, Py_ssize_t size)
    object gather "greenws_gather"(
        object gathered, Py_ssize_t used, bytearray data, Py_ssize_t start, Py_ssize_t size,
        uint32_t key, Py_ssize_t length,
    )
    bytes gathered "greenws_gathered"(object gathered)
    Py_ssize_t place_masked "greenws_place_masked"(
        bytearray buffer, Py_ssize_t position, bytearray keys, Py_ssize_t start, bytes data
    )
    Py_ssize_t place "greenws_place"(bytearray buffer, Py_ssize_t position, bytes data)

# syscalls.py as C, for the compiled modules.
cdef extern from "_syscalls.h":
    const bint ENDS_WAITS "GREENWS_ENDS_WAITS"
    long long clock "greenws_clock"()
    Py_ssize_t receive "greenws_receive"(int fileno, bytearray buffer) except -2
    bint readable "greenws_readable"(int fileno) except -1
    bint wait_readable "greenws_wait_readable"(int fileno, int milliseconds)
    Py_ssize_t send_prefix "greenws_send_prefix"(
        int fileno, bytearray buffer, Py_ssize_t size
    ) except -2
    Py_ssize_t send "greenws_send"(int fileno, bytes data) except -2
    Py_ssize_t send_both "greenws_send_both"(int fileno, bytes header, object payload) except -2
    Py_ssize_t send_view "greenws_send_view"(int fileno, object data) except -2
    bytearray new_events "greenws_new_events"(Py_ssize_t count)
    Py_ssize_t take_events "greenws_take_events"(
        object epoll, int fileno, bytearray events, Py_ssize_t count
    ) except -2
    int event_fd "greenws_event_fd"(bytearray events, Py_ssize_t index)
    bint event_hung_up "greenws_event_hung_up"(bytearray events, Py_ssize_t index)
    int watch "greenws_watch"(
        object epoll, int poll, int fileno, unsigned int mask
    ) except -1
    object accept "greenws_accept"(int listener)
    int shut_down "greenws_shut_down"(int fileno) except -1
    int close "greenws_close"(int fileno) except -1
    long long unacknowledged "greenws_unacknowledged"(int fileno)

/* System calls on non-blocking sockets. syscalls.py documents each function. */

#ifndef GREENWS_SYSCALLS_H
#define GREENWS_SYSCALLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

static inline int64_t
greenws_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* After a failed call: 1 to repeat it, -1 if it would block, -2 with an exception set. */
static inline int
greenws_failed(void)
{
    if (errno == EINTR)
        return PyErr_CheckSignals() < 0 ? -2 : 1;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return -1;
    PyErr_SetFromErrno(PyExc_OSError);
    return -2;
}

#define GREENWS_REPEAT(call)                                                                     \
    for (;;) {                                                                                   \
        Py_ssize_t done = (call);                                                                \
        if (done >= 0)                                                                           \
            return done;                                                                         \
        int how = greenws_failed();                                                              \
        if (how < 0)                                                                             \
            return how;                                                                          \
    }

static inline Py_ssize_t
greenws_receive(int fd, PyObject *buffer)
{
    GREENWS_REPEAT(recv(fd, PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer),
                        MSG_DONTWAIT))
}

static inline int
greenws_readable(int fd)
{
    struct pollfd query = {.fd = fd, .events = POLLIN};
    int count = poll(&query, 1, 0);
    if (count < 0 && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return count != 0; /* if interrupted: it may be */
}

static inline Py_ssize_t
greenws_send_prefix(int fd, PyObject *buffer, Py_ssize_t size)
{
    GREENWS_REPEAT(send(fd, PyByteArray_AS_STRING(buffer), size, MSG_DONTWAIT | MSG_NOSIGNAL))
}

static inline Py_ssize_t
greenws_send(int fd, PyObject *data)
{
    GREENWS_REPEAT(send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
                        MSG_DONTWAIT | MSG_NOSIGNAL))
}

static inline Py_ssize_t
greenws_send_both(int fd, PyObject *header, PyObject *payload)
{
    struct iovec pieces[2] = {
        {PyBytes_AS_STRING(header), PyBytes_GET_SIZE(header)},
        {PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)},
    };
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    GREENWS_REPEAT(sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL))
}

#ifdef __linux__

static inline PyObject *
greenws_new_events(Py_ssize_t count)
{
    return PyByteArray_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(struct epoll_event));
}

static inline Py_ssize_t
greenws_take_events(PyObject *epoll, int fd, PyObject *events, Py_ssize_t count)
{
    (void)epoll;
    GREENWS_REPEAT(epoll_wait(fd, (struct epoll_event *)PyByteArray_AS_STRING(events), (int)count,
                              0))
}

static inline int
greenws_event_fd(PyObject *events, Py_ssize_t index)
{
    return ((struct epoll_event *)PyByteArray_AS_STRING(events))[index].data.fd;
}

static inline int
greenws_event_hung_up(PyObject *events, Py_ssize_t index)
{
    return (((struct epoll_event *)PyByteArray_AS_STRING(events))[index].events
            & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
}

#else /* without epoll, polling.py does not call these */

static inline PyObject *
greenws_new_events(Py_ssize_t count)
{
    return PyByteArray_FromStringAndSize(NULL, count);
}

#define greenws_take_events(epoll, fd, events, count) ((Py_ssize_t)-1)
#define greenws_event_fd(events, index) (0)
#define greenws_event_hung_up(events, index) (0)

#endif
#endif

/* System calls on non-blocking sockets. syscalls.py documents each function. */

#ifndef GREENWS_SYSCALLS_H
#define GREENWS_SYSCALLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
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

#define GREENWS_ENDS_WAITS 1

static inline int
greenws_wait_readable(int fd, int milliseconds)
{
    struct pollfd query = {.fd = fd, .events = POLLIN};
    int count;
    Py_BEGIN_ALLOW_THREADS
    count = poll(&query, 1, milliseconds);
    Py_END_ALLOW_THREADS
    return count > 0;
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

/* Of any bytes-like object. */
static inline Py_ssize_t
greenws_send_view(int fd, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -2;
    Py_ssize_t sent;
    do
        sent = send(fd, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && (sent = greenws_failed()) == 1);
    PyBuffer_Release(&view);
    return sent;
}

static inline Py_ssize_t
greenws_send_both(int fd, PyObject *header, PyObject *payload)
{
    Py_buffer view;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) < 0)
        return -2;
    struct iovec pieces[2] = {
        {PyBytes_AS_STRING(header), PyBytes_GET_SIZE(header)},
        {view.buf, view.len},
    };
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    Py_ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && (sent = greenws_failed()) == 1);
    PyBuffer_Release(&view);
    return sent;
}

static inline int
greenws_shut_down(int fd)
{
    if (shutdown(fd, SHUT_WR) == 0)
        return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static inline int
greenws_close(int fd)
{
    return close(fd) == 0 || errno == EINTR || errno == ECONNRESET
               ? 0
               : (PyErr_SetFromErrno(PyExc_OSError), -1);
}

static inline char *
greenws_octet(char *to, unsigned char octet)
{
    if (octet > 99)
        *to++ = '0' + octet / 100;
    if (octet > 9)
        *to++ = '0' + octet / 10 % 10;
    *to++ = '0' + octet % 10;
    return to;
}

/* The address as in Python's socket module: a scope that has a name is a part of the host. */
static inline PyObject *
greenws_address(struct sockaddr_storage *from, socklen_t size)
{
    char host[NI_MAXHOST];
    if (from->ss_family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)from;
        unsigned char *octets = (unsigned char *)&in->sin_addr;
        char *end = host;
        for (int i = 0; i < 4; i++) { /* inet_ntop() prints them by a format */
            end = greenws_octet(end, octets[i]);
            *end++ = i < 3 ? '.' : '\0';
        }
        return Py_BuildValue("sH", host, ntohs(in->sin_port));
    }
    else {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)from;
        if (getnameinfo((struct sockaddr *)from, size, host, sizeof host, NULL, 0,
                        NI_NUMERICHOST) == 0)
            return Py_BuildValue("sHII", host, ntohs(in->sin6_port),
                                 (unsigned int)ntohl(in->sin6_flowinfo),
                                 (unsigned int)in->sin6_scope_id);
    }
    PyErr_SetString(PyExc_OSError, "a connection from an address that has no name");
    return NULL;
}

static inline PyObject *
greenws_accept(int listener)
{
    for (;;) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
#ifdef __linux__
        int fd = accept4(listener, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
        int fd = accept(listener, (struct sockaddr *)&from, &size);
        if (fd >= 0) {
            fcntl(fd, F_SETFD, FD_CLOEXEC);
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        }
#endif
        if (fd >= 0) {
#ifndef __linux__ /* there, it has this from its listener */
            int on = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#endif
            PyObject *address = greenws_address(&from, size);
            PyObject *pair = address == NULL ? NULL : Py_BuildValue("iN", fd, address);
            if (pair == NULL)
                close(fd);
            return pair;
        }
        int how = greenws_failed();
        if (how == -1)
            Py_RETURN_NONE;
        if (how == -2)
            return NULL;
    }
}

static inline long long
greenws_unacknowledged(int fd)
{
#ifdef __linux__
    int size;
    return ioctl(fd, TIOCOUTQ, &size) == 0 ? size : -1;
#else
    (void)fd;
    return -1;
#endif
}

#ifdef __linux__

static inline int
greenws_watch(PyObject *epoll, int poll, int fd, unsigned int mask)
{
    (void)epoll;
    struct epoll_event event = {.events = mask, .data = {.fd = fd}};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    /* The descriptor's last socket is still open in another process. */
    if (errno == EEXIST && epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

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
#define greenws_watch(epoll, poll, fd, mask) (-1)

#endif
#endif

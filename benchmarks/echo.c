/* A WebSocket server that echoes, for the benchmark of clients: one thread, epoll, libc, no checks
 * that cost time. Prints "listening PORT" and serves until it is killed.
 *
 *   cc -O2 -o echo echo.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handshake.h"

enum { EVENTS = 256, ROOM = 1 << 17, MAX_FD = 1 << 16 };

typedef struct {
    bool open;
    size_t length;
    uint8_t data[ROOM];
} Connection;

static Connection *connections[MAX_FD];
static uint8_t out[ROOM];

static bool write_all(int fd, const uint8_t *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0)
            return false;
        data += sent, length -= (size_t)sent;
    }
    return true;
}

/* Answers a handshake whose head is complete; false if it is not one. */
static bool shake_hands(int fd, Connection *c)
{
    c->data[c->length] = 0;
    char *end = strstr((char *)c->data, "\r\n\r\n");
    if (!end)
        return true;
    const char *key = strcasestr((char *)c->data, "\r\nSec-WebSocket-Key: ");
    if (!key)
        return false;
    char both[64], accept[32], response[256];
    uint8_t digest[20];
    snprintf(both, sizeof both, "%.24s" GUID, key + 21);
    sha1((const uint8_t *)both, strlen(both), digest);
    base64(digest, sizeof digest, accept);
    int size = snprintf(response, sizeof response,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                        accept);
    size_t used = (size_t)(end + 4 - (char *)c->data);
    memmove(c->data, c->data + used, c->length - used);
    c->length -= used;
    c->open = true;
    return write_all(fd, (const uint8_t *)response, (size_t)size);
}

/* Echoes all whole frames; a ping gets its pong. False when the connection is over. */
static bool echo(int fd, Connection *c)
{
    size_t at = 0, made = 0;
    bool closing = false;
    while (!closing && c->length - at >= 6) {
        uint8_t *p = c->data + at, opcode = p[0] & 15;
        size_t size = p[1] & 127, head = 2;
        if (size == 126)
            size = (size_t)p[2] << 8 | p[3], head = 4;
        else if (size == 127)
            return false;
        if (c->length - at < head + 4 + size)
            break;
        out[made] = opcode == 9 ? 0x8A : p[0];
        out[made + 1] = p[1] & 127;
        if (head == 4)
            out[made + 2] = p[2], out[made + 3] = p[3];
        for (size_t i = 0; i < size; i++)
            out[made + head + i] = p[head + 4 + i] ^ p[head + (i & 3)];
        made += head + size;
        at += head + 4 + size;
        closing = opcode == 8;
    }
    memmove(c->data, c->data + at, c->length - at);
    c->length -= at;
    return write_all(fd, out, made) && !closing;
}

int main(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024))
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                fd = accept(listener, NULL, NULL);
                if (fd < 0 || fd >= MAX_FD)
                    continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connections[fd] = calloc(1, sizeof(Connection));
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            Connection *c = connections[fd];
            ssize_t got = recv(fd, c->data + c->length, ROOM - 1 - c->length, 0);
            if (got > 0)
                c->length += (size_t)got;
            if (got <= 0 || (!c->open && !shake_hands(fd, c)) || (c->open && !echo(fd, c))) {
                close(fd);
                free(c);
                connections[fd] = NULL;
            }
        }
    }
}

/* The clients of a server in the same process, and a clock that goes on by the same at each reading; so a server
 * that is counted does the same in every run. For LD_PRELOAD; instructions.py builds and uses it.
 *
 * What is done here is not counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

enum { CLOCKS = 16, READING = 20000 /* nanoseconds */ };

static int simulated; /* once the first messages are sent */

int clock_gettime(clockid_t id, struct timespec *now)
{
    static struct timespec clocks[CLOCKS];
    static char known[CLOCKS];
    if (!simulated || id < 0 || id >= CLOCKS)
        return (int)syscall(SYS_clock_gettime, id, now);
    if (!known[id]) {
        known[id] = 1;
        syscall(SYS_clock_gettime, id, &clocks[id]);
    }
    clocks[id].tv_nsec += READING;
    if (clocks[id].tv_nsec >= 1000000000) {
        clocks[id].tv_nsec -= 1000000000;
        clocks[id].tv_sec++;
    }
    *now = clocks[id];
    return 0;
}

/* Receives what has come for each client. Once all have `expected` bytes, sends each of them `data`, unless that is
 * empty; then returns 1. From the call number `first` on that does so, instructions are counted. */
int exchange(const int *clients, size_t *received, int count, size_t expected, const char *data, size_t size, int first)
{
    static char buffer[1 << 16];
    static int rounds;
    int complete = 1;
    simulated = 1;
    if (rounds == first)
        CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_TOGGLE_COLLECT;
    for (int i = 0; rounds > 0 && i < count; i++) {
        while (received[i] < expected) {
            size_t left = expected - received[i];
            ssize_t got = recv(clients[i], buffer, left < sizeof buffer ? left : sizeof buffer, MSG_DONTWAIT);
            if (got <= 0)
                break;
            received[i] += (size_t)got;
        }
        complete &= received[i] == expected;
    }
    for (int i = 0; complete && i < count; i++) {
        received[i] = 0;
        if (size && send(clients[i], data, size, MSG_DONTWAIT) != (ssize_t)size) {
            fprintf(stderr, "a message does not fit into the socket's buffer\n");
            exit(1);
        }
    }
    rounds += complete;
    CALLGRIND_TOGGLE_COLLECT;
    return complete;
}

/* Goes through handshakes over TCP, on each of `count` clients (-1 at first) one after another: connect, send
 * `request`; when 101 has come, send Close; when the server has ended the connection, close. Returns how many are
 * over. Those after the first `first` are counted. */
int handshakes(int *clients, int *states, int count, int port, const char *request, int first, int last)
{
    static const unsigned char close_frame[] = {0x88, 0x82, 0, 0, 0, 0, 1000 >> 8, 1000 & 0xFF};
    static char buffer[1 << 12];
    static int begun, done, counting;
    enum { UPGRADING, CLOSING };
    simulated = 1;
    if (done == first && !counting) {
        counting = 1;
        CALLGRIND_START_INSTRUMENTATION;
    }
    CALLGRIND_TOGGLE_COLLECT;
    for (int i = 0; i < count; i++) {
        if (clients[i] < 0) {
            if (begun == (counting ? last : first))
                continue;
            begun++;
            struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
            address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            clients[i] = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(clients[i], (struct sockaddr *)&address, sizeof address) != 0
                || send(clients[i], request, strlen(request), 0) != (ssize_t)strlen(request)) {
                perror("a client cannot connect");
                exit(1);
            }
            states[i] = UPGRADING;
            continue;
        }
        ssize_t got = recv(clients[i], buffer, sizeof buffer, MSG_DONTWAIT);
        if (states[i] == UPGRADING && got > 0) {
            if (memcmp(buffer, "HTTP/1.1 101", 12) != 0) {
                fprintf(stderr, "a handshake was refused\n");
                exit(1);
            }
            send(clients[i], close_frame, sizeof close_frame, 0);
            states[i] = CLOSING;
        } else if (got > 0) { /* the server's Close */
            got = recv(clients[i], buffer, sizeof buffer, MSG_DONTWAIT);
        }
        if (got < 0 && errno != EAGAIN) {
            perror("a client's connection is lost");
            exit(1);
        }
        if (got == 0) {
            close(clients[i]);
            clients[i] = -1;
            done++;
        }
    }
    CALLGRIND_TOGGLE_COLLECT;
    return done;
}

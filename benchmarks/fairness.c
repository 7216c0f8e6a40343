/* How long one client of a WebSocket server waits while another one floods it.
 *
 *   cc -O2 -o fairness fairness.c
 *   fairness --port PORT --flood NAME --duration SECONDS
 *
 * A child process is the flood: it sends as much as the server takes, or reads as fast as it can. The
 * parent sends 32 bytes to an echo every 10 ms, and counts each wait from the time when the message
 * was due. Prints one JSON object; exit code 1 if the server did anything else than to echo.
 *
 * json       messages of 2 bytes to /json, whose handler parses them
 * pings      empty pings to /
 * fragments  messages of 4,000 empty fragments to /json
 * pipelined  GET /small, one after another without waiting for the responses
 * download   GET /download, which is large
 * rows       /rows, whose handler sends 400,000 messages
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 256 * 1024, RECEIVE = 1024 * 1024, MOST = 1 << 20 };
#define INTERVAL 10000000u    /* nanoseconds between two messages of the echo client */
#define PATIENCE 30000000000u /* for one echo */

static struct sockaddr_in address = {.sin_family = AF_INET};
static volatile uint64_t *flooded; /* bytes sent and received by the flood: shared with the child */
static uint8_t block[BLOCK], received[RECEIVE];

static void fail(const char *what)
{
    fprintf(stderr, "%s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void send_all(int fd, const void *data, size_t size)
{
    for (const char *next = data; size;) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("send");
        next += sent;
        size -= (size_t)sent;
    }
}

/* Asks for `path`, as a WebSocket or not; of a WebSocket the response's head is read. */
static int request(const char *path, int websocket)
{
    char text[512], c;
    int fd = dial();
    int size = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", path,
                        websocket ? "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                                    "Sec-WebSocket-Version: 13\r\n"
                                  : "");
    send_all(fd, text, (size_t)size);
    if (!websocket)
        return fd;
    for (size_t have = 0; have < 4 || memcmp(text + have - 4, "\r\n\r\n", 4);) {
        if (have == sizeof text - 1 || recv(fd, &c, 1, 0) != 1)
            fail("no response to the handshake");
        text[have++] = c;
        if (have == 12 && memcmp(text, "HTTP/1.1 101", 12))
            fail("the handshake was refused");
    }
    return fd;
}

/* What the flood sends again and again; the size of it, 0 if it only reads. */
static size_t unit_of(const char *flood, uint8_t *unit)
{
    static const uint8_t message[] = {0x81, 0x82, 0, 0, 0, 0, '{', '}'};
    static const uint8_t ping[] = {0x89, 0x80, 0, 0, 0, 0};
    static const uint8_t first[] = {0x01, 0x81, 0, 0, 0, 0, '1'};
    static const char get[] = "GET /small HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    if (!strcmp(flood, "json"))
        return memcpy(unit, message, sizeof message), sizeof message;
    if (!strcmp(flood, "pings"))
        return memcpy(unit, ping, sizeof ping), sizeof ping;
    if (!strcmp(flood, "pipelined"))
        return memcpy(unit, get, sizeof get - 1), sizeof get - 1;
    if (!strcmp(flood, "fragments")) {
        size_t size = sizeof first;
        memcpy(unit, first, size);
        for (int i = 0; i < 4000; i++, size += 6)
            memcpy(unit + size, (uint8_t[]){i == 3999 ? 0x80 : 0, 0x80, 0, 0, 0, 0}, 6);
        return size;
    }
    if (strcmp(flood, "download") && strcmp(flood, "rows"))
        fail("there is no such flood");
    return 0;
}

static int start_flood(const char *flood)
{
    if (!strcmp(flood, "pipelined"))
        return dial();
    if (!strcmp(flood, "download"))
        return request("/download", 0);
    return request(!strcmp(flood, "pings") ? "/" : !strcmp(flood, "rows") ? "/rows" : "/json", 1);
}

static void run_flood(const char *flood)
{
    size_t unit = unit_of(flood, block), size = unit, at = 0;
    for (; unit && size + unit <= BLOCK; size += unit)
        memcpy(block + size, block, unit);
    for (;;) { /* until it is killed */
        int fd = start_flood(flood);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        for (at = 0;;) {
            struct pollfd state = {.fd = fd, .events = (short)(POLLIN | (unit ? POLLOUT : 0))};
            poll(&state, 1, -1);
            if (state.revents & (POLLIN | POLLHUP | POLLERR)) {
                ssize_t got = recv(fd, received, RECEIVE, 0);
                if (got == 0 || (got < 0 && errno != EAGAIN))
                    break;
                flooded[1] += got > 0 ? (uint64_t)got : 0;
            }
            if (unit && state.revents & POLLOUT) {
                ssize_t sent = send(fd, block + at, size - at, MSG_NOSIGNAL);
                if (sent < 0 && errno != EAGAIN)
                    break;
                flooded[0] += sent > 0 ? (uint64_t)sent : 0;
                at = (at + (sent > 0 ? (size_t)sent : 0)) % size;
            }
        }
        close(fd);
    }
}

static void echo(int fd)
{
    uint8_t out[38] = {0x82, 0xa0}, in[34];
    size_t have = 0;
    memset(out + 6, 'x', 32);
    send_all(fd, out, sizeof out);
    for (uint64_t begun = now(); have < sizeof in;) {
        struct pollfd state = {.fd = fd, .events = POLLIN};
        if (poll(&state, 1, 1000) > 0) {
            ssize_t got = recv(fd, in + have, sizeof in - have, 0);
            if (got <= 0)
                fail("the echo client lost its connection");
            have += (size_t)got;
            if (have >= 2 && in[0] == 0x89 && in[1] <= 32) { /* a ping; servers live without a pong */
                size_t whole = 2u + in[1];
                if (have >= whole)
                    memmove(in, in + whole, have -= whole);
            }
        }
        if (now() - begun > PATIENCE)
            return; /* counted as so long */
    }
    if (in[0] != 0x82 || in[1] != 32 || in[2] != 'x')
        fail("the echo differs");
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"flood", 1, 0, 'f'}, {"duration", 1, 0, 'd'}, {0, 0, 0, 0}};
    const char *flood = "json";
    double duration = 5;
    for (int letter; (letter = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (letter == 'p') address.sin_port = htons((uint16_t)atoi(optarg));
        else if (letter == 'f') flood = optarg;
        else if (letter == 'd') duration = atof(optarg);
        else return 2;
    }
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    unit_of(flood, block);
    flooded = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t *waits = malloc(MOST * sizeof *waits);
    if (flooded == MAP_FAILED || !waits)
        fail("memory");
    int fd = request("/", 1);
    for (int i = 0; i < 20; i++)
        echo(fd);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fd);
        run_flood(flood);
    }
    uint64_t begun = now(), due = begun;
    size_t count = 0;
    while ((double)(due - begun) < duration * 1e9 && count < MOST) {
        struct timespec rest = {.tv_nsec = (long)(due > now() ? due - now() : 0)};
        nanosleep(&rest, NULL);
        echo(fd);
        waits[count++] = now() - due;
        due += INTERVAL;
        /* Those that were due meanwhile have waited as well, but a client sends one at a time. */
        while (due < now() && count < MOST && (double)(due - begun) < duration * 1e9) {
            waits[count++] = now() - due;
            due += INTERVAL;
        }
    }
    double seconds = (double)(now() - begun) / 1e9;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    qsort(waits, count, sizeof *waits, compare);
    printf("{\"errors\": 0, \"seconds\": %.3f, \"echoes\": %zu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, "
           "\"max_ms\": %.3f, \"sent_mb_per_second\": %.3f, \"received_mb_per_second\": %.3f}\n",
           seconds, count, (double)waits[count / 2] / 1e6, (double)waits[count * 99 / 100] / 1e6,
           (double)waits[count - 1] / 1e6, (double)flooded[0] / 1e6 / seconds,
           (double)flooded[1] / 1e6 / seconds);
    return 0;
}

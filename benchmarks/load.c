/* A load generator for WebSocket servers that echo or broadcast: one thread, epoll, libc (and OpenSSL for --tls, zlib
 * for --deflate).
 *
 *   cc -O2 -o load load.c                        plain TCP only
 *   cc -O2 -DWITH_TLS -DWITH_DEFLATE -o load load.c -lssl -lcrypto -lz
 *
 * echo       connect, keep --inflight messages in flight on each connection, measure for a while
 * handshake  connect, upgrade, close with 1000, wait up to 20 ms for the end of TCP; repeat
 * idle       connect, echo once, stay connected until stdin ends, count the pings
 * room       connect; the first connection sends at a fixed --rate, and all connections receive every
 *            message, except --silent ones, which never read; their buffers are filled before the
 *            others connect
 *
 * Prints one JSON object. Exit code: 0; 1 if the server did anything but echo or broadcast (the
 * object's "error" says what); 2 for wrong arguments, or if this machine lacks what they need.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "handshake.h"

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif
#ifdef WITH_DEFLATE
#include <zlib.h>
#endif

enum { ECHO_MODE, HANDSHAKE_MODE, IDLE_MODE, ROOM_MODE };
enum { FREE, CONNECTING, TLS_HANDSHAKE, UPGRADING, OPEN, CLOSING };
enum { KEYS = 64, HEAD_MAX = 8192, BUFFER = 256 * 1024, EVENTS = 512 };
enum { PORTS_PER_ADDRESS = 20000, HANDSHAKE_ADDRESSES = 50, PORTS = 16 };
enum { ROOM_INFLIGHT = 16, ROOM_STAMPS = 1 << 16 };
enum { SILENT_SEGMENT = 536, SILENT_FILL = 64 * 1024 }; /* bytes */
#define CLOSE_TIMEOUT 20000000u /* nanoseconds from the server's Close to the end of its TCP */

static struct {
    const char *host, *path, *subprotocol;
    int ports, mode, connections, inflight, batch, silent;
    bool text, tls, deflate, socketio;
    size_t size;
    double duration, warmup, timeout, rate, drain_timeout;
    long long min_messages;
    pid_t watch;
} opt = {
    .host = "127.0.0.1", .path = "/", .connections = 1, .inflight = 1, .batch = 64, .size = 32,
    .duration = 2, .warmup = 0.5, .timeout = 15, .rate = 50, .drain_timeout = 15,
};

typedef struct {
    int fd, number;
    uint8_t state;
    bool wants_out;    /* EPOLLOUT is on */
    bool silent;       /* never reads */
    SSL *ssl;
    char *head;        /* of the response, until it is complete */
    size_t head_length;
    uint64_t begun;    /* connect() */
    uint64_t closed;   /* the server's Close */
    /* out: a partly sent slice, then a control frame, then the messages owed */
    const uint8_t *out;
    size_t out_left;
    uint32_t owed, next_out;
    uint8_t control[131];
    uint8_t control_length;
    bool sending_control;
    /* in */
    uint8_t header[10], header_length, opcode;
    bool final, in_payload, in_message, checked, peer_closed;
    bool joined, in_packet; /* Socket.IO: the session is open; reading a packet other than an event */
    uint8_t *packed;   /* the part received so far of a message that is checked as a whole */
    uint64_t frame_left, message_got, echoes;
    uint32_t next_in;
    uint8_t ping[125], ping_length;
    uint64_t *stamps;  /* when each message in flight was sent: a ring of --inflight */
    uint32_t oldest, newest, under_way;
} Connection;

static struct { char request[1024]; size_t length; char accept[32]; } keys[KEYS];
static Connection *connections;
static int epoll_fd;
static struct sockaddr_in server_addresses[PORTS];
static uint8_t buffer[BUFFER];

/* The messages: `variants` payloads, and their frames in a row (the first ones again at the end, so
 * that any run of up to --inflight frames is contiguous). */
static uint8_t *payloads, *frames;
static uint32_t variants, sample_every;
static size_t *frame_at; /* the start of each, and the end of the last one */
static size_t packed_room; /* the largest compressed message, in bytes */

/* A room: when each message was due (a ring), how many were sent, and how many of them before all
 * members had joined. */
static uint64_t due_at[ROOM_STAMPS], published, published_before, delivered;

/* Around the text of a message that is a Socket.IO event. */
static const char event_begin[] = "42[\"message\",\"", event_end[] = "\"]";

static bool measuring;
static uint64_t opened, connecting, first_echoes, messages, bytes, verified, sampled, total_messages;
static uint64_t pings; /* sent by the server */
static uint64_t last_progress, sequence, closed_by_us;
static double connect_seconds;

#define SUB_BITS 6 /* of the histogram: 64 buckets for each power of two, so within 1.6 % */
static uint64_t histogram[64 << SUB_BITS], latency_max;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void fail(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c; c++)
        if (!isprint((unsigned char)*c) || *c == '"' || *c == '\\')
            *c = '\'';
    printf("{\"messages\": %llu, \"verified\": %llu, \"errors\": 1, \"error\": \"%s\"}\n",
           (unsigned long long)total_messages, (unsigned long long)verified, text);
    fflush(stdout);
    _exit(1);
}

static void refuse(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        refuse("not enough memory");
    return memory;
}

/* ---- latency ---- */

static void record(uint64_t nanoseconds)
{
    uint32_t index;
    if (nanoseconds > latency_max)
        latency_max = nanoseconds;
    if (nanoseconds < (2u << SUB_BITS)) {
        index = (uint32_t)nanoseconds;
    } else {
        uint32_t shift = 63 - SUB_BITS - (uint32_t)__builtin_clzll(nanoseconds);
        index = (shift << SUB_BITS) + (uint32_t)(nanoseconds >> shift);
    }
    histogram[index]++;
}

static double percentile(double share)
{
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++)
        total += histogram[i];
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (total && (double)seen >= share * (double)total) {
            if (i < (2u << SUB_BITS))
                return (double)i / 1e3;
            uint32_t shift = (uint32_t)(i >> SUB_BITS) - 1;
            return ((double)(i - ((size_t)shift << SUB_BITS)) + 0.5) * (double)(1ull << shift) / 1e3;
        }
    }
    return 0;
}

/* ---- the handshake ---- */

static uint64_t random_state = 0x9E3779B97F4A7C15u;
static uint32_t random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

#define OFFER \
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; " \
    "client_no_context_takeover\r\n"

static void make_keys(void)
{
    for (int i = 0; i < KEYS; i++) {
        uint8_t nonce[16], digest[20];
        char key[32], both[64];
        for (size_t j = 0; j < sizeof nonce; j++)
            nonce[j] = (uint8_t)random32();
        base64(nonce, sizeof nonce, key);
        snprintf(both, sizeof both, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
        sha1((const uint8_t *)both, strlen(both), digest);
        base64(digest, sizeof digest, keys[i].accept);
        int length = snprintf(
            keys[i].request, sizeof keys[i].request,
            "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: %.24s\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s\r\n",
            opt.path, opt.host, ntohs(server_addresses[0].sin_port), key, opt.deflate ? OFFER : "",
            opt.subprotocol ? "Sec-WebSocket-Protocol: " : "",
            opt.subprotocol ? opt.subprotocol : "", opt.subprotocol ? "\r\n" : "");
        if (length >= (int)sizeof keys[i].request)
            refuse("--path and --subprotocol are too long");
        keys[i].length = (size_t)length;
    }
}

/* The value of a header in a null-terminated response head; false if there is no such header. */
static bool header_value(const char *head, const char *name, char *value, size_t room)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':')
            continue;
        line += length + 1;
        line += strspn(line, " \t");
        size_t end = strcspn(line, "\r");
        while (end && (line[end - 1] == ' ' || line[end - 1] == '\t'))
            end--;
        snprintf(value, room, "%.*s", (int)end, line);
        return true;
    }
    return false;
}

static void check_response(const Connection *c)
{
    char value[256];
    const char *head = c->head;
    if (strncmp(head, "HTTP/1.1 101", 12) != 0)
        fail("the response to the handshake is '%.*s'", (int)strcspn(head, "\r"), head);
    if (!header_value(head, "Upgrade", value, sizeof value) || strcasecmp(value, "websocket") != 0)
        fail("the response to the handshake has no 'Upgrade: websocket'");
    if (!header_value(head, "Connection", value, sizeof value) || !strcasestr(value, "upgrade"))
        fail("the response to the handshake has no 'Connection: Upgrade'");
    const char *accept = keys[c->number % KEYS].accept;
    if (!header_value(head, "Sec-WebSocket-Accept", value, sizeof value) || strcmp(value, accept))
        fail("the response to the handshake has a wrong Sec-WebSocket-Accept");
    bool extended = header_value(head, "Sec-WebSocket-Extensions", value, sizeof value) && *value;
    if (extended && !opt.deflate)
        fail("the server uses an extension that was not offered: %s", value);
    if (opt.deflate && (!extended || strncmp(value, "permessage-deflate", 18) != 0
                        || strstr(value, "server_no_context_takeover") == NULL))
        fail("the server did not accept the compression that was offered: '%s'", extended ? value : "");
    bool chosen = header_value(head, "Sec-WebSocket-Protocol", value, sizeof value);
    if (opt.subprotocol ? !chosen || strcmp(value, opt.subprotocol) : chosen)
        fail("the server chose the subprotocol '%s'", chosen ? value : "(none)");
}

/* ---- the messages ---- */

static size_t put_header(uint8_t *to, int opcode, size_t length, const uint8_t mask[4])
{
    size_t n = 2;
    to[0] = (uint8_t)(0x80 | opcode);
    if (length < 126) {
        to[1] = (uint8_t)(0x80 | length);
    } else if (length < 65536) {
        to[1] = 0x80 | 126;
        to[n++] = (uint8_t)(length >> 8);
        to[n++] = (uint8_t)length;
    } else {
        to[1] = 0x80 | 127;
        for (int i = 7; i >= 0; i--)
            to[n++] = (uint8_t)((uint64_t)length >> (8 * i));
    }
    memcpy(to + n, mask, 4);
    return n + 4;
}

static size_t put_frame(uint8_t *to, int opcode, const uint8_t *payload, size_t length)
{
    uint32_t random = random32() | 0x01010101; /* no zero bytes */
    uint8_t mask[4];
    memcpy(mask, &random, 4);
    size_t n = put_header(to, opcode, length, mask);
    for (size_t i = 0; i < length; i++)
        to[n + i] = payload[i] ^ mask[i % 4];
    return n + length;
}

#ifdef WITH_DEFLATE
/* A list of objects, as an API would send it, cut to the size. */
static void make_json(char *payload, size_t size)
{
    static const char *const names[] = {"Ada", "Grace", "Barbara", "Frances", "Radia", "Karen"};
    char row[160];
    for (size_t at = 0; at < size;) {
        int length = snprintf(row, sizeof row,
                              "%c{\"id\":%u,\"name\":\"%s\",\"active\":%s,\"score\":%u.%02u}",
                              at ? ',' : '[', random32() % 100000, names[random32() % 6],
                              random32() % 2 ? "true" : "false", random32() % 1000,
                              random32() % 100);
        size_t part = (size_t)length < size - at ? (size_t)length : size - at;
        memcpy(payload + at, row, part);
        at += part;
    }
}

static size_t compress_message(const uint8_t *payload, uint8_t *to, size_t room)
{
    z_stream stream = {0};
    if (deflateInit2(&stream, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        refuse("zlib could not be initialised");
    stream.next_in = (uint8_t *)payload;
    stream.avail_in = (unsigned)opt.size;
    stream.next_out = to;
    stream.avail_out = (unsigned)room;
    if (deflate(&stream, Z_SYNC_FLUSH) != Z_OK || stream.avail_in || !stream.avail_out)
        refuse("zlib failed to compress");
    deflateEnd(&stream);
    return room - stream.avail_out - 4; /* without its 00 00 FF FF (RFC 7692, section 7.2.1) */
}

static void check_packed(Connection *c)
{
    static uint8_t *plain;
    if (plain == NULL)
        plain = allocate(opt.size + 1, 1);
    memcpy(c->packed + c->message_got, "\x00\x00\xff\xff", 4);
    z_stream stream = {0};
    if (inflateInit2(&stream, -15) != Z_OK)
        refuse("zlib could not be initialised");
    stream.next_in = c->packed;
    stream.avail_in = (unsigned)c->message_got + 4;
    stream.next_out = plain;
    stream.avail_out = (unsigned)opt.size + 1;
    int result = inflate(&stream, Z_SYNC_FLUSH);
    inflateEnd(&stream);
    if (result != Z_OK || stream.avail_out != 1
        || memcmp(plain, payloads + c->next_in * opt.size, opt.size) != 0)
        fail("an echo differs from what was sent after inflating");
}
#endif

static void make_messages(void)
{
    variants = opt.size > 65536 ? 2 : 16;
    sample_every = opt.size >= 65536 ? 8 : 256;
    packed_room = opt.size + opt.size / 8 + 256;
    size_t room = packed_room + 14, total = variants + (size_t)opt.inflight;
    uint8_t *packed = allocate(packed_room, 1);
    payloads = allocate(variants, opt.size);
    frames = allocate(total, room);
    frame_at = allocate(total + 1, sizeof *frame_at);
    for (uint32_t v = 0; v < variants; v++) {
        uint8_t *payload = payloads + v * opt.size, *frame = frames + frame_at[v];
        const uint8_t *body = payload;
        size_t length = opt.size;
        for (size_t i = 0; i < opt.size && !opt.deflate; i++)
            payload[i] = opt.text ? (uint8_t)(' ' + random32() % 95) : (uint8_t)random32();
        if (opt.socketio) {
            for (size_t i = 0; i < opt.size; i++)
                if (payload[i] == '"' || payload[i] == '\\')
                    payload[i] = '\''; /* needs no escape in JSON */
            memcpy(payload, event_begin, strlen(event_begin));
            memcpy(payload + opt.size - strlen(event_end), event_end, strlen(event_end));
        }
#ifdef WITH_DEFLATE
        if (opt.deflate) {
            make_json((char *)payload, opt.size);
            length = compress_message(payload, packed, packed_room);
            body = packed;
        }
#endif
        frame_at[v + 1] = frame_at[v] + put_frame(frame, opt.text ? 1 : 2, body, length);
        if (opt.deflate)
            frame[0] |= 0x40;
    }
    for (size_t v = variants; v < total; v++) {
        size_t length = frame_at[v - variants + 1] - frame_at[v - variants];
        memcpy(frames + frame_at[v], frames + frame_at[v - variants], length);
        frame_at[v + 1] = frame_at[v] + length;
    }
    free(packed);
}

/* ---- connections ---- */

#ifdef WITH_TLS
static SSL_CTX *tls_context;
#endif

enum { BLOCKED = -1, BROKEN = -2 };

static ssize_t receive(Connection *c)
{
#ifdef WITH_TLS
    if (c->ssl != NULL) {
        ERR_clear_error();
        int n = SSL_read(c->ssl, buffer, sizeof buffer);
        if (n > 0)
            return n;
        int error = SSL_get_error(c->ssl, n);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
            return BLOCKED;
        return error == SSL_ERROR_ZERO_RETURN ? 0 : BROKEN;
    }
#endif
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EINTR ? BLOCKED : BROKEN;
}

static ssize_t transmit(Connection *c, const uint8_t *data, size_t length)
{
#ifdef WITH_TLS
    if (c->ssl != NULL) {
        ERR_clear_error();
        int n = SSL_write(c->ssl, data, length > 1 << 30 ? 1 << 30 : (int)length);
        if (n > 0)
            return n;
        int error = SSL_get_error(c->ssl, n);
        return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? BLOCKED : BROKEN;
    }
#endif
    ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EINTR ? BLOCKED : BROKEN;
}

static void watch(Connection *c, int operation, bool out)
{
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) != 0)
        refuse("epoll_ctl: %s", strerror(errno));
    c->wants_out = out;
}

static void drop(Connection *c)
{
#ifdef WITH_TLS
    if (c->ssl != NULL)
        SSL_free(c->ssl);
    c->ssl = NULL;
#endif
    close(c->fd);
    free(c->head);
    c->head = NULL;
    c->state = FREE;
}

static void start(Connection *c)
{
    int one = 1;
    uint64_t *stamps = c->stamps;
    uint8_t *packed = c->packed;
    int number = c->number;
    memset(c, 0, sizeof *c);
    c->stamps = stamps;
    c->packed = packed;
    c->number = number;
    c->next_out = c->next_in = (uint32_t)number % variants;
    c->silent = number > 0 && number <= opt.silent;
    const struct sockaddr_in *address = &server_addresses[number % opt.ports];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        refuse("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->silent) { /* small segments also keep the server's buffer small */
        int segment = SILENT_SEGMENT;
        setsockopt(c->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &one, sizeof one);
    }
    bool loopback = (ntohl(address->sin_addr.s_addr) >> 24) == 127;
    bool many = opt.connections > PORTS_PER_ADDRESS || opt.mode == HANDSHAKE_MODE;
    if (loopback && many) { /* a source address has 28,000 ports, each blocked for a while after use */
        uint32_t which = opt.mode == HANDSHAKE_MODE
                             ? (uint32_t)(sequence++ % HANDSHAKE_ADDRESSES)
                             : (uint32_t)number / PORTS_PER_ADDRESS;
        struct sockaddr_in source = {.sin_family = AF_INET,
                                     .sin_addr.s_addr = htonl(0x7F000001u + which)};
#ifdef IP_BIND_ADDRESS_NO_PORT
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
#endif
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source) != 0)
            refuse("bind: %s", strerror(errno));
    }
    c->head = allocate(HEAD_MAX, 1);
    c->begun = now();
    c->state = CONNECTING;
    connecting++;
    if (connect(c->fd, (const struct sockaddr *)address, sizeof *address) != 0
        && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    watch(c, EPOLL_CTL_ADD, true);
}

/* Sends as much as the socket accepts. */
static void flush(Connection *c)
{
    for (;;) {
        if (c->out_left == 0) {
            c->sending_control = false;
            if (c->control_length) {
                c->out = c->control;
                c->out_left = c->control_length;
                c->control_length = 0;
                c->sending_control = true;
            } else if (c->owed) {
                uint64_t time = now();
                uint32_t inflight = (uint32_t)opt.inflight;
                uint32_t count = c->owed < inflight ? c->owed : inflight;
                c->out = frames + frame_at[c->next_out];
                c->out_left = frame_at[c->next_out + count] - frame_at[c->next_out];
                c->next_out = (c->next_out + count) % variants;
                c->under_way += count;
                for (c->owed -= count; count; count--) {
                    c->stamps[c->newest] = time;
                    c->newest = c->newest + 1 == (uint32_t)opt.inflight ? 0 : c->newest + 1;
                }
            } else {
                if (c->wants_out)
                    watch(c, EPOLL_CTL_MOD, false);
                return;
            }
        }
        ssize_t n = transmit(c, c->out, c->out_left);
        if (n == BROKEN)
            fail("the server closed a connection while the client was sending");
        if (n != BLOCKED) {
            c->out += n;
            c->out_left -= (size_t)n;
        }
        if (c->out_left) {
            if (!c->wants_out)
                watch(c, EPOLL_CTL_MOD, true);
            return;
        }
    }
}

static void joined(Connection *c)
{
    c->joined = true;
    connecting--;
    opened++;
    if (c->silent && epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL) != 0)
        refuse("epoll_ctl: %s", strerror(errno));
}

static void upgraded(Connection *c)
{
    check_response(c);
    free(c->head);
    c->head = NULL;
    c->state = OPEN;
    if (!opt.socketio)
        joined(c);
    if (opt.mode == HANDSHAKE_MODE) {
        static const uint8_t normal[2] = {1000 >> 8, 1000 & 0xFF};
        if (measuring)
            record(now() - c->begun);
        c->control_length = (uint8_t)put_frame(c->control, 8, normal, 2);
        c->state = CLOSING;
    } else if (opt.mode == IDLE_MODE) {
        c->owed = 1;
    } /* echo: sending starts when all are open, since it would delay opening the others */
}

/* A packet of Engine.IO 4 or Socket.IO 5 other than an event. */
static void packet_complete(Connection *c)
{
    const char *answer = NULL;
    c->in_packet = false;
    if (!c->joined && c->ping_length && c->ping[0] == '0') /* open */
        answer = "40";
    else if (!c->joined && c->ping_length > 1 && c->ping[0] == '4' && c->ping[1] == '0')
        joined(c);
    else if (c->ping_length == 1 && c->ping[0] == '2') /* ping */
        answer = "3";
    else
        fail("the server sent an unexpected Socket.IO packet: %.*s",
             (int)c->ping_length, (const char *)c->ping);
    if (answer != NULL)
        c->control_length =
            (uint8_t)put_frame(c->control, 1, (const uint8_t *)answer, strlen(answer));
}

/* Flask-SocketIO handles each event in its own greenlet and guarantees no order. */
static void check_event(const Connection *c)
{
    for (uint32_t v = 0; v < variants; v++)
        if (memcmp(c->packed, payloads + v * opt.size, opt.size) == 0)
            return;
    fail("an event differs from what was sent");
}

static void message_complete(Connection *c, uint64_t time)
{
#ifdef WITH_DEFLATE
    if (opt.deflate && c->checked)
        check_packed(c);
#endif
    if (c->message_got != opt.size && !opt.deflate)
        fail("an echo has %llu bytes instead of %zu", (unsigned long long)c->message_got, opt.size);
    if (opt.socketio && c->checked)
        check_event(c);
    if (c->echoes++ == 0)
        first_echoes++;
    total_messages++;
    verified += c->checked;
    c->next_in = c->next_in + 1 == variants ? 0 : c->next_in + 1;
    c->in_message = false;
    if (opt.mode == ROOM_MODE) {
        delivered++;
        if (measuring) {
            messages++;
            record(time - due_at[(c->echoes - 1) % ROOM_STAMPS]);
        }
        return;
    }
    if (measuring) {
        messages++;
        record(time - c->stamps[c->oldest]);
    }
    c->under_way--;
    c->oldest = c->oldest + 1 == (uint32_t)opt.inflight ? 0 : c->oldest + 1;
    if (opt.mode == ECHO_MODE)
        c->owed++;
}

static void control_complete(Connection *c)
{
    if (c->opcode == 8) {
        if (c->state != CLOSING)
            fail("the server closed with code %d",
                 c->ping_length >= 2 ? c->ping[0] << 8 | c->ping[1] : 1005);
        c->peer_closed = true;
        c->closed = last_progress;
    } else if (c->opcode == 9 && c->state == OPEN) {
        pings++;
        if (c->sending_control) /* the previous pong is still being sent, which is enough */
            return;
        c->control_length = (uint8_t)put_frame(c->control, 10, c->ping, c->ping_length);
    }
}

/* The header of a frame is complete. */
static void frame_begins(Connection *c)
{
    const uint8_t *h = c->header;
    c->header_length = 0;
    c->opcode = h[0] & 15;
    c->final = h[0] >> 7;
    c->frame_left = h[1] & 127;
    if (c->frame_left == 126) {
        c->frame_left = (uint64_t)h[2] << 8 | h[3];
    } else if (c->frame_left == 127) {
        c->frame_left = 0;
        for (int i = 2; i < 10; i++)
            c->frame_left = c->frame_left << 8 | h[i];
    }
    bool compressed = opt.deflate && c->opcode != 0 && c->opcode < 8;
    if ((h[0] & 0x70) != (compressed ? 0x40 : 0) || (h[1] & 0x80))
        fail("a frame of the server has wrong reserved bits or a mask");
    if (c->opcode >= 8) {
        if (c->opcode > 10 || !c->final || c->frame_left > 125)
            fail("the server sent a malformed control frame");
        c->ping_length = 0;
        return;
    }
    if (opt.socketio && c->opcode == 1 && c->final && (!c->joined || c->frame_left == 1)) {
        c->in_packet = true;
        c->ping_length = 0;
        return;
    }
    int wanted = c->in_message ? 0 : opt.text ? 1 : 2;
    if (c->opcode != wanted)
        fail("a frame has opcode %d instead of %d", c->opcode, wanted);
    if (!c->in_message) {
        if (opt.mode == ROOM_MODE ? c->echoes >= published : c->under_way == 0)
            fail("the server sent a message that no client had sent");
        c->in_message = true;
        c->message_got = 0;
        c->checked = c->echoes == published_before || ++sampled % sample_every == 0;
    }
    if (c->message_got + c->frame_left > (opt.deflate ? packed_room - 4 : opt.size))
        fail("an echo has %llu bytes or more instead of %zu",
             (unsigned long long)(c->message_got + c->frame_left), opt.size);
}

static void consume(Connection *c, const uint8_t *data, size_t length, uint64_t time)
{
    while (length) {
        if (!c->in_payload) {
            uint8_t need = 2;
            while (length) {
                c->header[c->header_length++] = *data++, length--;
                if (c->header_length >= 2) {
                    uint8_t size = c->header[1] & 127;
                    need = size == 126 ? 4 : size == 127 ? 10 : 2;
                }
                if (c->header_length == need)
                    break;
            }
            if (c->header_length < need)
                return;
            frame_begins(c);
            c->in_payload = true;
        }
        size_t part = length < c->frame_left ? length : (size_t)c->frame_left;
        if (c->opcode >= 8 || c->in_packet) {
            size_t room = sizeof c->ping - c->ping_length;
            memcpy(c->ping + c->ping_length, data, part < room ? part : room);
            c->ping_length = (uint8_t)(c->ping_length + (part < room ? part : room));
        } else {
            if ((opt.deflate || opt.socketio) && part)
                memcpy(c->packed + c->message_got, data, part);
            else if (c->checked && part
                     && memcmp(data, payloads + c->next_in * opt.size + c->message_got, part) != 0)
                fail("an echo differs from what was sent");
            c->message_got += part;
            if (measuring)
                bytes += part;
        }
        data += part;
        length -= part;
        c->frame_left -= part;
        if (c->frame_left)
            return;
        c->in_payload = false;
        if (c->opcode >= 8)
            control_complete(c);
        else if (c->in_packet)
            packet_complete(c);
        else if (c->final)
            message_complete(c, time);
    }
}

static void cycle_complete(Connection *c)
{
    total_messages++;
    if (measuring)
        messages++;
    drop(c);
    start(c);
}

static void ended(Connection *c)
{
    if (opt.mode == HANDSHAKE_MODE && c->state == CLOSING && c->peer_closed) {
        cycle_complete(c);
        return;
    }
    fail("the server closed a connection%s", c->state == UPGRADING ? " during the handshake" : "");
}

static void readable(Connection *c)
{
    for (int round = 0; c->ssl != NULL || round < 8; round++) { /* with TLS, OpenSSL may have more buffered */
        ssize_t n = receive(c);
        if (n == BLOCKED)
            break;
        if (n == 0 || n == BROKEN) {
            ended(c);
            return;
        }
        last_progress = now();
        const uint8_t *data = buffer;
        size_t length = (size_t)n;
        if (c->state == UPGRADING) {
            size_t old = c->head_length;
            size_t room = HEAD_MAX - 1 - old, take = length < room ? length : room;
            memcpy(c->head + old, data, take);
            c->head_length += take;
            c->head[c->head_length] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (end == NULL) {
                if (take < length || c->head_length == HEAD_MAX - 1)
                    fail("the response to the handshake is too long");
                continue;
            }
            size_t used = (size_t)(end + 4 - c->head) - old;
            data += used;
            length -= used;
            end[2] = 0;
            upgraded(c);
        }
        consume(c, data, length, last_progress);
        if (c->ssl == NULL && (size_t)n < sizeof buffer)
            break; /* a short read: the socket is empty */
    }
    if (c->state == OPEN || c->state == CLOSING)
        if (c->owed || c->control_length)
            flush(c);
}

static void request(Connection *c)
{
    c->state = UPGRADING;
    c->out = (const uint8_t *)keys[c->number % KEYS].request;
    c->out_left = keys[c->number % KEYS].length;
    flush(c);
}

static void handle(Connection *c, uint32_t events)
{
    if (c->state == FREE || (c->silent && c->joined))
        return;
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error)
            fail("connect: %s", strerror(error));
        last_progress = now();
        c->state = TLS_HANDSHAKE;
#ifdef WITH_TLS
        if (opt.tls) {
            c->ssl = SSL_new(tls_context);
            if (c->ssl == NULL || SSL_set_fd(c->ssl, c->fd) != 1)
                refuse("SSL_new failed");
            SSL_set_connect_state(c->ssl);
        }
#endif
    }
    if (c->state == TLS_HANDSHAKE) {
#ifdef WITH_TLS
        if (c->ssl != NULL) {
            ERR_clear_error();
            int result = SSL_do_handshake(c->ssl);
            if (result != 1) {
                int error = SSL_get_error(c->ssl, result);
                if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
                    fail("the TLS handshake failed");
                if (c->wants_out != (error == SSL_ERROR_WANT_WRITE))
                    watch(c, EPOLL_CTL_MOD, error == SSL_ERROR_WANT_WRITE);
                return;
            }
            last_progress = now();
        }
#endif
        request(c);
        return;
    }
    if (events & EPOLLOUT)
        flush(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        readable(c);
}

static void poll_once(int milliseconds)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, milliseconds);
    if (count < 0 && errno != EINTR)
        refuse("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        if (events[i].data.ptr != NULL)
            handle(events[i].data.ptr, events[i].events);
    static uint64_t last_check;
    uint64_t time = now();
    if (opt.mode == HANDSHAKE_MODE && time - last_check > CLOSE_TIMEOUT / 4) {
        last_check = time; /* some servers leave closing TCP to the client */
        for (int i = 0; i < opt.connections; i++) {
            Connection *c = &connections[i];
            if (c->state == CLOSING && c->peer_closed && time - c->closed > CLOSE_TIMEOUT) {
                if (measuring)
                    closed_by_us++;
                cycle_complete(c);
            }
        }
    }
    if (opt.mode == IDLE_MODE && first_echoes == (uint64_t)opt.connections)
        return; /* idle connections are meant to be silent */
    if (time <= last_progress || (double)(time - last_progress) <= opt.timeout * 1e9)
        return;
    if (delivered)
        fail("%llu messages were delivered; the rest was not delivered within %g seconds",
             (unsigned long long)delivered, opt.timeout);
    else
        fail("nothing received for %g seconds (%llu of %d connections are open)", opt.timeout,
             (unsigned long long)opened, opt.connections);
}

/* ---- the run ---- */

static double since(uint64_t time)
{
    return (double)(now() - time) / 1e9;
}

static void connect_up_to(int count)
{
    static int next;
    bool cycling = opt.mode == HANDSHAKE_MODE; /* `opened` counts every cycle there */
    while (next < count || (!cycling && opened < (uint64_t)count)) {
        while (next < count && (cycling || connecting < (uint64_t)opt.batch))
            start(&connections[next++]);
        poll_once(100);
    }
}

static void publish(uint64_t due)
{
    due_at[published++ % ROOM_STAMPS] = due;
    connections[0].owed++;
}

/* Makes the server send to the silent connections until their buffers are full. */
static void fill_the_silent(void)
{
    Connection *publisher = &connections[0];
    uint64_t count = SILENT_FILL / (opt.size ? opt.size : 1) + 1;
    while (publisher->echoes < count) {
        while (published < count && published - publisher->echoes < ROOM_INFLIGHT)
            publish(now());
        flush(publisher);
        poll_once(10);
    }
}

static void connect_all(void)
{
    uint64_t begun = last_progress = now();
    if (opt.silent) {
        connect_up_to(1 + opt.silent);
        fill_the_silent();
    }
    connect_up_to(opt.connections);
    connect_seconds = since(begun);
    last_progress = now();
    for (int i = 0; i < opt.connections && opt.mode == ECHO_MODE; i++) {
        connections[i].owed = (uint32_t)opt.inflight;
        flush(&connections[i]);
    }
}

/* True while a phase must continue: for `seconds`, and up to ten times as long until `enough`. */
static bool must_continue(uint64_t begun, double seconds, bool enough)
{
    double passed = since(begun);
    return passed < seconds || (!enough && passed < 10 * seconds + 5);
}

static void close_all(void)
{
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 0xFF};
    for (int i = 0; i < opt.connections; i++) {
        Connection *c = &connections[i];
        if (c->state == OPEN && c->out_left == 0) {
            size_t length = put_frame(c->control, 8, normal, 2);
            transmit(c, c->control, length);
        }
        if (c->state != FREE)
            drop(c);
    }
}

/* Prints the JSON object without its closing brace. */
static void print_result(double seconds, double load_cpu)
{
    static const char *const modes[] = {"echo", "handshake", "idle", "room"};
    printf("{\"mode\": \"%s\", \"connections\": %d, \"inflight\": %d, \"size\": %zu, "
           "\"kind\": \"%s\", \"tls\": %s, \"deflate\": %s, \"seconds\": %.6f, "
           "\"connect_seconds\": %.6f, \"messages\": %llu, \"bytes\": %llu, \"verified\": %llu, "
           "\"errors\": 0, \"messages_per_second\": %.1f, \"latency_us\": {\"p50\": %.2f, "
           "\"p99\": %.2f, \"p99.9\": %.2f, \"max\": %.2f}, \"load_cpu_share\": %.4f",
           modes[opt.mode], opt.connections, opt.inflight, opt.size, opt.text ? "text" : "binary",
           opt.tls ? "true" : "false", opt.deflate ? "true" : "false", seconds, connect_seconds,
           (unsigned long long)messages, (unsigned long long)bytes, (unsigned long long)verified,
           (double)messages / seconds, percentile(0.5), percentile(0.99), percentile(0.999),
           (double)latency_max / 1e3, load_cpu / seconds);
}

static void echo_or_handshake(void)
{
    uint64_t begun = now();
    uint64_t wanted = (uint64_t)opt.connections;
    while (must_continue(begun, opt.warmup,
                         (opt.mode == ECHO_MODE ? first_echoes : total_messages) >= wanted))
        poll_once(10);
    if (opt.mode == ECHO_MODE && first_echoes < wanted)
        fail("only %llu of %d connections received an echo during the warm-up",
             (unsigned long long)first_echoes, opt.connections);

    double load_cpu = own_cpu(), server_cpu = opt.watch ? tree_cpu(opt.watch) : 0;
    measuring = true;
    begun = now();
    while (must_continue(begun, opt.duration, messages >= (uint64_t)opt.min_messages))
        poll_once(10);
    double seconds = since(begun);
    if (opt.watch)
        server_cpu = tree_cpu(opt.watch) - server_cpu;
    load_cpu = own_cpu() - load_cpu;
    measuring = false;
    if (messages == 0)
        fail("nothing was received in %.1f seconds", seconds);
    print_result(seconds, load_cpu);
    if (opt.mode == HANDSHAKE_MODE)
        printf(", \"closed_by_client\": %llu", (unsigned long long)closed_by_us);
    if (opt.watch)
        printf(", \"server_cpu_seconds\": %.6f", server_cpu);
    printf("}\n");
    fflush(stdout);
    close_all();
}

/* Publishes at the rate for `seconds`, then waits at most `drain_timeout` seconds until everything is
 * delivered. Returns when the last message was due. */
static uint64_t publish_and_drain(int timer, double seconds, double drain_timeout)
{
    uint64_t interval = (uint64_t)(1e9 / opt.rate), due = now(), last = due;
    uint64_t count = (uint64_t)(seconds * opt.rate + 0.5), sent = 0;
    uint64_t receivers = (uint64_t)(opt.connections - opt.silent);
    uint64_t target = delivered + (count ? count : 1) * receivers;
    while (delivered < target) {
        uint64_t time = now();
        for (; sent < (count ? count : 1) && due <= time; sent++, due += interval)
            publish(last = due);
        flush(&connections[0]);
        if (sent < count) {
            struct itimerspec at = {.it_value = {(time_t)(due / 1000000000u),
                                                 (long)(due % 1000000000u)}};
            if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL) != 0)
                refuse("timerfd_settime: %s", strerror(errno));
            last_progress = time; /* between two messages there may be nothing to receive */
        } else if ((double)(time - last) > drain_timeout * 1e9 && time > last) {
            break;
        }
        poll_once(10);
    }
    return last;
}

static void room(void)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (timer < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &event) != 0)
        refuse("timerfd: %s", strerror(errno));
    published_before = published;
    delivered = 0;
    for (int i = 0; i < opt.connections; i++) {
        connections[i].echoes = published;
        connections[i].next_in = (uint32_t)(published % variants);
    }
    uint64_t receivers = (uint64_t)(opt.connections - opt.silent);
    publish_and_drain(timer, opt.warmup, 2 * opt.timeout); /* poll_once() ends a longer silence */
    if (delivered < (published - published_before) * receivers)
        fail("only %llu of %llu messages were delivered during the warm-up",
             (unsigned long long)delivered,
             (unsigned long long)((published - published_before) * receivers));

    uint64_t before = published;
    double load_cpu = own_cpu(), server_cpu = opt.watch ? tree_cpu(opt.watch) : 0;
    measuring = true;
    uint64_t begun = now(), last = publish_and_drain(timer, opt.duration, opt.drain_timeout);
    double seconds = since(begun), drain = since(last);
    if (opt.watch)
        server_cpu = tree_cpu(opt.watch) - server_cpu;
    load_cpu = own_cpu() - load_cpu;
    measuring = false;
    if (messages == 0)
        fail("nothing was delivered in %.1f seconds", seconds);
    print_result(seconds, load_cpu);
    printf(", \"silent\": %d, \"rate\": %g, \"published\": %llu, \"expected\": %llu, "
           "\"drain_seconds\": %.6f",
           opt.silent, opt.rate, (unsigned long long)(published - before),
           (unsigned long long)((published - before) * receivers), drain);
    if (opt.watch)
        printf(", \"server_cpu_seconds\": %.6f", server_cpu);
    printf("}\n");
    fflush(stdout);
    close_all();
}

static void idle(void)
{
    uint64_t begun = now();
    while (first_echoes < (uint64_t)opt.connections)
        poll_once(100);
    printf("{\"mode\": \"idle\", \"connections\": %d, \"tls\": %s, \"connect_seconds\": %.6f, "
           "\"echo_seconds\": %.6f, \"verified\": %llu, \"pings\": %llu, \"errors\": 0}\n",
           opt.connections, opt.tls ? "true" : "false", connect_seconds, since(begun),
           (unsigned long long)verified, (unsigned long long)pings);
    fflush(stdout);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    for (;;) {
        char ignored[64];
        ssize_t n = read(STDIN_FILENO, ignored, sizeof ignored);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            break;
        poll_once(20);
    }
    printf("{\"pings\": %llu}\n", (unsigned long long)pings);
    fflush(stdout);
    close_all();
}

static void raise_limit(void)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)opt.connections + 64;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = wanted;
    if (limit.rlim_max < wanted)
        limit.rlim_max = wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        refuse("%d connections need as many open files, but this machine allows fewer "
               "(ulimit -n)", opt.connections);
}

static const char usage[] =
    "usage: load --port N [options]\n"
    "  --host ADDRESS        127.0.0.1\n"
    "  --port N[,N...]       connections are spread over them\n"
    "  --path PATH           /\n"
    "  --subprotocol NAME    offer it and expect it\n"
    "  --mode MODE           echo, handshake, idle or room\n"
    "  --connections N       1\n"
    "  --inflight N          1; messages in flight on each connection\n"
    "  --size BYTES          32\n"
    "  --kind KIND           binary or text\n"
    "  --duration SECONDS    2\n"
    "  --warmup SECONDS      0.5\n"
    "  --min-messages N      continue (up to ten times as long) until there are N\n"
    "  --batch N             64; connections opened at a time\n"
    "  --timeout SECONDS     15; give up if nothing is received for so long\n"
    "  --watch PID           measure the CPU time of this process and its children\n"
    "  --tls                 use TLS, without checking the certificate\n"
    "  --deflate             JSON, compressed (permessage-deflate, no context takeover)\n"
    "  --rate N              50; messages a second to a room\n"
    "  --silent N            0; members of the room that never read\n"
    "  --drain-timeout SECS  15; for the deliveries after a room's last message\n"
    "  --socketio            each message is a Socket.IO event \"message\" of --size characters\n"
    "  --features            print the optional features of this build\n";

static double number(const char *name, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least && value <= most))
        refuse("--%s must be a number from %g to %g, not '%s'", name, least, most, text);
    return value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'a'}, {"subprotocol", 1, 0, 's'},
        {"mode", 1, 0, 'm'}, {"connections", 1, 0, 'c'}, {"inflight", 1, 0, 'i'},
        {"size", 1, 0, 'z'}, {"kind", 1, 0, 'k'}, {"duration", 1, 0, 'd'}, {"warmup", 1, 0, 'w'},
        {"min-messages", 1, 0, 'n'}, {"batch", 1, 0, 'b'}, {"timeout", 1, 0, 't'},
        {"watch", 1, 0, 'o'}, {"tls", 0, 0, 'T'}, {"deflate", 0, 0, 'D'}, {"features", 0, 0, 'F'}, {"help", 0, 0, 'H'},
        {"rate", 1, 0, 'r'}, {"silent", 1, 0, 'l'}, {"drain-timeout", 1, 0, 'e'}, {"socketio", 0, 0, 'S'},
        {0, 0, 0, 0},
    };
    int letter, at = 0;
    while ((letter = getopt_long(argc, argv, "", options, &at)) != -1) {
        const char *name = letter == '?' ? "" : options[at].name;
        switch (letter) {
        case 'h': opt.host = optarg; break;
        case 'p':
            for (char *port = strtok(optarg, ","); port != NULL; port = strtok(NULL, ",")) {
                if (opt.ports == PORTS)
                    refuse("--port takes at most %d ports", PORTS);
                server_addresses[opt.ports++].sin_port =
                    htons((uint16_t)number(name, port, 1, 65535));
            }
            break;
        case 'a': opt.path = optarg; break;
        case 's': opt.subprotocol = optarg; break;
        case 'm':
            if (!strcmp(optarg, "echo")) opt.mode = ECHO_MODE;
            else if (!strcmp(optarg, "handshake")) opt.mode = HANDSHAKE_MODE;
            else if (!strcmp(optarg, "idle")) opt.mode = IDLE_MODE;
            else if (!strcmp(optarg, "room")) opt.mode = ROOM_MODE;
            else refuse("--mode must be echo, handshake, idle or room, not '%s'", optarg);
            break;
        case 'c': opt.connections = (int)number(name, optarg, 1, 1e6); break;
        case 'i': opt.inflight = (int)number(name, optarg, 1, 65536); break;
        case 'z': opt.size = (size_t)number(name, optarg, 0, 1 << 30); break;
        case 'k':
            if (strcmp(optarg, "text") && strcmp(optarg, "binary"))
                refuse("--kind must be text or binary, not '%s'", optarg);
            opt.text = !strcmp(optarg, "text");
            break;
        case 'd': opt.duration = number(name, optarg, 0.01, 1e6); break;
        case 'w': opt.warmup = number(name, optarg, 0, 1e6); break;
        case 'n': opt.min_messages = (long long)number(name, optarg, 0, 1e15); break;
        case 'b': opt.batch = (int)number(name, optarg, 1, 1e6); break;
        case 't': opt.timeout = number(name, optarg, 0.1, 1e6); break;
        case 'o': opt.watch = (pid_t)number(name, optarg, 1, 1e9); break;
        case 'r': opt.rate = number(name, optarg, 0.1, 1e6); break;
        case 'l': opt.silent = (int)number(name, optarg, 0, 1e6); break;
        case 'e': opt.drain_timeout = number(name, optarg, 0.01, 1e6); break;
        case 'S': opt.socketio = true; break;
        case 'T': opt.tls = true; break;
        case 'D': opt.deflate = true; break;
        case 'F':
#ifdef WITH_TLS
            puts("tls");
#endif
#ifdef WITH_DEFLATE
            puts("deflate");
#endif
            exit(0);
        case 'H': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (optind < argc || opt.ports == 0) {
        fputs(usage, stderr);
        exit(2);
    }
    for (int i = 0; i < opt.ports; i++) {
        server_addresses[i].sin_family = AF_INET;
        if (inet_pton(AF_INET, opt.host, &server_addresses[i].sin_addr) != 1)
            refuse("--host must be an IPv4 address, not '%s'", opt.host);
    }
    if (opt.mode == IDLE_MODE)
        opt.inflight = 1;
    if (opt.mode == ROOM_MODE)
        opt.inflight = ROOM_INFLIGHT;
    if (opt.silent && (opt.mode != ROOM_MODE || opt.silent >= opt.connections))
        refuse("--silent needs --mode room, and fewer than --connections");
    if (opt.socketio) {
        if (opt.mode != ROOM_MODE || !opt.text || opt.deflate)
            refuse("--socketio needs --mode room and --kind text, without --deflate");
        opt.size += strlen(event_begin) + strlen(event_end);
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    raise_limit();
#ifdef WITH_TLS
    if (opt.tls) {
        tls_context = SSL_CTX_new(TLS_client_method());
        if (tls_context == NULL)
            refuse("OpenSSL could not be initialised");
        SSL_CTX_set_read_ahead(tls_context, 1);
        SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE
                                          | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
                                          | SSL_MODE_RELEASE_BUFFERS);
    }
#else
    if (opt.tls)
        refuse("built without TLS");
#endif
#ifndef WITH_DEFLATE
    if (opt.deflate)
        refuse("built without zlib");
#endif
    make_keys();
    make_messages();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        refuse("epoll_create1: %s", strerror(errno));
    connections = allocate((size_t)opt.connections, sizeof *connections);
    uint64_t *stamps = allocate((size_t)opt.connections * (size_t)opt.inflight, sizeof *stamps);
    for (int i = 0; i < opt.connections; i++) {
        connections[i].number = i;
        connections[i].stamps = stamps + (size_t)i * (size_t)opt.inflight;
        if (opt.deflate || opt.socketio)
            connections[i].packed = allocate(packed_room, 1);
    }
    connect_all();
    if (opt.mode == IDLE_MODE)
        idle();
    else if (opt.mode == ROOM_MODE)
        room();
    else
        echo_or_handshake();
    return 0;
}

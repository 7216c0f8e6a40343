/* A load generator for what users of a WebSocket server wait for: one thread, epoll, libc.
 *
 *   cc -O2 -o scenes scenes.c
 *
 * conversation  a client sends every 5 ms; the server answers each message with three, 2 ms apart
 * http          --requests connections, each asks for --path again as soon as it has the answer
 * beside        --echoes connections that echo --echo-rate messages per second in all, beside
 *               --watchers of a ticker and --requests connections that ask at --request-rate in all
 * chat          --rooms of --members; each member says something once a second
 * deploy        --connections at the first port, whose process group --kill is killed; all come back at the second
 *               port, where --stay connections echo all the time
 * drops         --connections in a room that hears --rate messages per second, each cut for --cut of every
 *               --cycle seconds: every other one without a sign to the server; they come back with "?since=" if
 *               the messages have an "id"
 *
 * --prefix goes before the path of each WebSocket, --jitter is the longest time until a client that lost its
 * connection tries again, --settle how long the last messages of "drops" may take, in seconds.
 *
 * All but "http" send at fixed times, and count a latency from the time when a message was due. Prints one JSON
 * object. Exit code: 0; 1 if the server did anything wrong (the object's "error" says what); 2 for wrong
 * arguments, or if this machine lacks what they need.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "cpu.h"
#include "handshake.h"

enum { CONVERSATION, ECHO, TICKER, HTTP, CHAT, RETURNING, FEED, PUBLISHER };
enum { IDLE, CONNECTING, OPENING, OPEN, CUT };
enum { BUFFER = 512 * 1024, EVENTS = 512, AT_ONCE = 64, PER_ADDRESS = 10000, POSITION = 256 };
#define MS 1000000u          /* nanoseconds */
#define SECOND 1000000000u
#define LATE (20 * MS)       /* of an answer in a conversation */
#define ATTEMPT (20ull * SECOND) /* for a handshake in a deploy; then the client tries again */
#define NEVER UINT64_MAX

static struct {
    const char *scene, *path, *prefix;
    int ports[2], connections, stay, echoes, watchers, requests, rooms, members;
    pid_t watch, kill;
    bool socketio;
    double duration, warmup, timeout, echo_rate, request_rate, rate, cut, cycle, jitter, settle;
} opt = {
    .scene = "conversation", .path = "/small", .prefix = "", .connections = 1, .rooms = 20, .members = 50,
    .duration = 2, .warmup = 0.5, .timeout = 15, .echo_rate = 1000, .rate = 50, .cut = 2, .cycle = 5,
    .jitter = 1, .settle = 1,
};

typedef struct { double *ms; size_t count, room; } Samples;

/* Clients that do the same. Message `k` is sent by client `k % count`, and due at `begun + k * interval`. */
typedef struct {
    int kind, first, count, port;
    uint64_t begun, interval, sent, done;
    Samples latency;
} Group;

typedef struct {
    int fd, number, kind;
    uint8_t state;
    bool joined, wants_out, answering, last_response;
    Group *group;
    uint64_t wake, began; /* when to connect, and when that began */
    uint64_t due;         /* of the request that is under way */
    uint64_t last;        /* the number of the last message */
    uint64_t waiting;     /* HTTP: requests that are due */
    uint64_t body_left;
    char *in, *out, *position;
    size_t have, out_length;
    uint8_t *heard;       /* a bit for each message of a feed */
    uint64_t heard_count;
} Client;

static Client *clients;
static int client_count, epoll_fd, timer_fd, opening, joined_count;
static Group groups[4];
static int group_count;
static char accept_value[32], key[32];
static char buffer[BUFFER + 1];
static uint64_t measured_from = NEVER, measured_until = NEVER, late, duplicates, gaps, closed_by_server;
static uint64_t attempts, refused, reconnects, served, bytes_read, disordered;
static uint8_t *step;       /* conversation: answers to each message; */
static uint64_t *heard_by;  /* chat: the members that heard each message */
static uint64_t most_messages;
static bool returning;      /* the clients of a deploy, or of a feed, may lose their connections */

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
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
    __fpurge(stdout); /* figures of what has failed since */
    printf("{\"errors\": 1, \"error\": \"%s\"}\n", text);
    fflush(stdout);
    _exit(1);
}

static void refuse(const char *what)
{
    fprintf(stderr, "scenes: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(2);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        refuse("not enough memory");
    return memory;
}

static void record(Samples *samples, uint64_t nanoseconds)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 4096;
        samples->ms = realloc(samples->ms, samples->room * sizeof *samples->ms);
        if (samples->ms == NULL)
            refuse("not enough memory");
    }
    samples->ms[samples->count++] = (double)nanoseconds / MS;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_latency(const char *name, Samples *samples)
{
    static const struct { const char *name; double share; } wanted[] = {
        {"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}};
    if (samples->count == 0)
        fail("nothing was measured");
    qsort(samples->ms, samples->count, sizeof *samples->ms, compare);
    printf(", \"%s_count\": %zu, \"%s_ms\": {", name, samples->count, name);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        size_t index = (size_t)(wanted[i].share * (double)samples->count);
        index = index < samples->count ? index : samples->count - 1;
        printf("%s\"%s\": %.4f", i ? ", " : "", wanted[i].name, samples->ms[index]);
    }
    printf("}");
}

static uint32_t random32(void)
{
    static uint64_t state = 0x9E3779B97F4A7C15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static uint64_t due(const Group *g, uint64_t k)
{
    return g->begun + k * g->interval;
}

static bool counts(uint64_t time)
{
    return time >= measured_from && time < measured_until;
}

/* ---- connections ---- */

static void watch(Client *c, int operation, bool out)
{
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) != 0)
        refuse("epoll_ctl");
    c->wants_out = out;
}

static bool is_opening(const Client *c)
{
    return !c->joined && (c->state == CONNECTING || c->state == OPENING || c->state == OPEN);
}

static void forget(Client *c) /* what is left of its connection */
{
    struct linger reset = {.l_onoff = 1};
    if (c->fd >= 0) {
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(c->fd);
    }
    if (is_opening(c))
        opening--;
    if (c->joined)
        joined_count--;
    if (c->kind == RETURNING && c->last)
        served--;
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    c->have = c->out_length = 0;
    c->fd = -1;
    c->joined = c->answering = c->last_response = false;
    c->body_left = 0;
    c->state = IDLE;
    if (c->kind == RETURNING)
        c->last = 0;
}

static void come_back(Client *c, double seconds)
{
    forget(c);
    c->wake = now() + (uint64_t)(seconds * SECOND * (random32() % 1000) / 1000);
}

static void send_bytes(Client *c, const char *data, size_t length)
{
    if (c->out_length == 0) {
        ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return; /* the end of the connection is about to be read */
        data += n > 0 ? n : 0;
        length -= n > 0 ? (size_t)n : 0;
    }
    if (length == 0)
        return;
    c->out = realloc(c->out, c->out_length + length);
    if (c->out == NULL)
        refuse("not enough memory");
    memcpy(c->out + c->out_length, data, length);
    c->out_length += length;
    if (!c->wants_out)
        watch(c, EPOLL_CTL_MOD, true);
}

static void send_frame(Client *c, int opcode, const char *payload, size_t length)
{
    uint8_t frame[512], *at = frame;
    uint32_t mask = random32() | 0x01010101;
    if (length > sizeof frame - 8)
        refuse("a message is too long");
    *at++ = (uint8_t)(0x80 | opcode);
    *at++ = (uint8_t)(0x80 | (length < 126 ? length : 126));
    if (length >= 126)
        *at++ = (uint8_t)(length >> 8), *at++ = (uint8_t)length;
    memcpy(at, &mask, 4);
    at += 4;
    for (size_t i = 0; i < length; i++)
        at[i] = (uint8_t)payload[i] ^ (uint8_t)(mask >> (8 * (i % 4)));
    send_bytes(c, (char *)frame, (size_t)(at - frame) + length);
}

static void send_text(Client *c, const char *text)
{
    char event[512];
    if (opt.socketio) {
        snprintf(event, sizeof event, "42[\"message\",\"%s\"]", text);
        text = event;
    }
    send_frame(c, 1, text, strlen(text));
}

static void connect_client(Client *c)
{
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in source = address;
    address.sin_port = htons((uint16_t)opt.ports[c->group->port]);
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(c->number / PER_ADDRESS));
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        refuse("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) != 0)
        refuse("bind");
    c->state = CONNECTING;
    c->wake = NEVER;
    c->began = now();
    opening++;
    attempts++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        if (!returning)
            fail("connect: %s", strerror(errno));
        refused++;
        come_back(c, opt.jitter);
        return;
    }
    watch(c, EPOLL_CTL_ADD, true);
}

static void ask(Client *c)
{
    char text[512];
    int size = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", opt.path,
                        opt.ports[0]);
    c->answering = true;
    send_bytes(c, text, (size_t)size);
}

static void joined(Client *c)
{
    c->joined = true;
    opening--;
    joined_count++;
    c->state = OPEN;
    if (c->kind == RETURNING)
        send_text(c, "hello");
    if (c->kind == HTTP && c->waiting)
        ask(c);
}

static void connected(Client *c)
{
    char path[POSITION + 128], text[1024];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        if (!returning)
            fail("connect: %s", strerror(error));
        refused++;
        come_back(c, opt.jitter);
        return;
    }
    c->state = OPENING;
    if (c->kind == HTTP) {
        joined(c);
        return;
    }
    static const char *const paths[] = {[CONVERSATION] = "conversation", [ECHO] = "", [TICKER] = "ticker",
                                        [CHAT] = "chat/", [RETURNING] = "", [FEED] = "feed",
                                        [PUBLISHER] = "feed"};
    int place = c->kind == CHAT ? c->number % opt.rooms : 0;
    if (opt.socketio && *paths[c->kind])
        snprintf(path, sizeof path, "/socket.io/?EIO=4&transport=websocket&room=%s%d",
                 paths[c->kind], place);
    else if (opt.socketio)
        snprintf(path, sizeof path, "/socket.io/?EIO=4&transport=websocket");
    else if (c->kind == CHAT)
        snprintf(path, sizeof path, "%s/chat/%d", opt.prefix, place);
    else
        snprintf(path, sizeof path, "%s/%s%s%s", opt.prefix, paths[c->kind],
                 c->position ? "?since=" : "", c->position ? c->position : "");
    int length = snprintf(text, sizeof text,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Key: %s\r\n"
                          "Sec-WebSocket-Version: 13\r\n\r\n",
                          path, opt.ports[c->group->port], key);
    send_bytes(c, text, (size_t)length);
}

static void open_again(Client *c)
{
    reconnects++;
    forget(c);
    connect_client(c);
}

/* A connection has ended, by the server or by the network. */
static void lost(Client *c, const char *how)
{
    if (c->kind == HTTP && !c->answering && c->have == 0) {
        open_again(c); /* as a client does when an idle connection is closed */
    } else if (returning && (c->kind == RETURNING || c->kind == FEED)) {
        closed_by_server++;
        come_back(c, opt.jitter);
    } else {
        fail("%s", how);
    }
}

/* ---- what arrives ---- */

static void publish_latency(Group *g, uint64_t k, uint64_t time)
{
    if (counts(due(g, k)))
        record(&g->latency, time - due(g, k));
}

/* The number in a message: of {"id": "...", "n": 5}, ["message","5"] or 5. */
static uint64_t number_in(const char *text)
{
    const char *at = strstr(text, "\"n\":");
    if (at != NULL)
        at += 4;
    else if ((at = strstr(text, "\"message\",\"")) != NULL)
        at += 11;
    else
        at = text;
    while (*at == ' ')
        at++;
    if (!isdigit((unsigned char)*at))
        fail("the server sent '%.80s'", text);
    return strtoull(at, NULL, 10);
}

static void keep_position(Client *c, const char *text)
{
    const char *at = strstr(text, "\"id\":");
    if (at == NULL)
        return;
    at += 5;
    at += strspn(at, " \"");
    size_t length = strcspn(at, "\"");
    if (length >= POSITION)
        fail("a position has %zu bytes", length);
    if (c->position == NULL)
        c->position = allocate(POSITION, 1);
    memcpy(c->position, at, length);
    c->position[length] = 0;
}

static void on_text(Client *c, const char *text, uint64_t time)
{
    Group *g = c->group;
    if (c->kind == TICKER) {
        if (counts(time))
            g->done++;
        return;
    }
    if (c->kind == RETURNING) {
        if (strstr(text, "hello") == NULL)
            fail("the server sent '%.80s' for an echo", text);
        if (c->last++)
            fail("the server sent an echo twice");
        served++;
        return;
    }
    if (c->kind == FEED || c->kind == PUBLISHER) {
        keep_position(c, text);
        if (strstr(text, "\"gap\"") != NULL) {
            gaps++;
            return;
        }
        if (!opt.socketio && strstr(text, "\"n\":") == NULL)
            return; /* the position at the beginning */
        uint64_t k = number_in(text);
        if (k >= groups[1].sent)
            fail("the server sent message %llu, which nobody had sent", (unsigned long long)k);
        if (c->kind == PUBLISHER)
            return;
        if (c->heard[k / 8] & 1 << k % 8) {
            duplicates++;
            return;
        }
        disordered += c->last > k;
        c->last = k;
        c->heard[k / 8] |= (uint8_t)(1 << k % 8);
        c->heard_count++;
        return;
    }
    uint64_t k = number_in(text);
    if (k >= g->sent)
        fail("the server sent '%.80s', which nobody had sent", text);
    if (c->kind == ECHO) {
        if ((int)(k % (uint64_t)g->count) + g->first != c->number || (c->last && k != c->last))
            fail("the server sent '%.80s' to the wrong client, or in the wrong order", text);
        c->last = k + (uint64_t)g->count;
        g->done++;
        publish_latency(g, k, time);
    } else if (c->kind == CONVERSATION) {
        const char *space = strrchr(text, ' ');
        int which = space ? atoi(space + 1) : 0;
        if (which != step[k] + 1)
            fail("answer %d to a message came after %d", which, step[k]);
        if (++step[k] == 3) {
            g->done++;
            late += counts(due(g, k)) && time - due(g, k) > LATE;
            publish_latency(g, k, time);
        }
    } else if (c->kind == CHAT) {
        int member = c->number / opt.rooms;
        if ((int)(k % (uint64_t)opt.rooms) != c->number % opt.rooms)
            fail("a message came to the wrong room");
        if (heard_by[k] & 1ull << member)
            fail("a message came twice");
        heard_by[k] |= 1ull << member;
        if (__builtin_popcountll(heard_by[k]) == opt.members) {
            g->done++;
            publish_latency(g, k, time);
        }
    }
}

/* A packet of Engine.IO 4 or Socket.IO 5; true if it is an event. */
static bool is_event(Client *c, const char *text)
{
    if (strncmp(text, "42[", 3) == 0)
        return true;
    if (text[0] == '0')
        send_frame(c, 1, "40", 2);
    else if (strncmp(text, "40", 2) == 0)
        joined(c);
    else if (strcmp(text, "2") == 0)
        send_frame(c, 1, "3", 1);
    else
        fail("the server sent an unexpected Socket.IO packet: %.80s", text);
    return false;
}

static bool header_value(const char *head, const char *name, char *value, size_t room)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':')
            continue;
        line += length + 1;
        line += strspn(line, " \t");
        snprintf(value, room, "%.*s", (int)strcspn(line, "\r"), line);
        return true;
    }
    return false;
}

/* Each takes what is complete at the beginning, and returns its length; 0 if nothing is. */

static size_t take_handshake(Client *c, char *data)
{
    char *end = strstr(data, "\r\n\r\n"), value[256];
    if (end == NULL)
        return 0;
    end[2] = 0;
    if (strncmp(data, "HTTP/1.1 101", 12) != 0) {
        if (!returning)
            fail("the response to the handshake is '%.*s'", (int)strcspn(data, "\r"), data);
        refused++;
        come_back(c, opt.jitter);
        return 0;
    }
    if (!header_value(data, "Sec-WebSocket-Accept", value, sizeof value) || strcmp(value, accept_value))
        fail("the response to the handshake has a wrong Sec-WebSocket-Accept");
    if (header_value(data, "Sec-WebSocket-Extensions", value, sizeof value))
        fail("the server uses an extension that was not offered: %s", value);
    if (opt.socketio)
        c->state = OPEN; /* joined when the session of Socket.IO is open */
    else
        joined(c);
    return (size_t)(end + 4 - data);
}

static size_t take_frame(Client *c, char *data, size_t length, uint64_t time)
{
    const uint8_t *h = (uint8_t *)data;
    if (length < 2)
        return 0;
    size_t head = 2, size = h[1];
    if (size == 126 && length >= 4)
        head = 4, size = (size_t)h[2] << 8 | h[3];
    else if (size >= 126 && length >= 4)
        fail("a message of the server is too long, or masked");
    else if (size >= 126)
        return 0;
    if (length < head + size)
        return 0;
    int opcode = h[0] & 15;
    if ((h[0] & 0xF0) != 0x80 || opcode == 0)
        fail("a frame of the server has reserved bits, or is a fragment");
    char *text = data + head, after = text[size];
    text[size] = 0;
    if (opcode == 9)
        send_frame(c, 10, text, size);
    else if (opcode == 8)
        lost(c, "the server closed a WebSocket");
    else if (opcode < 8 && (!opt.socketio || is_event(c, text)))
        on_text(c, text, time);
    text[size] = after;
    return head + size;
}

static size_t take_response(Client *c, char *data, size_t length, uint64_t time)
{
    size_t taken = 0;
    if (c->body_left == 0) {
        char *end = strstr(data, "\r\n\r\n"), value[64];
        if (end == NULL)
            return 0;
        taken = (size_t)(end + 4 - data);
        end[2] = 0;
        if (!c->answering)
            fail("the server sent a response to no request");
        if (strncmp(data, "HTTP/1.1 200", 12) != 0)
            fail("the response is '%.*s'", (int)strcspn(data, "\r"), data);
        if (!header_value(data, "Content-Length", value, sizeof value))
            fail("the response has no Content-Length");
        c->body_left = strtoull(value, NULL, 10);
        c->last_response = header_value(data, "Connection", value, sizeof value) && !strcasecmp(value, "close");
    }
    size_t part = length - taken < c->body_left ? length - taken : c->body_left;
    c->body_left -= part;
    if (counts(time))
        bytes_read += part;
    if (c->body_left == 0) {
        c->answering = false;
        c->group->done += counts(time);
        if (counts(time))
            record(&c->group->latency, time - c->due);
        if (c->group->interval) {
            c->due += c->group->interval * (uint64_t)c->group->count;
            c->waiting--;
        } else {
            c->due = time;
        }
        if (c->last_response)
            open_again(c);
        else if (c->waiting)
            ask(c);
    }
    return taken + part;
}

static void read_client(Client *c)
{
    memcpy(buffer, c->in, c->have);
    ssize_t n = recv(c->fd, buffer + c->have, BUFFER - c->have, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        lost(c, "the server closed a connection");
        return;
    }
    uint64_t time = now();
    size_t length = c->have + (size_t)n, at = 0, taken;
    buffer[length] = 0;
    free(c->in);
    c->in = NULL;
    c->have = 0;
    while (at < length && c->fd >= 0) {
        if (c->kind == HTTP)
            taken = take_response(c, buffer + at, length - at, time);
        else if (c->state == OPENING)
            taken = take_handshake(c, buffer + at);
        else
            taken = take_frame(c, buffer + at, length - at, time);
        at += taken;
        if (taken == 0)
            break;
    }
    if (c->fd >= 0 && at < length) {
        if (length - at == BUFFER)
            fail("the server sent too much");
        c->in = allocate(length - at, 1);
        c->have = length - at;
        memcpy(c->in, buffer + at, c->have);
    }
}

/* ---- time ---- */

static void send_message(Group *g)
{
    char text[96];
    uint64_t k = g->sent++;
    Client *c = &clients[g->first + (int)(k % (uint64_t)g->count)];
    if (g->kind == PUBLISHER && !opt.socketio)
        snprintf(text, sizeof text, "{\"n\":%llu}", (unsigned long long)k);
    else if (g->kind == CHAT)
        snprintf(text, sizeof text, "%llu a message of some sixty bytes, as people write them in chats",
                 (unsigned long long)k);
    else
        snprintf(text, sizeof text, "%-32llu", (unsigned long long)k);
    if (g->kind != HTTP) {
        send_text(c, text);
        return;
    }
    if (c->waiting++ == 0) {
        c->due = due(g, k);
        if (c->joined)
            ask(c);
    }
}

static bool sends(const Group *g)
{
    return g->interval && g->begun;
}

/* Sends what is due; returns when the next message is. */
static uint64_t send_due(uint64_t until)
{
    uint64_t next = NEVER;
    for (Group *g = groups; g < groups + group_count; g++) {
        if (!sends(g))
            continue;
        while (due(g, g->sent) < until && due(g, g->sent) <= now() && g->sent < most_messages)
            send_message(g);
        if (due(g, g->sent) < until && g->sent < most_messages && due(g, g->sent) < next)
            next = due(g, g->sent);
    }
    return next;
}

/* A client of a feed is cut, or comes back. */
static uint64_t cut_at = NEVER, cut_until;

static void cut_and_return(uint64_t time)
{
    uint64_t cycle = (uint64_t)(opt.cycle * SECOND), away = (uint64_t)(opt.cut * SECOND);
    for (int i = 0; i < opt.connections; i++) {
        Client *c = &clients[i];
        uint64_t phase = (time - cut_at + cycle * (uint64_t)i / (uint64_t)opt.connections) % cycle;
        bool out = time < cut_until && phase < away && time - cut_at >= phase;
        if (out && c->state != CUT) {
            if (c->joined && i % 2) { /* without a sign to the server */
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
                joined_count--;
                c->joined = false;
            } else {
                forget(c);
            }
            c->state = CUT;
            c->wake = NEVER;
        } else if (!out && c->state == CUT) {
            open_again(c);
        }
    }
}

static void wake_clients(uint64_t time)
{
    for (int i = 0; i < client_count; i++) {
        Client *c = &clients[i];
        if (c->state == IDLE && c->wake <= time)
            connect_client(c);
        else if (returning && is_opening(c) && time - c->began > ATTEMPT)
            come_back(c, opt.jitter);
    }
}

/* Runs until `until`, or until `ready` says so. Sends nothing that is due at `send_until` or later. */
static bool run(uint64_t until, uint64_t send_until, bool (*ready)(void))
{
    static struct epoll_event events[EVENTS];
    uint64_t next_wake = 0;
    for (uint64_t time; (time = now()) < until;) {
        if (ready != NULL && ready())
            return true;
        if (time >= next_wake) {
            next_wake = time + 10 * MS;
            if (returning)
                wake_clients(time);
            if (cut_at != NEVER)
                cut_and_return(time);
        }
        uint64_t next = send_due(send_until);
        next = next < until ? next : until;
        next = returning && next > next_wake ? next_wake : next;
        struct itimerspec when = {.it_value = {(time_t)(next / SECOND), (long)(next % SECOND)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            Client *c = events[i].data.ptr;
            if (c == NULL)
                continue; /* the timer: set again above */
            if (c->fd < 0)
                continue;
            if (c->state == CONNECTING && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
                watch(c, EPOLL_CTL_MOD, false);
                connected(c);
                continue;
            }
            if (events[i].events & EPOLLOUT && c->out_length) {
                ssize_t n = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL);
                if (n > 0) {
                    c->out_length -= (size_t)n;
                    memmove(c->out, c->out + n, c->out_length);
                }
            }
            if (c->wants_out && c->out_length == 0)
                watch(c, EPOLL_CTL_MOD, false);
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
                read_client(c);
        }
    }
    return ready != NULL && ready();
}

static Group *add_group(int kind, int count, double rate, int port)
{
    Group *g = &groups[group_count++];
    *g = (Group){.kind = kind, .first = client_count, .count = count, .port = port,
                 .interval = rate > 0 ? (uint64_t)(SECOND / rate) : 0};
    client_count += count;
    return g;
}

static void make_clients(void)
{
    clients = allocate((size_t)client_count, sizeof *clients);
    for (Group *g = groups; g < groups + group_count; g++)
        for (int i = g->first; i < g->first + g->count; i++)
            clients[i] = (Client){.fd = -1, .number = i, .kind = g->kind, .group = g, .wake = NEVER};
}

static int wanted;
static bool opened_enough(void) { return joined_count >= wanted || opening < AT_ONCE; }
static bool all_open(void) { return joined_count == client_count; }
static bool all_served(void) { return served >= (uint64_t)opt.connections && joined_count == client_count; }

static void open_clients(void)
{
    uint64_t deadline = now() + (uint64_t)(opt.timeout * SECOND);
    for (int i = 0; i < client_count; i++) {
        wanted = i;
        if (opening >= AT_ONCE && !run(deadline, 0, opened_enough))
            break;
        connect_client(&clients[i]);
    }
    if (!run(deadline, 0, all_open))
        fail("only %d of %d clients are connected after %g s", joined_count, client_count, opt.timeout);
}

static double load_begun, server_begun;
static uint64_t wall_begun;

static void begin_measuring(void)
{
    load_begun = own_cpu();
    server_begun = opt.watch ? tree_cpu(opt.watch) : 0;
    wall_begun = now();
}

static void print_begin(void)
{
    double seconds = (double)(now() - wall_begun) / SECOND;
    printf("{\"errors\": 0, \"connections\": %d, \"seconds\": %.4f, \"load_cpu_share\": %.4f, "
           "\"server_cpu_seconds\": %.6f",
           client_count, seconds, (own_cpu() - load_begun) / seconds,
           opt.watch ? tree_cpu(opt.watch) - server_begun : 0.0);
}

/* ---- the scenes ---- */

static bool everything_came(void)
{
    for (Group *g = groups; g < groups + group_count; g++)
        if (sends(g) && g->kind != PUBLISHER && g->kind != HTTP && g->done < g->sent)
            return false;
    return true;
}

/* Sends for the warm-up and the time that is measured, then waits for the rest. */
static void run_measured(void)
{
    uint64_t begin = now() + 20 * MS, from = begin + (uint64_t)(opt.warmup * SECOND);
    uint64_t until = from + (uint64_t)(opt.duration * SECOND);
    for (Group *g = groups; g < groups + group_count; g++)
        g->begun = begin;
    measured_from = from;
    measured_until = until;
    run(from, until, NULL);
    begin_measuring();
    run(until, until, NULL);
    send_due(until); /* what was due, if this process had to wait for the processor */
}

static void drain(void)
{
    uint64_t left = 0, sent = 0;
    if (!run(now() + (uint64_t)(opt.timeout * SECOND), 0, everything_came)) {
        for (Group *g = groups; g < groups + group_count; g++)
            if (sends(g) && g->kind != PUBLISHER && g->kind != HTTP)
                left += g->sent - g->done, sent += g->sent;
        fail("%llu of %llu messages were not delivered %g s after the last one was sent",
             (unsigned long long)left, (unsigned long long)sent, opt.timeout);
    }
}

static void scene_conversation(void)
{
    Group *g = add_group(CONVERSATION, opt.connections, opt.rate, 0);
    step = allocate(most_messages, 1);
    make_clients();
    open_clients();
    run_measured();
    print_begin();
    drain();
    printf(", \"late\": %llu", (unsigned long long)late);
    print_latency("latency", &g->latency);
}

static void scene_http(void)
{
    Group *g = add_group(HTTP, opt.requests, 0, 0);
    make_clients();
    open_clients();
    for (int i = 0; i < client_count; i++) {
        clients[i].due = now();
        ask(&clients[i]);
        clients[i].waiting = 1; /* so that it asks again after a reconnect */
    }
    run_measured();
    print_begin();
    double seconds = (double)(measured_until - measured_from) / SECOND;
    printf(", \"requests_per_second\": %.3f, \"megabytes_per_second\": %.3f, \"reconnects\": %llu",
           (double)g->done / seconds, (double)bytes_read / 1e6 / seconds, (unsigned long long)reconnects);
    print_latency("latency", &g->latency);
}

static void scene_beside(void)
{
    Group *echoes = opt.echoes ? add_group(ECHO, opt.echoes, opt.echo_rate, 0) : NULL;
    Group *ticker = opt.watchers ? add_group(TICKER, opt.watchers, 0, 0) : NULL;
    Group *http = opt.requests ? add_group(HTTP, opt.requests, opt.request_rate, 0) : NULL;
    make_clients();
    open_clients();
    run_measured();
    print_begin();
    drain();
    if (ticker)
        printf(", \"ticks_per_second\": %.3f",
               (double)ticker->done / opt.watchers / ((double)(measured_until - measured_from) / SECOND));
    if (echoes)
        print_latency("echo", &echoes->latency);
    if (http) {
        if (http->latency.count * 10 < (size_t)(opt.request_rate * opt.duration) * 9)
            fail("%zu of %.0f requests were answered", http->latency.count,
                 opt.request_rate * opt.duration);
        print_latency("http", &http->latency);
    }
}

static void scene_chat(void)
{
    int members = opt.rooms * opt.members;
    if (opt.members > 64)
        refuse("--members is 64 at most");
    Group *g = add_group(CHAT, members, members, 0);
    heard_by = allocate(most_messages, sizeof *heard_by);
    make_clients();
    open_clients();
    run_measured();
    print_begin();
    drain();
    print_latency("latency", &g->latency);
}

static void scene_deploy(void)
{
    Group *leaving = add_group(RETURNING, opt.connections, 0, 0);
    Group *staying = add_group(ECHO, opt.stay, opt.echo_rate, 1);
    make_clients();
    open_clients();
    if (!run(now() + (uint64_t)(opt.timeout * SECOND), 0, all_served))
        fail("only %llu of %d clients were served before the deploy", (unsigned long long)served,
             opt.connections);
    served = 0;
    for (int i = 0; i < opt.connections; i++)
        clients[i].last = 0;
    uint64_t begin = now();
    staying->begun = begin + 20 * MS;
    uint64_t calm_end = begin + (uint64_t)(opt.warmup * SECOND);
    measured_from = begin;
    measured_until = calm_end;
    run(calm_end, NEVER, NULL);
    Samples calm = staying->latency;
    staying->latency = (Samples){0};
    leaving->port = 1;
    attempts = closed_by_server = 0;
    returning = true;
    begin_measuring();
    measured_from = calm_end;
    measured_until = NEVER;
    if (kill(-opt.kill, SIGKILL) != 0)
        refuse("--kill");
    if (!run(now() + (uint64_t)(opt.timeout * SECOND), NEVER, all_served))
        fail("only %llu of %d clients were served %g s after the deploy (%llu attempts)",
             (unsigned long long)served, opt.connections, opt.timeout, (unsigned long long)attempts);
    measured_until = now();
    print_begin();
    run(now() + (uint64_t)(opt.timeout * SECOND), measured_until, everything_came);
    if (staying->done < staying->sent)
        fail("%llu echoes of those who stayed did not come",
             (unsigned long long)(staying->sent - staying->done));
    printf(", \"attempts\": %llu, \"refused\": %llu", (unsigned long long)attempts,
           (unsigned long long)refused);
    print_latency("stayed_before", &calm);
    print_latency("stayed", &staying->latency);
}

static bool all_back(void)
{
    return joined_count == client_count;
}

static void scene_drops(void)
{
    Group *feed = add_group(FEED, opt.connections, 0, 0);
    add_group(PUBLISHER, 1, opt.rate, 0);
    make_clients();
    for (int i = 0; i < opt.connections; i++)
        clients[i].heard = allocate(most_messages / 8 + 1, 1);
    open_clients();
    run(now() + 300 * MS, 0, NULL); /* for the positions that come after a join */
    begin_measuring();
    returning = true;
    uint64_t begin = now() + 20 * MS, until = begin + (uint64_t)(opt.duration * SECOND);
    groups[1].begun = begin;
    cut_at = begin;
    cut_until = until;
    run(until, until, NULL);
    send_due(until); /* as in run_measured */
    if (!run(now() + (uint64_t)(opt.timeout * SECOND), 0, all_back))
        fail("only %d of %d clients are back %g s after the last cut", joined_count, client_count,
             opt.timeout);
    run(now() + (uint64_t)(opt.settle * SECOND), 0, NULL);
    print_begin();
    uint64_t sum = 0, least = UINT64_MAX;
    for (int i = 0; i < feed->count; i++) {
        sum += clients[i].heard_count;
        least = clients[i].heard_count < least ? clients[i].heard_count : least;
    }
    double all = (double)groups[1].sent;
    printf(", \"published\": %llu, \"delivered_percent\": %.4f, \"least_percent\": %.4f, "
           "\"duplicates\": %llu, \"disordered\": %llu, \"gaps\": %llu, \"cuts\": %llu, "
           "\"closed_by_server\": %llu, \"refused\": %llu",
           (unsigned long long)groups[1].sent, 100 * (double)sum / all / feed->count,
           100 * (double)least / all, (unsigned long long)duplicates, (unsigned long long)disordered,
           (unsigned long long)gaps, (unsigned long long)reconnects, (unsigned long long)closed_by_server,
           (unsigned long long)refused);
}

static void parse_arguments(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"scene", 1, 0, 's'}, {"path", 1, 0, 'P'}, {"connections", 1, 0, 'c'},
        {"stay", 1, 0, 'S'}, {"echoes", 1, 0, 'e'}, {"watchers", 1, 0, 'w'}, {"requests", 1, 0, 'r'},
        {"rooms", 1, 0, 'R'}, {"members", 1, 0, 'm'}, {"watch", 1, 0, 'W'}, {"kill", 1, 0, 'k'},
        {"duration", 1, 0, 'd'}, {"warmup", 1, 0, 'u'}, {"timeout", 1, 0, 't'}, {"echo-rate", 1, 0, 'E'},
        {"request-rate", 1, 0, 'q'}, {"rate", 1, 0, 'a'}, {"cut", 1, 0, 'C'}, {"cycle", 1, 0, 'y'},
        {"jitter", 1, 0, 'j'}, {"settle", 1, 0, 'T'}, {"prefix", 1, 0, 'x'}, {"socketio", 0, 0, 'o'}, {0, 0, 0, 0}};
    for (int letter; (letter = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (letter) {
        case 'p': sscanf(optarg, "%d,%d", &opt.ports[0], &opt.ports[1]); break;
        case 's': opt.scene = optarg; break;
        case 'P': opt.path = optarg; break;
        case 'c': opt.connections = atoi(optarg); break;
        case 'S': opt.stay = atoi(optarg); break;
        case 'e': opt.echoes = atoi(optarg); break;
        case 'w': opt.watchers = atoi(optarg); break;
        case 'r': opt.requests = atoi(optarg); break;
        case 'R': opt.rooms = atoi(optarg); break;
        case 'm': opt.members = atoi(optarg); break;
        case 'W': opt.watch = atoi(optarg); break;
        case 'k': opt.kill = atoi(optarg); break;
        case 'd': opt.duration = atof(optarg); break;
        case 'u': opt.warmup = atof(optarg); break;
        case 't': opt.timeout = atof(optarg); break;
        case 'E': opt.echo_rate = atof(optarg); break;
        case 'q': opt.request_rate = atof(optarg); break;
        case 'a': opt.rate = atof(optarg); break;
        case 'C': opt.cut = atof(optarg); break;
        case 'y': opt.cycle = atof(optarg); break;
        case 'j': opt.jitter = atof(optarg); break;
        case 'T': opt.settle = atof(optarg); break;
        case 'x': opt.prefix = optarg; break;
        case 'o': opt.socketio = true; break;
        default: exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*play)(void); } scenes[] = {
        {"conversation", scene_conversation}, {"http", scene_http}, {"beside", scene_beside},
        {"chat", scene_chat}, {"deploy", scene_deploy}, {"drops", scene_drops}};
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    parse_arguments(argc, argv);
    most_messages = (uint64_t)((opt.duration + opt.warmup + 2 * opt.timeout) * 20000) + 1000;
    uint8_t nonce[16], digest[20];
    char both[64];
    for (size_t i = 0; i < sizeof nonce; i++)
        nonce[i] = (uint8_t)random32();
    base64(nonce, sizeof nonce, key);
    snprintf(both, sizeof both, "%.24s" GUID, key);
    sha1((const uint8_t *)both, strlen(both), digest);
    base64(digest, sizeof digest, accept_value);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epoll_fd < 0 || timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) != 0)
        refuse("epoll");
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        if (strcmp(opt.scene, scenes[i].name) == 0) {
            scenes[i].play();
            printf("}\n");
            return 0;
        }
    }
    errno = 0;
    refuse("there is no such scene");
}

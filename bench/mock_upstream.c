/* A fast mock of an OpenAI-compatible endpoint, for measuring gateways. One thread, epoll, keep-alive, loopback only.
 *
 *   gcc -O2 -o mock_upstream mock_upstream.c
 *   ./mock_upstream PORT            (0 = any free port; prints "listening PORT" and serves until killed)
 *
 * Every POST is answered as a chat completion of 64 tokens: whole, or as server-sent events where the body holds
 * "stream":true (the usage frame only where it holds "include_usage":true). The model's name sets the pace, so that
 * it reaches us through any gateway: "mock" at once; "mock-l20" 20 ms before the first byte; "mock-g500" one token
 * each 500 us, every token a write of its own; "mock-l20-g500" both. GET answers {"requests": N}. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 64, INPUT_MAX = 1 << 20, CONNECTIONS = 4096 };

typedef struct {
    int fd, next_token, usage, stream;
    uint64_t due;    /* ns; 0 = nothing waits */
    uint64_t gap_ns;
    size_t used;     /* bytes in `input` */
    size_t out_sent; /* of `out` */
    size_t out_size;
    char *input;
    char *out; /* what the socket has not taken yet */
} Connection;

static Connection *connections[CONNECTIONS];
static int timers, epoll_fd;
static unsigned long requests;

static char whole[16384], burst[2][65536];
static size_t whole_size, burst_size[2];
static char frames[TOKENS + 2][512]; /* role, tokens, finish */
static const char *const usage_json = "{\"prompt_tokens\":96,\"completion_tokens\":64,\"total_tokens\":160}";
static const char *const stream_head =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char *const words[8] = {"The", " river", " lifts", " the", " wheel", " and", " the", " wheel lifts water."};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t chunked(char *to, const char *frame) {
    size_t size = strlen(frame), head = (size_t)sprintf(to, "%zx\r\n", size);
    memcpy(to + head, frame, size);
    memcpy(to + head + size, "\r\n", 2);
    return head + size + 2;
}

static void event(char *to, const char *choices, const char *usage) {
    sprintf(to,
            "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
            "\"model\":\"mock\",\"system_fingerprint\":\"fp_bench\",\"choices\":[%s],\"usage\":%s}\n\n",
            choices, usage);
}

/* The last chunks of a stream: usage (where asked for), [DONE], the end of the chunked body. */
static size_t tail(char *to, int usage) {
    char frame[512];
    size_t size = 0;
    if (usage) {
        event(frame, "", usage_json);
        size += chunked(to, frame);
    }
    size += chunked(to + size, "data: [DONE]\n\n");
    memcpy(to + size, "0\r\n\r\n", 5);
    return size + 5;
}

static void prepare(void) {
    char choice[256], text[2048] = "", body[4096];
    for (int i = 0; i < TOKENS + 2; i++) {
        if (i == 0)
            sprintf(choice, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}");
        else if (i <= TOKENS)
            sprintf(choice, "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":null}", words[(i - 1) & 7]);
        else
            sprintf(choice, "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}");
        event(frames[i], choice, "null");
        if (i && i <= TOKENS) strcat(text, words[(i - 1) & 7]);
    }
    int size = sprintf(body,
                       "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"mock\","
                       "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},"
                       "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":%s,\"system_fingerprint\":\"fp_bench\"}",
                       text, usage_json);
    whole_size = (size_t)sprintf(whole, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", size, body);
    for (int usage = 0; usage < 2; usage++) {
        char *to = burst[usage];
        to += sprintf(to, "%s", stream_head);
        for (int i = 0; i < TOKENS + 2; i++) to += chunked(to, frames[i]);
        to += tail(to, usage);
        burst_size[usage] = (size_t)(to - burst[usage]);
    }
}

static void drop(Connection *c) {
    if (c->due) timers--;
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->input);
    free(c->out);
    free(c);
}

static void watch(Connection *c, int op, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = c->fd};
    epoll_ctl(epoll_fd, op, c->fd, &e);
}

static void put(Connection *c, const char *data, size_t size) {
    if (c->out_size == 0) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) sent = 0; /* a lost peer is noticed by the next read */
        data += sent;
        size -= (size_t)sent;
        if (size == 0) return;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    c->out = realloc(c->out, c->out_size + size);
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
}

static void flush_out(Connection *c) {
    ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
    if (sent > 0) c->out_sent += (size_t)sent;
    if (c->out_sent == c->out_size) {
        c->out_sent = c->out_size = 0;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void wait_until(Connection *c, uint64_t due) {
    if (!c->due) timers++;
    c->due = due;
}

/* Send what is due: everything at once, or one token and the time of the next. */
static void advance(Connection *c, uint64_t now) {
    char chunk[1024];
    if (c->due) timers--;
    c->due = 0;
    if (!c->stream) {
        put(c, whole, whole_size);
    } else if (!c->gap_ns) {
        put(c, burst[c->usage], burst_size[c->usage]);
    } else {
        if (c->next_token == 0) put(c, stream_head, strlen(stream_head));
        put(c, chunk, chunked(chunk, frames[c->next_token++]));
        if (c->next_token < TOKENS + 2)
            wait_until(c, now + c->gap_ns);
        else
            put(c, chunk, tail(chunk, c->usage));
    }
}

static uint64_t pace(const char *name, const char *end, char letter) {
    for (const char *p = name; p + 2 < end && *p != '"'; p++)
        if (p[0] == '-' && p[1] == letter && p[2] >= '0' && p[2] <= '9') return strtoull(p + 2, NULL, 10);
    return 0;
}

static void begin(Connection *c, const char *body, size_t size) {
    const char *end = body + size, *model = memmem(body, size, "\"model\":", 8);
    uint64_t latency = 0;
    requests++;
    c->gap_ns = 0;
    c->next_token = 0;
    if (model) {
        model = memchr(model + 8, '"', (size_t)(end - model - 8));
        if (model) latency = pace(model + 1, end, 'l') * 1000000u, c->gap_ns = pace(model + 1, end, 'g') * 1000u;
    }
    c->stream = memmem(body, size, "\"stream\":true", 13) != NULL;
    c->usage = memmem(body, size, "\"include_usage\":true", 20) != NULL;
    uint64_t now = now_ns();
    if (latency)
        wait_until(c, now + latency);
    else
        advance(c, now);
}

/* Take one whole request from the input; 1 if there was one, -1 if it cannot be served. */
static int take(Connection *c) {
    char *end = memmem(c->input, c->used, "\r\n\r\n", 4), answer[256];
    if (!end) return 0;
    size_t head = (size_t)(end - c->input) + 4, length = 0;
    *end = 0;
    char *field = strcasestr(c->input, "content-length:");
    if (field) length = strtoul(field + 15, NULL, 10);
    *end = '\r';
    if (length > INPUT_MAX - head) return -1;
    if (c->used < head + length) return 0;
    if (c->input[0] == 'G') {
        int n = sprintf(answer, "{\"requests\":%lu}", requests);
        char line[512];
        put(c, line, (size_t)sprintf(line, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", n, answer));
    } else {
        begin(c, c->input + head, length);
    }
    c->used -= head + length;
    memmove(c->input, c->input + head + length, c->used);
    return 1;
}

static void readable(Connection *c) {
    ssize_t got = recv(c->fd, c->input + c->used, INPUT_MAX - c->used, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(c);
        return;
    }
    if (got > 0) c->used += (size_t)got;
    int taken = 0;
    while (!c->due && (taken = take(c)) == 1) continue;
    if (taken < 0) drop(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = connections[fd] = calloc(1, sizeof *c);
        c->fd = fd;
        c->input = malloc(INPUT_MAX);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* Serve what is due; ns until the next, or -1. */
static int64_t tick(void) {
    if (!timers) return -1;
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (int fd = 0; fd < CONNECTIONS; fd++) {
        Connection *c = connections[fd];
        if (!c || !c->due) continue;
        if (c->due <= now) advance(c, now);
        if (c->due && c->due < next) next = c->due;
    }
    return next == UINT64_MAX ? -1 : next > now ? (int64_t)(next - now) : 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0"))};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) {
        perror("mock_upstream");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    prepare();
    epoll_fd = epoll_create1(0);
    struct epoll_event first = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &first);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int64_t wait = tick();
        struct timespec limit = {wait / 1000000000, wait % 1000000000};
        int n = epoll_pwait2(epoll_fd, events, 256, wait < 0 ? NULL : &limit, NULL);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT && connections[fd]) flush_out(connections[fd]);
            if (events[i].events & ~(uint32_t)EPOLLOUT && connections[fd]) readable(connections[fd]);
        }
    }
}

/* A fast mock of an OpenAI-compatible endpoint, for measuring gateways. One thread, epoll, keep-alive, loopback only.
 *
 *   gcc -O2 -o mock_upstream mock_upstream.c
 *   ./mock_upstream PORT            (0 = any free port; prints "listening PORT" and serves until killed)
 *
 * Every POST is answered as a chat completion of 64 tokens: whole, or as server-sent events where the body holds
 * "stream": true (the usage frame only where it holds "include_usage": true). The model's name says how, so that it
 * reaches us through any gateway: "mock" at once; "mock-l20" 20 ms before the first byte; "mock-g500" one token each
 * 500 us, every token a write of its own; "mock-t200" 200 tokens; or all of them: "mock-l20-g500-t200".
 *
 * Every token holds its number, as three letters behind a "~" (letters: no check of a gateway takes them for somebody's
 * data), so that the other end sees what was lost, doubled or reordered.
 *
 * GET answers {"requests": N, "cancelled": [ns, ...]}: the CLOCK_MONOTONIC times at which peers closed a connection whose
 * answer was under way, the latest 256. */
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 64, TOKENS_MAX = 26 * 26 * 26, INPUT_MAX = 64 << 20, HEAD_MAX = 1 << 16, CONNECTIONS = 8192, KEPT = 256, FRAME = 512 };

typedef struct {
    int fd, next_token, tokens, usage, stream, answering;
    size_t at;                    /* its place in the heap, from 1; 0 = it waits for nothing */
    uint64_t due, gap_ns;
    size_t used, room;            /* bytes in `input`, and its size */
    size_t head, length;          /* of the request that is being read; 0 = its head is not whole yet */
    size_t out_sent, out_size;    /* of `out` */
    char *input, *out;            /* `out`: what the socket has not taken yet */
} Connection;

typedef struct {
    int tokens;
    size_t size;
    char *data;
} Answer;

static Connection *connections[CONNECTIONS], *heap[CONNECTIONS + 1];
static size_t waiting;
static int epoll_fd;
static unsigned long requests, cancels;
static uint64_t cancelled[KEPT];
static Answer whole, burst[2]; /* the last that was asked for of each kind */

static const char *const stream_head =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char *const words[8] = {" The", " river", " lifts", " the", " wheel", " and", " the", " garden"};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A heap of the connections that wait, the soonest first. */

static void settle_at(size_t i, Connection *c) {
    heap[i] = c;
    c->at = i;
}

static void sift(size_t i, Connection *c) {
    for (; i > 1 && heap[i / 2]->due > c->due; i /= 2) settle_at(i, heap[i / 2]);
    for (size_t child; (child = 2 * i) <= waiting; i = child) {
        if (child < waiting && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        settle_at(i, heap[child]);
    }
    settle_at(i, c);
}

static void wait_until(Connection *c, uint64_t due) {
    c->due = due;
    sift(c->at ? c->at : ++waiting, c);
}

static void wait_no_more(Connection *c) {
    size_t at = c->at;
    if (!at) return;
    c->at = 0;
    Connection *last = heap[waiting--];
    if (last != c) sift(at, last);
}

/* What is said. */

static int token(char *to, int number) {
    int i = number - 1;
    return sprintf(to, "%s~%c%c%c", words[i & 7], 'a' + i / 676 % 26, 'a' + i / 26 % 26, 'a' + i % 26);
}

static size_t chunked(char *to, const char *frame, size_t size) {
    size_t head = (size_t)sprintf(to, "%zx\r\n", size);
    memcpy(to + head, frame, size);
    memcpy(to + head + size, "\r\n", 2);
    return head + size + 2;
}

static size_t event(char *to, const char *choices, const char *usage) {
    char frame[FRAME];
    int size = sprintf(frame,
                       "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                       "\"model\":\"mock\",\"system_fingerprint\":\"fp_bench\",\"choices\":[%s],\"usage\":%s}\n\n",
                       choices, usage);
    return chunked(to, frame, (size_t)size);
}

static void usage_of(char *to, int tokens) {
    sprintf(to, "{\"prompt_tokens\":96,\"completion_tokens\":%d,\"total_tokens\":%d}", tokens, 96 + tokens);
}

/* Frame `i` of a stream: the role, the tokens, the reason of the end. */
static size_t frame(char *to, int i, int tokens) {
    char choice[256], text[32] = "";
    if (i && i <= tokens) token(text, i);
    if (i == 0)
        sprintf(choice, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}");
    else if (i <= tokens)
        sprintf(choice, "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":null}", text);
    else
        sprintf(choice, "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}");
    return event(to, choice, "null");
}

/* The last chunks of a stream: usage (where asked for), [DONE], the end of the chunked body. */
static size_t tail(char *to, int usage, int tokens) {
    char told[128];
    size_t size = 0;
    if (usage) {
        usage_of(told, tokens);
        size += event(to, "", told);
    }
    size += chunked(to + size, "data: [DONE]\n\n", 14);
    memcpy(to + size, "0\r\n\r\n", 5);
    return size + 5;
}

static const Answer *whole_of(int tokens) {
    if (whole.tokens != tokens) {
        char *text = malloc((size_t)tokens * 16 + 1), *body = malloc((size_t)tokens * 16 + 1024), told[128], *to = text;
        *to = 0;
        for (int i = 1; i <= tokens; i++) to += token(to, i);
        usage_of(told, tokens);
        int size = sprintf(body,
                           "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"mock\","
                           "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},"
                           "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":%s,\"system_fingerprint\":\"fp_bench\"}",
                           text, told);
        whole.data = realloc(whole.data, (size_t)size + 256);
        whole.size = (size_t)sprintf(
            whole.data, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", size, body);
        whole.tokens = tokens;
        free(text);
        free(body);
    }
    return &whole;
}

static const Answer *burst_of(int tokens, int usage) {
    Answer *a = &burst[usage];
    if (a->tokens != tokens) {
        a->data = realloc(a->data, (size_t)(tokens + 6) * FRAME);
        a->size = (size_t)sprintf(a->data, "%s", stream_head);
        for (int i = 0; i < tokens + 2; i++) a->size += frame(a->data + a->size, i, tokens);
        a->size += tail(a->data + a->size, usage, tokens);
        a->tokens = tokens;
    }
    return a;
}

/* Connections. */

static void drop(Connection *c) {
    wait_no_more(c);
    if (c->answering || c->out_size) cancelled[cancels++ % KEPT] = now_ns();
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

/* Send what is due: everything at once, or one token and the time of the next. */
static void advance(Connection *c) {
    char chunk[4 * FRAME];
    wait_no_more(c);
    if (!c->stream || !c->gap_ns) {
        const Answer *a = c->stream ? burst_of(c->tokens, c->usage) : whole_of(c->tokens);
        c->answering = 0;
        put(c, a->data, a->size);
        return;
    }
    size_t size = 0;
    if (c->next_token == 0) size = (size_t)sprintf(chunk, "%s", stream_head);
    size += frame(chunk + size, c->next_token++, c->tokens);
    if (c->next_token == c->tokens + 2) {
        size += tail(chunk + size, c->usage, c->tokens);
        c->answering = 0;
    } else {
        wait_until(c, c->due + c->gap_ns); /* from when it was due, so that a stream keeps its pace */
    }
    put(c, chunk, size);
}

static uint64_t asked(const char *name, const char *end, char letter) {
    for (const char *p = name; p + 2 < end && *p != '"'; p++)
        if (p[0] == '-' && p[1] == letter && p[2] >= '0' && p[2] <= '9') return strtoull(p + 2, NULL, 10);
    return 0;
}

/* The value of a field of a JSON body, or NULL; `name` comes with its quotes. */
static const char *field(const char *body, const char *end, const char *name) {
    size_t size = strlen(name);
    for (const char *p = body; (p = memmem(p, (size_t)(end - p), name, size));) {
        for (p += size; p < end && (*p == ' ' || *p == '\n'); p++) continue;
        if (p < end && *p == ':') {
            for (p++; p < end && (*p == ' ' || *p == '\n'); p++) continue;
            return p < end ? p : NULL;
        }
    }
    return NULL;
}

static int is_true(const char *body, const char *end, const char *name) {
    const char *value = field(body, end, name);
    return value && end - value >= 4 && !memcmp(value, "true", 4);
}

static void begin(Connection *c, const char *body, size_t size) {
    const char *end = body + size, *model = field(body, end, "\"model\"");
    uint64_t latency = 0, tokens = 0;
    requests++;
    c->gap_ns = 0;
    c->next_token = 0;
    c->answering = 1;
    if (model && *model == '"') {
        latency = asked(model + 1, end, 'l') * 1000000u;
        c->gap_ns = asked(model + 1, end, 'g') * 1000u;
        tokens = asked(model + 1, end, 't');
    }
    c->tokens = tokens ? (int)(tokens < TOKENS_MAX ? tokens : TOKENS_MAX) : TOKENS;
    c->stream = is_true(body, end, "\"stream\"");
    c->usage = c->stream && is_true(body, end, "\"include_usage\"");
    c->due = now_ns() + latency;
    if (latency)
        wait_until(c, c->due);
    else
        advance(c);
}

static void tell(Connection *c) {
    char body[KEPT * 24 + 128], answer[sizeof body + 256];
    int size = sprintf(body, "{\"requests\":%lu,\"cancelled\":[", requests);
    unsigned long first = cancels > KEPT ? cancels - KEPT : 0;
    for (unsigned long i = first; i < cancels; i++)
        size += sprintf(body + size, "%s%llu", i > first ? "," : "", (unsigned long long)cancelled[i % KEPT]);
    size += sprintf(body + size, "]}");
    put(c, answer,
        (size_t)sprintf(answer, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", size, body));
}

/* Take one whole request from the input; 1 if there was one, -1 if it cannot be served. */
static int take(Connection *c) {
    if (!c->head) {
        char *end = memmem(c->input, c->used, "\r\n\r\n", 4);
        if (!end) return c->used > HEAD_MAX ? -1 : 0;
        *end = 0;
        const char *length = strcasestr(c->input, "\r\ncontent-length:");
        if (strcasestr(c->input, "\r\ntransfer-encoding:")) return -1; /* no gateway that we know of sends a chunked request */
        c->length = length ? strtoul(length + 17, NULL, 10) : 0;
        int continued = strcasestr(c->input, "\r\nexpect:") != NULL;
        *end = '\r';
        c->head = (size_t)(end - c->input) + 4;
        if (c->length > INPUT_MAX - c->head) return -1;
        if (continued) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
    size_t size = c->head + c->length;
    if (c->used < size) return 0;
    size_t head = c->head;
    c->head = 0;
    if (c->input[0] == 'G')
        tell(c);
    else
        begin(c, c->input + head, c->length);
    c->used -= size;
    memmove(c->input, c->input + size, c->used);
    return 1;
}

static void readable(Connection *c) {
    size_t wanted = c->head ? c->head + c->length : 0;
    if (c->room < wanted || c->room - c->used < 4096) {
        c->room = wanted > 2 * c->room ? wanted : 2 * c->room;
        c->input = realloc(c->input, c->room);
    }
    ssize_t got = recv(c->fd, c->input + c->used, c->room - c->used, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(c);
        return;
    }
    if (got > 0) c->used += (size_t)got;
    int taken = 0;
    while (!c->answering && (taken = take(c)) == 1) continue;
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
        c->input = malloc(c->room = 16384);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* Serve what is due; ns until the next, or -1. */
static int64_t tick(void) {
    uint64_t now = now_ns();
    while (waiting && heap[1]->due <= now) advance(heap[1]);
    return waiting ? (int64_t)(heap[1]->due - now) : -1;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0"))};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) {
        perror("mock_upstream");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    prctl(PR_SET_TIMERSLACK, 1);
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

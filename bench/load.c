/* An HTTP load generator that knows what an answer of a chat endpoint is. One thread, epoll, loopback only.
 *
 *   gcc -O2 -o load load.c -lm
 *   ./load -p PORT -f REQUEST_FILE -c CONNECTIONS [-n REQUESTS] [-d SECONDS] [-r RATE] [-w RAMP_MS] [-t TOKENS] [-s SEED] [-o SAMPLES_FILE]
 *
 * REQUEST_FILE holds one whole HTTP request. In it "##########" becomes a number that no other request of the run has,
 * and "@@@@@@@@@@" the connection's number.
 *
 * Closed loop: each connection sends its next request when the last is answered, until REQUESTS are sent or SECONDS are
 * over; the connections begin spread over RAMP_MS. Open loop (-r): requests fall due as a Poisson process of RATE a
 * second, whatever the answers do; one that finds no free connection waits, and its latency counts from when it was due.
 *
 * A stream is good when its status is 200, its tokens 1..TOKENS (-t; see mock_upstream.c) came all and in order, and
 * [DONE] came last. How the tokens are cut into frames does not matter: their text is put together and read.
 *
 * SAMPLES_FILE gets two little-endian u64 for each good answer: ns to the last byte, and ns to the first byte of the
 * body or, of a stream, to the first token. Stdout: one JSON object. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
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

enum { READ = 1 << 18, STALL_MS = 30000, BUCKETS = 64 * 32, QUEUE = 1 << 20, SHOWN = 240 };
enum { HEAD, SIZED, TO_CLOSE, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct {
    int fd, number, busy, state, streamed, status, closing, wants_out;
    size_t sent;             /* bytes of the request that are on their way */
    size_t used, room;       /* bytes in `head`, which holds the head and, of a stream, the frame that is not whole yet */
    uint64_t left;           /* of the body or the chunk */
    uint64_t began, first, last_token;
    int next_token, mark, mark_value, lost, disordered, done, after_done; /* of a stream */
    char *request, *head;
    char shown[SHOWN + 1];
    size_t shown_size;
} Connection;

static char *request;
static size_t request_size, marks[2][16];
static int mark_count[2];
static long to_send = INT64_MAX, sent, good, bad_status, bad_stream, broken, in_flight, overdue_most;
static long tokens_seen, tokens_lost, tokens_disordered, not_done, frames, gap_count[BUCKETS];
static int tokens_wanted;
static uint64_t *samples, gap_most;
static size_t samples_room;
static unsigned long long serial;
static struct sockaddr_in address;
static int epoll_fd, over;
static char first_bad[SHOWN + 64];
static double rate;
static Connection **idle_ones;
static int idle_count;
static uint64_t *due_queue;
static long due_head, due_tail;
static char buffer[READ];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Times between tokens go into buckets of a 64th of an octave: exact to 1.1 %. */

static void count_gap(uint64_t ns) {
    if (ns > gap_most) gap_most = ns;
    int octave = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
    int bucket = octave ? octave * 64 + (int)((ns >> (octave - 1)) & 63) : (int)ns;
    gap_count[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

static double gap_of(int bucket) {
    int octave = bucket / 64;
    return octave ? (double)((uint64_t)(64 + bucket % 64) << (octave - 1)) : bucket;
}

static double gap_percentile(double percent) {
    long all = 0, below = 0;
    for (int i = 0; i < BUCKETS; i++) all += gap_count[i];
    for (int i = 0; i < BUCKETS; i++)
        if ((below += gap_count[i]) >= all * percent / 100 && below) return gap_of(i);
    return 0;
}

/* Sending. */

static void watch(Connection *c, int op, int out) {
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, op, c->fd, &e);
    c->wants_out = out;
}

static void open_connection(Connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("load: connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(c, EPOLL_CTL_ADD, 0);
}

static void write_number(Connection *c, int kind, unsigned long long value) {
    char digits[24];
    sprintf(digits, "%010llu", value % 10000000000ull);
    for (int i = 0; i < mark_count[kind]; i++) memcpy(c->request + marks[kind][i], digits, 10);
}

static void send_more(Connection *c) {
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, c->request + c->sent, request_size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            if (!c->wants_out) watch(c, EPOLL_CTL_MOD, 1);
            return;
        }
        if (n <= 0) break; /* the read that follows reports the loss */
        c->sent += (size_t)n;
    }
    if (c->wants_out) watch(c, EPOLL_CTL_MOD, 0);
}

static void send_at(Connection *c, uint64_t began) {
    sent++;
    in_flight++;
    write_number(c, 0, ++serial);
    c->busy = 1;
    c->state = HEAD;
    c->used = c->sent = c->shown_size = 0;
    c->streamed = c->closing = c->lost = c->disordered = c->done = c->after_done = c->mark = 0;
    c->next_token = 1;
    c->first = c->last_token = 0;
    c->began = began;
    send_more(c);
}

static void next(Connection *c) {
    c->busy = 0;
    if (over || sent >= to_send) return;
    if (rate == 0)
        send_at(c, now_ns());
    else if (due_head != due_tail)
        send_at(c, due_queue[due_head++ % QUEUE]);
    else
        idle_ones[idle_count++] = c;
}

/* Reading. */

static void sample(uint64_t last, uint64_t first) {
    if ((size_t)good == samples_room) samples = realloc(samples, 16 * (samples_room = samples_room ? 2 * samples_room : 4096));
    samples[2 * good] = last;
    samples[2 * good + 1] = first;
    good++;
}

static void remember(const Connection *c) {
    if (*first_bad) return;
    int at = sprintf(first_bad, "%d ", c->status);
    for (size_t i = 0; i < c->shown_size; i++)
        first_bad[at++] = c->shown[i] < ' ' || c->shown[i] == '"' || c->shown[i] == '\\' || c->shown[i] > '~' ? ' ' : c->shown[i];
    first_bad[at] = 0;
}

static void ended(Connection *c) {
    uint64_t now = now_ns();
    in_flight--;
    if (c->streamed) {
        if (tokens_wanted && c->next_token <= tokens_wanted) c->lost += tokens_wanted + 1 - c->next_token;
        tokens_lost += c->lost;
        tokens_disordered += c->disordered;
        not_done += c->done != 1 || c->after_done;
    }
    if (c->status != 200) {
        bad_status++;
        remember(c);
    } else if (c->streamed && (c->done != 1 || c->after_done || c->lost || c->disordered)) {
        bad_stream++;
        remember(c);
    } else {
        sample(now - c->began, (c->first ? c->first : now) - c->began);
    }
    if (c->closing) {
        close(c->fd);
        open_connection(c);
    }
    next(c);
}

static void seen(Connection *c, int number, uint64_t now) {
    tokens_seen++;
    if (!c->first) c->first = now;
    if (c->last_token) count_gap(now - c->last_token);
    c->last_token = now;
    if (number >= c->next_token) {
        c->lost += number - c->next_token;
        c->next_token = number + 1;
    } else {
        c->disordered++; /* or doubled */
    }
}

/* The text of a frame's content: a "~" and three letters are a token's number, wherever frames are cut. */
static void read_text(Connection *c, const char *p, const char *end, uint64_t now) {
    for (; p < end; p++) {
        if (c->mark && *p >= 'a' && *p <= 'z') {
            c->mark_value = c->mark_value * 26 + (*p - 'a');
            if (++c->mark == 4) {
                c->mark = 0;
                seen(c, c->mark_value + 1, now);
            }
        } else if (*p == '~') {
            c->mark = 1;
            c->mark_value = 0;
        } else if (c->mark) {
            c->mark = 0;
        }
    }
}

static void read_frame(Connection *c, const char *frame, size_t size, uint64_t now) {
    const char *end = frame + size, *p = frame;
    if (size >= 5 && !memcmp(frame, "data:", 5)) {
        if (memmem(frame, size < 24 ? size : 24, "[DONE]", 6)) {
            c->done++;
            return;
        }
        frames++;
        c->after_done += c->done;
    }
    while ((p = memmem(p, (size_t)(end - p), "\"content\":", 10))) {
        for (p += 10; p < end && *p == ' '; p++) continue;
        if (p == end || *p != '"') continue;
        const char *text = ++p;
        while (p < end && *p != '"') p += *p == '\\' ? 2 : 1;
        if (p > end) p = end;
        read_text(c, text, p, now);
    }
}

/* Bytes of the body; of a stream, every frame that is whole. */
static void read_body(Connection *c, const char *data, size_t size, uint64_t now) {
    if (c->shown_size < SHOWN) {
        size_t n = size < SHOWN - c->shown_size ? size : SHOWN - c->shown_size;
        memcpy(c->shown + c->shown_size, data, n);
        c->shown_size += n;
    }
    if (!c->streamed) {
        if (!c->first) c->first = now;
        return;
    }
    if (c->room < c->used + size) c->head = realloc(c->head, c->room = 2 * (c->used + size));
    memcpy(c->head + c->used, data, size);
    c->used += size;
    char *from = c->head, *stop = c->head + c->used, *end;
    while ((end = memmem(from, (size_t)(stop - from), "\n\n", 2))) {
        read_frame(c, from, (size_t)(end - from), now);
        from = end + 2;
    }
    c->used = (size_t)(stop - from);
    memmove(c->head, from, c->used);
}

/* The head, once it is whole; how many bytes of `data` belong to it. */
static size_t read_head(Connection *c, const char *data, size_t size) {
    size_t before = c->used;
    if (c->room < before + size + 1) c->head = realloc(c->head, c->room = 2 * (before + size + 1));
    memcpy(c->head + before, data, size);
    c->used += size;
    char *end = memmem(c->head, c->used, "\r\n\r\n", 4);
    if (!end) return size;
    size_t taken = (size_t)(end - c->head) + 4 - before;
    end[2] = 0;
    const char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->status = atoi(c->head + 9);
    if (c->status / 100 == 1) { /* 100 Continue */
        c->used = 0;
        return taken;
    }
    c->streamed = strcasestr(c->head, "text/event-stream") != NULL;
    c->closing = strcasestr(c->head, "\r\nconnection: close") != NULL || !memcmp(c->head, "HTTP/1.0", 8);
    c->left = length ? strtoul(length + 17, NULL, 10) : 0;
    c->state = strcasestr(c->head, "\r\ntransfer-encoding: chunked") ? CHUNK_SIZE : length ? SIZED : TO_CLOSE;
    c->used = 0;
    return taken;
}

/* Take in what arrived; 1 when the answer is whole. */
static int take(Connection *c, const char *p, const char *end, uint64_t now) {
    while (p < end) {
        size_t size = (size_t)(end - p);
        if (c->state == HEAD) {
            p += read_head(c, p, size);
            if (c->state == SIZED && c->left == 0) return 1;
        } else if (c->state == SIZED || c->state == CHUNK_DATA) {
            if (size > c->left) size = c->left;
            read_body(c, p, size, now);
            p += size;
            c->left -= size;
            if (c->left == 0 && c->state == SIZED) return 1;
            if (c->left == 0) c->state = CHUNK_END;
        } else if (c->state == TO_CLOSE) {
            read_body(c, p, size, now);
            p = end;
        } else { /* lines of the chunked form: `left` gathers the size, TRAILER counts what its line holds */
            char b = *p++;
            if (c->state == CHUNK_SIZE) {
                int digit = b >= '0' && b <= '9' ? b - '0' : (b | 32) >= 'a' && (b | 32) <= 'f' ? (b | 32) - 'a' + 10 : -1;
                if (digit >= 0) c->left = c->left * 16 + (uint64_t)digit;
                if (b == '\n') c->state = c->left ? CHUNK_DATA : TRAILER;
            } else if (c->state == CHUNK_END) {
                if (b == '\n') c->state = CHUNK_SIZE;
            } else if (b == '\n') {
                if (c->left == 0) return 1;
                c->left = 0;
            } else if (b != '\r') {
                c->left++;
            }
        }
    }
    return 0;
}

static void readable(Connection *c) {
    ssize_t got = recv(c->fd, buffer, READ, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->busy && c->state == TO_CLOSE) {
            c->closing = 1;
            ended(c);
            return;
        }
        close(c->fd);
        open_connection(c);
        if (c->busy) {
            broken++;
            in_flight--;
            next(c);
        }
        return;
    }
    if (c->busy && take(c, buffer, buffer + got, now_ns())) ended(c);
}

/* Setting up. */

static void read_request(const char *path) {
    const char *const kinds[2] = {"##########", "@@@@@@@@@@"};
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(1);
    }
    request_size = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_size);
    if (fread(request, 1, request_size, file) != request_size) exit(1);
    fclose(file);
    for (int kind = 0; kind < 2; kind++)
        for (char *p = request; mark_count[kind] < 16 && (p = memmem(p, request_size - (size_t)(p - request), kinds[kind], 10)); p += 10)
            marks[kind][mark_count[kind]++] = (size_t)(p - request);
}

static double exponential(void) { return -log(1 - drand48()) / rate * 1e9; }

static void fall_due(uint64_t due) {
    if (idle_count) {
        send_at(idle_ones[--idle_count], due);
    } else if (due_tail - due_head < QUEUE) {
        due_queue[due_tail++ % QUEUE] = due;
        if (due_tail - due_head > overdue_most) overdue_most = due_tail - due_head;
    }
}

static void tell(double seconds, long stalled) {
    printf("{\"sent\": %ld, \"ok\": %ld, \"bad_status\": %ld, \"bad_stream\": %ld, \"broken\": %ld, \"stalled\": %ld, "
           "\"frames\": %ld, \"tokens\": %ld, \"tokens_lost\": %ld, \"tokens_disordered\": %ld, \"not_done\": %ld, "
           "\"queued_most\": %ld, \"gap_p50_ms\": %.4f, \"gap_p99_ms\": %.4f, \"gap_max_ms\": %.4f, "
           "\"first_bad\": \"%s\", \"seconds\": %.6f}\n",
           sent, good, bad_status, bad_stream, broken, stalled, frames, tokens_seen, tokens_lost, tokens_disordered, not_done,
           overdue_most, gap_percentile(50) / 1e6, gap_percentile(99) / 1e6, (double)gap_most / 1e6, first_bad, seconds);
}

int main(int argc, char **argv) {
    const char *out_path = NULL, *request_path = NULL;
    int option, count = 1, ramp_ms = 0, port = 0;
    double seconds = 1e9;
    while ((option = getopt(argc, argv, "p:f:c:n:d:r:w:t:s:o:")) != -1) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'f': request_path = optarg; break;
        case 'c': count = atoi(optarg); break;
        case 'n': to_send = atol(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'w': ramp_ms = atoi(optarg); break;
        case 't': tokens_wanted = atoi(optarg); break;
        case 's': srand48(atol(optarg)); break;
        case 'o': out_path = optarg; break;
        default: return 2;
        }
    }
    if (!port || !request_path || (to_send == INT64_MAX && seconds == 1e9)) {
        fprintf(stderr, "usage: load -p PORT -f REQUEST_FILE -c CONNECTIONS (-n REQUESTS | -d SECONDS) [-r RATE] [-w RAMP_MS] "
                        "[-t TOKENS] [-s SEED] [-o SAMPLES_FILE]\n");
        return 2;
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    read_request(request_path);
    serial = now_ns() / 1000;
    prctl(PR_SET_TIMERSLACK, 1);
    epoll_fd = epoll_create1(0);
    idle_ones = calloc((size_t)count, sizeof *idle_ones);
    if (rate > 0) due_queue = malloc(QUEUE * sizeof *due_queue);
    Connection *all = calloc((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        Connection *c = &all[i];
        *c = (Connection){.number = i, .request = malloc(request_size), .head = malloc(8192), .room = 8192};
        memcpy(c->request, request, request_size);
        write_number(c, 1, (unsigned long long)i);
        open_connection(c);
        if (rate > 0) idle_ones[idle_count++] = c;
    }
    uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9), due = began + (uint64_t)(rate > 0 ? exponential() : 0), heard = began;
    int started = 0;
    long stalled = 0;
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_ns(), wake = end;
        over = over || now >= end;
        if (over && rate > 0) due_head = due_tail; /* what was still waiting is told by queued_most, not sent */
        if (!over && rate > 0) {
            while (due <= now && due < end) {
                fall_due(due);
                due += (uint64_t)exponential();
            }
            wake = due < end ? due : end;
        } else if (!over && started < count) {
            while (started < count && (wake = began + (uint64_t)ramp_ms * 1000000u * (uint64_t)started / (uint64_t)count) <= now) next(&all[started++]);
            if (started == count) wake = end;
        }
        if (!in_flight && (over || sent >= to_send)) break;
        if (over || wake > now + 1000000000u) wake = now + 1000000000u;
        struct timespec limit = {(time_t)((wake > now ? wake - now : 0) / 1000000000u), (long)((wake > now ? wake - now : 0) % 1000000000u)};
        int n = epoll_pwait2(epoll_fd, events, 256, &limit, NULL);
        if (n > 0) heard = now_ns();
        if (in_flight && now_ns() - heard > (uint64_t)STALL_MS * 1000000u) {
            stalled = in_flight;
            break;
        }
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) send_more(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT) readable(c);
        }
    }
    double took = (double)(now_ns() - began) / 1e9;
    if (out_path) {
        FILE *out = fopen(out_path, "wb");
        if (!out || fwrite(samples, 16, (size_t)good, out) != (size_t)good || fclose(out)) {
            perror(out_path);
            return 1;
        }
    }
    tell(took, stalled);
    return 0;
}

/* A closed-loop HTTP load generator that knows what an answer of a chat endpoint is. One thread, epoll, loopback only.
 *
 *   gcc -O2 -o load load.c
 *   ./load PORT REQUEST_FILE REQUESTS CONNECTIONS SAMPLES_FILE
 *
 * REQUEST_FILE holds one whole HTTP request. In it "##########" becomes a number that no other request of the run has,
 * and "@@@@@@@@@@" the connection's number. Each connection sends its next request as soon as the last is answered,
 * until REQUESTS have been sent. SAMPLES_FILE gets two little-endian u64 for each good answer: ns to the last byte and
 * ns to the first byte of the body. Good is status 200 and, for a stream, a "[DONE]". Stdout: one JSON object. */
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

enum { ANSWER_MAX = 1 << 20, STALL_MS = 20000 };

typedef struct {
    int fd, number, busy, streamed, status;
    size_t used, head, body; /* bytes of the answer; of its head; content-length */
    uint64_t began, first;
    char *request, *answer;
} Connection;

static char *request;
static size_t request_size;
static long to_send, sent, good, failed_status, failed_stream, lost, in_flight, frames;
static uint64_t *samples;
static unsigned long long serial;
static struct sockaddr_in address;
static int epoll_fd;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fill(char *text, const char *mark, unsigned long long value) {
    char digits[16], *at = text;
    sprintf(digits, "%010llu", value % 10000000000ull);
    while ((at = memmem(at, request_size - (size_t)(at - text), mark, 10))) memcpy(at, digits, 10);
}

static void open_connection(Connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("load: connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void send_next(Connection *c) {
    c->busy = 0;
    if (sent == to_send) return;
    sent++;
    in_flight++;
    memcpy(c->request, request, request_size);
    fill(c->request, "##########", ++serial);
    fill(c->request, "@@@@@@@@@@", (unsigned long long)c->number);
    c->busy = 1;
    c->used = c->head = c->body = 0;
    c->streamed = 0;
    c->first = 0;
    c->began = now_ns();
    for (size_t done = 0; done < request_size;) { /* a blocking socket: requests are small */
        ssize_t n = send(c->fd, c->request + done, request_size - done, MSG_NOSIGNAL);
        if (n <= 0) break; /* the read that follows reports the loss */
        done += (size_t)n;
    }
}

static void ended(Connection *c, uint64_t now) {
    in_flight--;
    if (c->status != 200) {
        failed_status++;
    } else if (c->streamed && !memmem(c->answer + c->head, c->used - c->head, "data: [DONE]", 12)) {
        failed_stream++;
    } else {
        samples[2 * good] = now - c->began;
        samples[2 * good + 1] = c->first - c->began;
        good++;
        if (c->streamed)
            for (char *p = c->answer + c->head; (p = memmem(p, c->used - (size_t)(p - c->answer), "data: {", 7)); p += 7) frames++;
    }
    send_next(c);
}

/* Whether the answer is whole; reads the head once. A chunked body ends in its empty chunk. */
static int whole(Connection *c) {
    if (!c->head) {
        char *end = memmem(c->answer, c->used, "\r\n\r\n", 4);
        if (!end) return 0;
        *end = 0;
        char *length = strcasestr(c->answer, "\r\ncontent-length:");
        c->status = atoi(c->answer + 9);
        c->streamed = strcasestr(c->answer, "text/event-stream") != NULL;
        c->body = length ? strtoul(length + 17, NULL, 10) : SIZE_MAX;
        *end = '\r';
        c->head = (size_t)(end - c->answer) + 4;
    }
    if (!c->first && c->used > c->head) c->first = now_ns();
    if (c->body != SIZE_MAX) return c->used - c->head >= c->body;
    return c->used - c->head >= 5 && !memcmp(c->answer + c->used - 5, "0\r\n\r\n", 5);
}

static void readable(Connection *c) {
    ssize_t got = recv(c->fd, c->answer + c->used, ANSWER_MAX - c->used, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close(c->fd);
        if (c->busy) {
            lost++;
            in_flight--;
        }
        open_connection(c);
        send_next(c);
        return;
    }
    c->used += (size_t)got;
    if (c->busy && whole(c)) ended(c, now_ns());
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    request = malloc(1 << 20);
    request_size = fread(request, 1, 1 << 20, file);
    fclose(file);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: load PORT REQUEST_FILE REQUESTS CONNECTIONS SAMPLES_FILE\n");
        return 2;
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    read_request(argv[2]);
    to_send = atol(argv[3]);
    int count = atoi(argv[4]);
    samples = malloc((size_t)to_send * 16 + 16);
    serial = now_ns() / 1000;
    epoll_fd = epoll_create1(0);
    Connection *all = calloc((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        all[i] = (Connection){.number = i, .request = malloc(request_size), .answer = malloc(ANSWER_MAX)};
        open_connection(&all[i]);
    }
    uint64_t began = now_ns();
    for (int i = 0; i < count; i++) send_next(&all[i]);
    struct epoll_event events[256];
    long stalled = 0;
    while (in_flight) {
        int n = epoll_wait(epoll_fd, events, 256, STALL_MS);
        if (n == 0) {
            stalled = in_flight;
            break;
        }
        for (int i = 0; i < n; i++) readable(events[i].data.ptr);
    }
    double seconds = (double)(now_ns() - began) / 1e9;
    FILE *out = fopen(argv[5], "wb");
    if (!out || fwrite(samples, 16, (size_t)good, out) != (size_t)good || fclose(out)) {
        perror(argv[5]);
        return 1;
    }
    printf("{\"sent\": %ld, \"ok\": %ld, \"bad_status\": %ld, \"bad_stream\": %ld, \"lost\": %ld, \"stalled\": %ld, "
           "\"frames\": %ld, \"seconds\": %.6f}\n",
           sent, good, failed_status, failed_stream, lost, stalled, frames, seconds);
    return 0;
}

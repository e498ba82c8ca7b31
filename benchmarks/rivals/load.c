/* The load: the same for ours and for the rival, and never the bottleneck.
 *
 *   load SOCKET REQUEST REPLY CONNECTIONS DEPTH TOTAL
 *
 * REQUEST and REPLY are files with the bytes of one request and of its one
 * reply.  Each connection keeps DEPTH requests on the way: it sends a batch of
 * DEPTH, reads all the replies, compares every byte, and sends the next, until
 * TOTAL requests were answered on all of them.  Prints
 *
 *   SECONDS P50_NS P99_NS
 *
 * where the percentiles are of one batch's round trip (with DEPTH 1, of one
 * request).  Any byte that differs is an error.
 */
#include "common.h"

#include <sys/epoll.h>

enum { SAMPLES_MAX = 1 << 21, BATCH_MAX = 64 * 1024 };

struct connection {
    int fd;
    size_t received; /* bytes of the replies to the present batch */
    uint64_t begin;
};

static unsigned char *batch, *expected, *scratch;
static size_t batch_size, expected_size;
static uint64_t *samples;
static size_t sample_count;

static unsigned char *repeated(const unsigned char *piece, size_t size, size_t count)
{
    unsigned char *all = malloc(size * count);
    if (!all)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        memcpy(all + i * size, piece, size);
    return all;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* A batch is at most BATCH_MAX bytes: the socket always has room for all of it,
 * since the replies to the one before have been read. */
static void begin_batch(struct connection *c)
{
    c->received = 0;
    c->begin = now();
    write_all(c->fd, batch, batch_size);
}

/* Reads what there is; 1: the batch is answered. */
static int receive(struct connection *c, int flags)
{
    for (;;) {
        size_t wanted = expected_size - c->received;
        ssize_t got = recv(c->fd, scratch, wanted, flags);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return 0;
        if (got <= 0)
            die("the server went away");
        if (memcmp(scratch, expected + c->received, (size_t)got)) {
            fprintf(stderr, "a reply differs from what was expected\n");
            exit(1);
        }
        c->received += (size_t)got;
        if (c->received < expected_size)
            continue;
        if (sample_count < SAMPLES_MAX)
            samples[sample_count++] = now() - c->begin;
        return 1;
    }
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: load SOCKET REQUEST REPLY CONNECTIONS DEPTH TOTAL\n");
        return 2;
    }
    size_t count = strtoul(argv[4], NULL, 10), depth = strtoul(argv[5], NULL, 10);
    size_t total = strtoul(argv[6], NULL, 10);
    size_t request_size, reply_size;
    unsigned char *request = read_whole(argv[2], &request_size);
    unsigned char *reply = read_whole(argv[3], &reply_size);
    batch_size = request_size * depth;
    expected_size = reply_size * depth;
    if (batch_size > BATCH_MAX || expected_size > BATCH_MAX) {
        fprintf(stderr, "a batch is at most %d bytes\n", BATCH_MAX);
        return 2;
    }
    batch = repeated(request, request_size, depth);
    expected = repeated(reply, reply_size, depth);
    scratch = malloc(expected_size);
    samples = malloc(SAMPLES_MAX * sizeof *samples);
    struct connection *all = calloc(count, sizeof *all);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!scratch || !samples || !all || epoll < 0)
        die("setup");
    for (size_t i = 0; i < count; i++) {
        all[i].fd = unix_connect(argv[1]);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (count > 1 && epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event) < 0)
            die("epoll_ctl");
    }
    size_t batches_left = (total + depth - 1) / depth, running = 0;
    uint64_t begin = now();
    if (count == 1) {
        /* One connection: blocking calls, as the simplest client would. */
        for (; batches_left > 0; batches_left--) {
            begin_batch(&all[0]);
            receive(&all[0], 0);
        }
    } else {
        for (size_t i = 0; i < count && batches_left > 0; i++, batches_left--, running++)
            begin_batch(&all[i]);
        while (running > 0) {
            struct epoll_event events[64];
            int ready = epoll_wait(epoll, events, 64, -1);
            if (ready < 0 && errno != EINTR)
                die("epoll_wait");
            for (int i = 0; i < ready; i++) {
                struct connection *c = events[i].data.ptr;
                if (!receive(c, MSG_DONTWAIT))
                    continue;
                running--;
                if (batches_left > 0) {
                    batches_left--;
                    running++;
                    begin_batch(c);
                }
            }
        }
    }
    double seconds = (double)(now() - begin) / 1e9;
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("%.9f %llu %llu\n", seconds, (unsigned long long)samples[sample_count / 2],
           (unsigned long long)samples[sample_count * 99 / 100]);
    return 0;
}

/* The rival of the agent's ping: an epoll server that answers the same frames.
 *
 *   ping_server SOCKET VERSION
 *
 * It reads what there is, answers every whole ping frame of version 1 in order
 * and sends the replies of one read with one write.  A frame that it does not
 * know ends the connection.  Everything is bounded: a connection has one read
 * buffer and one write buffer, and is not read while its replies wait.
 */
#include "common.h"

#include <stdbool.h>
#include <sys/epoll.h>

enum { READ_SIZE = 64 * 1024, PING = 0x0001, PONG = 0x1001, MESSAGE_MAX = 110 };

struct connection {
    int fd;
    bool waits_to_write;
    size_t in_size, out_size, out_sent;
    unsigned char in[READ_SIZE];
    /* The shortest ping has 8 bytes, and its reply 8 + 2 + 4 + 2 + version:
     * with the version bounded, four times the read buffer is always enough. */
    unsigned char out[4 * READ_SIZE];
};

static int epoll;
static unsigned char version[32];
static size_t version_size;

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c);
}

/* The reply of one ping with the message at `text`; returns its size. */
static size_t pong(unsigned char *out, const unsigned char *text, size_t size)
{
    size_t greeting = size ? 6 + size : 4;
    size_t payload = 2 + greeting + 2 + version_size;
    store_u32(out, (uint32_t)(4 + payload));
    store_u32(out + 4, PONG);
    unsigned char *at = out + 8;
    *at++ = 0x0a;
    *at++ = (unsigned char)greeting;
    memcpy(at, "pong: ", 6);
    memcpy(at + 6, text, size);
    at += greeting;
    *at++ = 0x12;
    *at++ = (unsigned char)version_size;
    memcpy(at, version, version_size);
    return 8 + payload;
}

/* Answers all whole frames of the read buffer; false: not a ping. */
static bool answer(struct connection *c)
{
    size_t at = 0;
    while (c->in_size - at >= 8) {
        const unsigned char *frame = c->in + at;
        uint32_t length = load_u32(frame);
        if (length < 4 || length > 4 + 2 + MESSAGE_MAX || load_u32(frame + 4) != PING)
            return false;
        if (c->in_size - at < 4 + (size_t)length)
            break;
        size_t payload = length - 4, text = 0;
        if (payload) { /* one field: message */
            if (payload < 2 || frame[8] != 0x0a || frame[9] != payload - 2)
                return false;
            text = payload - 2;
        }
        c->out_size += pong(c->out + c->out_size, frame + 10, text);
        at += 4 + (size_t)length;
    }
    memmove(c->in, c->in + at, c->in_size - at);
    c->in_size -= at;
    return true;
}

/* Sends what waits; false: the connection is gone. */
static bool flush(struct connection *c)
{
    while (c->out_sent < c->out_size) {
        ssize_t done = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno != EAGAIN)
            return false;
        if (done < 0)
            break;
        c->out_sent += (size_t)done;
    }
    bool waits = c->out_sent < c->out_size;
    if (!waits)
        c->out_size = c->out_sent = 0;
    if (waits != c->waits_to_write) {
        struct epoll_event event = {.events = waits ? EPOLLOUT : EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event) < 0)
            die("epoll_ctl");
        c->waits_to_write = waits;
    }
    return true;
}

static bool serve(struct connection *c)
{
    if (!c->waits_to_write) {
        ssize_t got = recv(c->fd, c->in + c->in_size, READ_SIZE - c->in_size, 0);
        if (got < 0)
            return errno == EAGAIN || errno == EINTR;
        if (got == 0)
            return false;
        c->in_size += (size_t)got;
        if (!answer(c))
            return false;
    }
    return flush(c);
}

int main(int argc, char **argv)
{
    if (argc != 3 || strlen(argv[2]) > sizeof version) {
        fprintf(stderr, "usage: ping_server SOCKET VERSION\n");
        return 2;
    }
    version_size = strlen(argv[2]);
    memcpy(version, argv[2], version_size);
    int listener = unix_listen(argv[1], SOCK_NONBLOCK);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) {
                if (!serve(c))
                    close_connection(c);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (fd < 0)
                continue;
            c = calloc(1, sizeof *c);
            if (!c)
                die("calloc");
            c->fd = fd;
            struct epoll_event mine = {.events = EPOLLIN, .data.ptr = c};
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &mine) < 0)
                die("epoll_ctl");
        }
    }
}

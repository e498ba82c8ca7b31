/* The reader of exec output: sends one request, takes everything, checks it.
 *
 *   drain SOCKET REQUEST SIZE frames|raw
 *
 * REQUEST is a file with the bytes of the request.  `frames`: the replies are
 * ExecOutput frames of version 1, of which the last one has `done`; `raw`: bytes
 * until the end of the connection.  The output must be what `produce SIZE`
 * writes: each 4096 bytes begin with their own offset.  Prints
 *
 *   SECONDS FIRST_BYTE_NS
 *
 * both from the moment before the request is sent.
 */
#include "common.h"

#include <stdbool.h>

enum { BUFFER = 256 * 1024, STAMP = 4096, EXEC_OUTPUT = 0x1020 };

static uint64_t taken;         /* bytes of output so far */
static unsigned char stamp[8]; /* the stamp that is under way, split over two pieces or not */

static void fail(const char *what)
{
    fprintf(stderr, "%s after %llu bytes of output\n", what, (unsigned long long)taken);
    exit(1);
}

static void take(const unsigned char *data, size_t size)
{
    uint64_t end = taken + size, page = taken / STAMP * STAMP;
    for (; page < end; page += STAMP) {
        uint64_t from = page > taken ? page : taken, to = page + 8 < end ? page + 8 : end;
        if (from >= to)
            continue;
        memcpy(stamp + (from - page), data + (from - taken), to - from);
        if (to == page + 8) {
            uint64_t value;
            memcpy(&value, stamp, 8);
            if (value != page)
                fail("the output is not what the command wrote");
        }
    }
    taken = end;
}

/* The varint at `at`; its size, 0 where `size` bytes do not hold all of it. */
static size_t varint(const unsigned char *at, size_t size, uint64_t *value)
{
    *value = 0;
    for (size_t i = 0; i < size; i++) {
        *value |= (uint64_t)(at[i] & 0x7f) << (7 * i);
        if (!(at[i] & 0x80))
            return i + 1;
        if (i == 9)
            fail("a varint is too long");
    }
    return 0;
}

/* The stream of frames as a state machine, so that no frame is ever assembled:
 * the reader is not to be what limits the rate. */
static unsigned char head[64]; /* the frame's length and type, then each field but the data */
static size_t head_size;
static uint64_t frame_left = 8; /* bytes of the frame, or of its length and type, to come */
static uint64_t data_left;      /* bytes of the field `data` to come */
static bool in_fields, done;

/* One more byte of a field that is not the data's content. */
static void field_byte(void)
{
    uint64_t tag, value;
    size_t tag_size = varint(head, head_size, &tag);
    size_t value_size = tag_size ? varint(head + tag_size, head_size - tag_size, &value) : 0;
    if (!value_size)
        return;
    if (tag == (2 << 3 | 2)) {
        if (value > frame_left)
            fail("data longer than its frame");
        data_left = value;
        head_size = 0;
    } else if ((tag & 7) == 2) { /* `stream` */
        if (head_size - tag_size - value_size == value)
            head_size = 0;
    } else if ((tag & 7) == 0) {
        if (tag == (4 << 3 | 0))
            done = value != 0;
        head_size = 0;
    } else {
        fail("a field of an unexpected wire type");
    }
}

/* Takes the bytes of one read; the frame that ends with `done` must be the last. */
static void take_frames(const unsigned char *at, size_t size)
{
    const unsigned char *end = at + size;
    while (at < end) {
        if (data_left) {
            size_t here = (uint64_t)(end - at) < data_left ? (size_t)(end - at) : (size_t)data_left;
            take(at, here);
            at += here;
            data_left -= here;
            frame_left -= here;
        } else {
            if (head_size == sizeof head)
                fail("a field other than the data is too long");
            head[head_size++] = *at++;
            frame_left--;
            if (in_fields)
                field_byte();
        }
        if (frame_left)
            continue;
        if (in_fields) {
            if (head_size)
                fail("a frame ends inside a field");
            if (done && at < end)
                fail("bytes after the last frame");
            in_fields = false;
            frame_left = 8;
        } else {
            uint32_t length = load_u32(head);
            if (length <= 4 || load_u32(head + 4) != EXEC_OUTPUT)
                fail("a reply that is not ExecOutput, or an empty one");
            in_fields = true;
            frame_left = length - 4;
            head_size = 0;
        }
    }
}

static void drain_frames(int fd, unsigned char *buffer, uint64_t begin, uint64_t *first)
{
    while (!done || in_fields) {
        ssize_t got = read(fd, buffer, BUFFER);
        if (got <= 0)
            fail("the connection ended");
        take_frames(buffer, (size_t)got);
        if (taken && !*first)
            *first = now() - begin;
    }
}

static void drain_raw(int fd, unsigned char *buffer, uint64_t begin, uint64_t *first)
{
    ssize_t got;
    while ((got = read(fd, buffer, BUFFER)) > 0) {
        if (!*first)
            *first = now() - begin;
        take(buffer, (size_t)got);
    }
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: drain SOCKET REQUEST SIZE frames|raw\n");
        return 2;
    }
    size_t size;
    unsigned char *request = read_whole(argv[2], &size), *buffer = malloc(BUFFER);
    uint64_t first = 0, wanted = strtoull(argv[3], NULL, 10);
    int fd = unix_connect(argv[1]);
    if (!buffer)
        die("malloc");
    uint64_t begin = now();
    write_all(fd, request, size);
    if (strcmp(argv[4], "frames") == 0)
        drain_frames(fd, buffer, begin, &first);
    else
        drain_raw(fd, buffer, begin, &first);
    if (taken != wanted)
        fail("the output has another size");
    printf("%.9f %llu\n", (double)(now() - begin) / 1e9, (unsigned long long)first);
    return 0;
}

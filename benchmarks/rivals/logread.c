/* The client of a log: sends one request, takes LogEntry frames of version 1, checks each.
 *
 *   logread SOCKET REQUEST FIRST LINES
 *
 * The lines must be those of `logwrite`, FIRST and the ones after it, in order.
 * Prints SECONDS FROM_FIRST: until the last one, from the moment before the
 * request was sent, and from the first frame on.
 */
#include "common.h"

#include <stdbool.h>

enum { BUFFER = 1 << 20, LOG_ENTRY = 0x1021 };

static uint32_t u32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void check(const unsigned char *frame, long number)
{
    /* 0a 06 "stdout" 12 64 (100 bytes: ten digits, x...) 18 timestamp */
    static const unsigned char head[] = {0, 0, 0x10, 0x21, 0x0a, 6, 's', 't', 'd', 'o', 'u', 't', 0x12, 100};
    unsigned char digits[10];
    for (long rest = number, digit = 9; digit >= 0; digit--, rest /= 10)
        digits[digit] = (unsigned char)('0' + rest % 10);
    if (memcmp(frame + 4, head, sizeof head) || memcmp(frame + 18, digits, 10)) {
        fprintf(stderr, "not line %ld: %.100s\n", number, frame + 18);
        exit(1);
    }
    for (int i = 28; i < 118; i++)
        if (frame[i] != 'x') {
            fprintf(stderr, "line %ld is not what was written\n", number);
            exit(1);
        }
}

int main(int argc, char **argv)
{
    static unsigned char buffer[BUFFER], request[4096];
    if (argc != 5) {
        fprintf(stderr, "usage: logread SOCKET REQUEST FIRST LINES\n");
        return 2;
    }
    FILE *file = fopen(argv[2], "rb");
    if (!file)
        die(argv[2]);
    size_t size = fread(request, 1, sizeof request, file), have = 0;
    long number = atol(argv[3]), end = number + atol(argv[4]);
    int fd = unix_connect(argv[1]);
    uint64_t begin = now(), first = 0;
    write_all(fd, request, size);
    while (number < end) {
        ssize_t got = read(fd, buffer + have, sizeof buffer - have);
        if (got <= 0) {
            fprintf(stderr, "the agent's reply ended before line %ld\n", number);
            return 1;
        }
        if (!first)
            first = now();
        have += (size_t)got;
        size_t at = 0;
        while (number < end && have - at >= 8 && have - at >= 4 + (size_t)u32(buffer + at)) {
            if (u32(buffer + at) < 14 + 100) {
                fprintf(stderr, "a frame of %u bytes of type %x before line %ld\n", u32(buffer + at),
                        u32(buffer + at + 4), number);
                return 1;
            }
            check(buffer + at, number++);
            at += 4 + u32(buffer + at);
        }
        memmove(buffer, buffer + at, have -= at);
    }
    printf("%.9f %.9f\n", (double)(now() - begin) / 1e9, (double)(now() - first) / 1e9);
    return 0;
}

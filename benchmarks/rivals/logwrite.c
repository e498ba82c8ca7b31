/* Appends CRI lines to a log, as fast as the file system takes them.
 *
 *   logwrite PATH LINES LINES_A_WRITE
 *
 * A line's text is 100 bytes and begins with its number, ten digits.
 */
#include "common.h"

#include <fcntl.h>

enum { PREFIX = 40, TEXT = 100, LINE = PREFIX + TEXT + 1 };

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: logwrite PATH LINES LINES_A_WRITE\n");
        return 2;
    }
    long lines = atol(argv[2]), batch = atol(argv[3]);
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    char *block = malloc((size_t)batch * LINE);
    if (fd < 0 || !block)
        die(argv[1]);
    for (long i = 0; i < batch; i++) {
        memcpy(block + i * LINE, "2026-11-23T17:45:12.255151664Z stdout F ", PREFIX);
        memset(block + i * LINE + PREFIX, 'x', TEXT);
        block[(i + 1) * LINE - 1] = '\n';
    }
    for (long number = 0; number < lines;) {
        long count = lines - number < batch ? lines - number : batch;
        for (long i = 0; i < count; i++, number++) {
            char *at = block + i * LINE + PREFIX + 10;
            for (long rest = number, digit = 0; digit < 10; digit++, rest /= 10)
                *--at = (char)('0' + rest % 10);
        }
        write_all(fd, block, (size_t)count * LINE);
    }
    return 0;
}

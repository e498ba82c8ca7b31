/* A command that writes SIZE bytes to its standard output, as fast as the pipe takes them.
 *
 *   produce SIZE
 *
 * Each 4096 bytes begin with their own offset (8 bytes, this machine's order),
 * so that a reader can tell cheaply that nothing is lost, doubled or moved.
 */
#include "common.h"

enum { BLOCK = 64 * 1024, STAMP = 4096 };

int main(int argc, char **argv)
{
    static unsigned char block[BLOCK];
    if (argc != 2) {
        fprintf(stderr, "usage: produce SIZE\n");
        return 2;
    }
    uint64_t size = strtoull(argv[1], NULL, 10);
    for (uint64_t offset = 0; offset < size; offset += BLOCK) {
        for (size_t at = 0; at < BLOCK; at += STAMP) {
            uint64_t here = offset + at;
            memcpy(block + at, &here, sizeof here);
        }
        write_all(1, block, size - offset < BLOCK ? size - offset : BLOCK);
    }
    return 0;
}

/* The rival of exec: posix_spawn of a command with two pipes, read to their end, and wait.
 *
 *   spawn COUNT COMMAND [ARG...]
 *
 * Prints the median nanoseconds of one.
 */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void run(char **argv)
{
    int out[2], err[2], status;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
        die("pipe2");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    errno = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);
    if (errno)
        die(argv[0]);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    close(err[1]);
    struct pollfd open_pipes[2] = {{.fd = out[0], .events = POLLIN}, {.fd = err[0], .events = POLLIN}};
    for (int left = 2; left > 0;) {
        if (poll(open_pipes, 2, -1) < 0)
            die("poll");
        for (int i = 0; i < 2; i++) {
            char buffer[65536];
            if (!open_pipes[i].revents)
                continue;
            if (read(open_pipes[i].fd, buffer, sizeof buffer) > 0)
                continue;
            close(open_pipes[i].fd);
            open_pipes[i].fd = -1;
            left--;
        }
    }
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "%s failed\n", argv[0]);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    size_t count = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
    if (count < 1) {
        fprintf(stderr, "usage: spawn COUNT COMMAND [ARG...]\n");
        return 2;
    }
    uint64_t *samples = calloc(count, sizeof *samples);
    if (!samples)
        die("calloc");
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = now();
        run(argv + 2);
        samples[i] = now() - begin;
    }
    qsort(samples, count, sizeof *samples, by_value);
    printf("%llu\n", (unsigned long long)samples[count / 2]);
    return 0;
}

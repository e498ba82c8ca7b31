/* The rival of streamed exec: runs a command and relays its output, read and write.
 *
 *   relay SOCKET BUFFER PIPE COMMAND [ARG...]
 *
 * Takes one connection after the other.  Whatever bytes come first are the
 * request: the command is spawned with a pipe (of PIPE bytes, 0: as it is) as
 * its output, which is written to the connection as it comes, with no frames
 * around it; the end of the connection is the end of the output.
 */
#include "common.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void relay(int peer, size_t size, int pipe_size, unsigned char *buffer, char **argv)
{
    int out[2], status;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    if (read(peer, buffer, size) <= 0)
        return;
    if (pipe2(out, O_CLOEXEC) < 0 || (pipe_size && fcntl(out[1], F_SETPIPE_SZ, pipe_size) < 0))
        die("pipe2");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    errno = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);
    if (errno)
        die(argv[0]);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    ssize_t got;
    while ((got = read(out[0], buffer, size)) > 0)
        write_all(peer, buffer, (size_t)got);
    close(out[0]);
    if (waitpid(pid, &status, 0) != pid || status != 0)
        die("the command failed");
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: relay SOCKET BUFFER PIPE COMMAND [ARG...]\n");
        return 2;
    }
    size_t size = strtoul(argv[2], NULL, 10);
    unsigned char *buffer = malloc(size);
    int listener = unix_listen(argv[1], 0);
    if (!buffer)
        die("malloc");
    for (;;) {
        int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (peer < 0)
            die("accept");
        relay(peer, size, atoi(argv[3]), buffer, argv + 4);
        close(peer);
    }
}

/* What the containers of the stress tests run: numbered lines, and evidence of them.
 *
 *   writer EVIDENCE NAME LINES PAUSE_US EXIT_CODE [hold] [stubborn] [brood]
 *
 * Writes LINES lines to standard output, each fourth to standard error instead,
 * PAUSE_US apart.  With `hold` it then waits for SIGTERM.  LINES 0: for ever.
 * SIGTERM ends it between two lines, with EXIT_CODE; `stubborn` ignores it.
 * `brood` leaves behind a child in a session of its own, which holds the output.
 *
 * A line is `NAME RUN N` and a filling that depends on N; RUN is the boot time
 * clock at the start, so each start of a container has its own.  Lines are
 * shorter than PIPE_BUF: one write takes all of a line or nothing.
 *
 * The evidence is a small file EVIDENCE/NAME.RUN, mapped into memory, so that it
 * says what happened even where SIGKILL was the end: before a line is written
 * `intended` of its stream grows, and after it `written` does.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

struct evidence { /* evidence.py reads this */
    uint64_t magic;
    uint64_t run;
    int64_t pid;
    uint64_t intended[2]; /* per stream: standard output, standard error */
    uint64_t written[2];
    int64_t exit_code; /* -1: has not come to its end by itself */
    uint64_t exit_time;
    int64_t brood; /* the pid of the child left behind */
};

static volatile sig_atomic_t asked_to_stop;
static volatile struct evidence *evidence;

static void on_term(int signal)
{
    (void)signal;
    asked_to_stop = 1;
}

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void open_evidence(const char *directory, const char *name)
{
    char hidden[512], path[512];
    uint64_t run = clock_ns();
    snprintf(path, sizeof path, "%s/%s.%llu", directory, name, (unsigned long long)run);
    snprintf(hidden, sizeof hidden, "%s/.%s.%llu", directory, name, (unsigned long long)run);
    int fd = open(hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 || ftruncate(fd, sizeof *evidence) < 0)
        _exit(120);
    evidence = mmap(NULL, sizeof *evidence, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (evidence == MAP_FAILED)
        _exit(121);
    close(fd);
    evidence->run = run;
    evidence->pid = getpid();
    evidence->exit_code = -1;
    evidence->magic = 0x4152434254455354u;
    /* It appears whole or not at all. */
    if (rename(hidden, path) < 0)
        _exit(122);
}

static void write_line(const char *name, int stream, uint64_t number)
{
    char line[1024];
    int size = snprintf(line, sizeof line, "%s %llu %llu ", name, (unsigned long long)evidence->run,
                        (unsigned long long)number);
    int filling = (int)(number * 2654435761u % 389);
    for (int i = 0; i < filling; i++)
        line[size++] = (char)('a' + (number + (uint64_t)i) % 26);
    line[size++] = '\n';
    evidence->intended[stream]++;
    /* An interrupted write of so few bytes has written nothing. */
    ssize_t done;
    do
        done = write(1 + stream, line, (size_t)size);
    while (done < 0 && errno == EINTR);
    if (done != size)
        _exit(123);
    evidence->written[stream]++;
}

static void leave_a_child(void)
{
    pid_t child = fork();
    if (child < 0)
        _exit(124);
    if (child > 0) {
        evidence->brood = child;
        return;
    }
    setsid();
    signal(SIGTERM, SIG_IGN);
    prctl(PR_SET_NAME, "brood");
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: writer EVIDENCE NAME LINES PAUSE_US EXIT_CODE [hold] [stubborn] [brood]\n");
        return 2;
    }
    int hold = 0, stubborn = 0, brood = 0;
    for (int i = 6; i < argc; i++) {
        hold |= !strcmp(argv[i], "hold");
        stubborn |= !strcmp(argv[i], "stubborn");
        brood |= !strcmp(argv[i], "brood");
    }
    uint64_t lines = strtoull(argv[3], NULL, 10);
    long pause_us = strtol(argv[4], NULL, 10);
    int code = atoi(argv[5]);
    struct sigaction action = {.sa_handler = stubborn ? SIG_IGN : on_term};
    sigaction(SIGTERM, &action, NULL);
    open_evidence(argv[1], argv[2]);
    if (brood)
        leave_a_child();
    struct timespec nap = {pause_us / 1000000, pause_us % 1000000 * 1000};
    uint64_t counts[2] = {0, 0};
    for (uint64_t i = 0; (lines == 0 || i < lines) && !asked_to_stop; i++) {
        int stream = i % 4 == 3;
        write_line(argv[2], stream, counts[stream]++);
        if (pause_us > 0)
            nanosleep(&nap, NULL);
    }
    while (hold && !asked_to_stop) {
        /* Short naps: a SIGTERM between the test and the nap is not missed for long. */
        struct timespec moment = {0, 20000000};
        nanosleep(&moment, NULL);
    }
    evidence->exit_time = clock_ns();
    evidence->exit_code = code;
    _exit(code);
}

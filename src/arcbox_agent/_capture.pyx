# cython: cdivision=True
"""The pump: what containers write, from their FIFOs into CRI logs.  Linux only.

    FIFO --splice--> spool (tmpfs) --lines, with the time--> log --rename--> log.1 ...

A killed agent loses no byte and doubles none, because each step leaves its own
trace: the spool's size counts what was taken from the FIFO (splice moves bytes
and counts them in one), and the log itself counts what was written of it.

Spool: a header, then what was taken from the FIFO and may not be in the log yet.

    0        8       16        24      32          40          48     56      64
    | magic  | inode | offset  | skip  | lost bytes| lost lines| open | cut   | bytes ...
               `-- the mark: --'  `-- so many of the bytes are accounted for before the mark

After a crash, what the log has of this stream behind the mark, counted in bytes
of output, is where the spool's bytes go on.  The spool is emptied in three
steps, each of which reads right when the next one was never made: the mark is
set to here with skip = all; the bytes are cut off; skip = 0.

The clock is read here, once a batch: passing it in from Python would mean
holding the interpreter's lock for every batch, and a busy event loop would then
hold up containers.
"""

from libc.errno cimport EAGAIN, EINTR, EIO, ENOENT, ENOMEM, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove, memset, strerror
from libc.stdio cimport snprintf
from arcbox_agent._lines cimport (
    LINE_WINDOW, STAMP_LENGTH, STDERR, STDOUT, Line, Minute, format_stamp, parse_line,
)

import os
cimport cython

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <time.h>
    #include <unistd.h>

    static int64_t arcbox_clock(clockid_t id) {
        struct timespec t;
        clock_gettime(id, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static int64_t arcbox_realtime(void) { return arcbox_clock(CLOCK_REALTIME); }
    static int64_t arcbox_monotonic(void) { return arcbox_clock(CLOCK_MONOTONIC); }

    static void arcbox_pause_us(long us) {
        struct timespec t = {0, us * 1000};
        nanosleep(&t, NULL);
    }
    static int arcbox_open_log(const char *path, int truncate) {
        return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW
                          | (truncate ? O_TRUNC : 0), 0600);
    }
    /* 0: a regular file. */
    static int arcbox_stat(int fd, const char *path, uint64_t *inode, int64_t *size) {
        struct stat s;
        if ((path ? stat(path, &s) : fstat(fd, &s)) != 0) return -errno;
        if (!S_ISREG(s.st_mode)) return -EISDIR;
        *inode = s.st_ino;
        *size = s.st_size;
        return 0;
    }
    static ssize_t arcbox_splice(int from, int to, int64_t at, size_t n) {
        loff_t offset = at;
        return splice(from, NULL, to, &offset, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    }
    static int arcbox_watch(int epoll, int op, int fd, void *token, int edge) {
        struct epoll_event e = {.events = EPOLLIN | (edge ? EPOLLET : 0), .data = {.ptr = token}};
        return epoll_ctl(epoll, op, fd, &e) == 0 ? 0 : -errno;
    }
    static void *arcbox_token(struct epoll_event *e, int i) { return e[i].data.ptr; }
    static int arcbox_waiting(int fd) {
        int n = 0;
        return ioctl(fd, FIONREAD, &n) == 0 ? n : 0;
    }
    """
    cdef struct epoll_event:
        pass
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC, EFD_CLOEXEC, EFD_NONBLOCK
    int epoll_create1(int flags)
    int epoll_wait(int fd, epoll_event* events, int count, int timeout) nogil
    int eventfd(unsigned int value, int flags)
    int close(int fd) nogil
    int rename(const char* a, const char* b) nogil
    int unlink(const char* path) nogil
    int ftruncate(int fd, int64_t size) nogil
    ssize_t read(int fd, void* to, size_t n) nogil
    ssize_t write(int fd, const void* data, size_t n) nogil
    ssize_t pread(int fd, void* to, size_t n, int64_t at) nogil
    ssize_t pwrite(int fd, const void* data, size_t n, int64_t at) nogil
    int64_t arcbox_realtime() nogil
    int64_t arcbox_monotonic() nogil
    void arcbox_pause_us(long us) nogil
    int arcbox_open_log(const char* path, int truncate) nogil
    int arcbox_stat(int fd, const char* path, uint64_t* inode, int64_t* size) nogil
    ssize_t arcbox_splice(int source, int to, int64_t at, size_t n) nogil
    int arcbox_watch(int epoll, int op, int fd, void* token, bint edge) nogil
    void* arcbox_token(epoll_event* events, int i) nogil
    int arcbox_waiting(int fd) nogil

cdef enum:
    HEADER = 64
    TAKE = 1048576  # bytes taken at once: a whole pipe
    # A started line longer than this is written as a part, instead of waiting for its newline.
    HOLD = 65536
    # The spool is emptied when all of it is in the log and it has EMPTY_AT bytes,
    # and in any case (by writing a started line as a part) when it has SPOOL_FULL.
    EMPTY_AT = 65536
    SPOOL_FULL = 1048576
    # With a log that cannot be written, so much waits for better times; then it is dropped.
    SPOOL_LIMIT = 4194304
    PREFIX = STAMP_LENGTH + 14  # ` stdout F:end `
    # Bytes looked at at once.  One line of them, with its prefix and a newline, is not longer than
    # LINE_WINDOW.
    INPUT = LINE_WINDOW - PREFIX - 1
    OUTPUT = 2 * LINE_WINDOW
    EVENTS = 64

cdef enum:
    MAGIC = 0x31504253  # SBP1

cdef int64_t SECOND = 1000000000

cdef struct Header:
    uint64_t magic
    uint64_t inode
    int64_t offset
    int64_t skip
    int64_t lost_bytes
    int64_t lost_lines
    uint64_t open
    uint64_t cut

cdef struct Log:
    int fd
    char path[512]
    uint64_t inode
    int64_t size
    int64_t max_size
    int max_files
    int error  # errno of the last write, 0: it is well
    int64_t retry_at  # monotonic ns
    int64_t check_at
    int64_t rotate_at
    Stream* streams[2]

cdef struct Stream:
    Log* log
    int name
    int source
    bint pty
    bint hung_up  # nobody has the terminal open; it may be opened again
    bint last  # its processes are gone
    bint watched
    bint ended  # end of file was seen
    bint told  # ... and Python knows
    int spool
    int64_t size  # bytes in the spool
    int64_t done  # of them, so many are in the log or dropped
    int64_t searched  # behind done, so many have no newline
    bint open  # the last line in the log is a part
    int64_t lost_bytes  # not yet told in the log
    int64_t lost_lines
    bint cut  # the lost bytes end inside a line, whose rest is lost with it
    bint stuck  # what is in the spool could not be written the last time

cdef struct Totals:
    int64_t bytes
    int64_t dropped
    int64_t rotations


cdef int save_mark(Stream* s, int64_t skip) noexcept nogil:
    cdef Header header
    memset(&header, 0, sizeof(Header))
    header.magic = MAGIC
    header.inode = s.log.inode
    header.offset = s.log.size
    header.skip = skip
    header.lost_bytes = s.lost_bytes
    header.lost_lines = s.lost_lines
    header.open = s.open
    header.cut = s.cut
    return 0 if pwrite(s.spool, &header, HEADER, 0) == HEADER else -errno


cdef void empty(Stream* s) noexcept nogil:
    """All of the spool is accounted for: the three steps."""
    if save_mark(s, s.size) == 0 and ftruncate(s.spool, HEADER) == 0:
        save_mark(s, 0)
        s.size = s.done = s.searched = 0


# ------------------------------------------------------------------- the log


cdef int open_log(Log* log) noexcept nogil:
    """Open, or open again, what is at the path."""
    cdef int fd = arcbox_open_log(log.path, 0), rc
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    if fd < 0:
        return -errno
    rc = arcbox_stat(fd, NULL, &inode, &size)
    if rc < 0:
        close(fd)
        return rc
    go_on_in(log, fd, inode, size)
    return 0


cdef void go_on_in(Log* log, int fd, uint64_t inode, int64_t size) noexcept nogil:
    """From here on the log is this file."""
    if log.fd >= 0:
        close(log.fd)
    log.fd = fd
    log.inode = inode
    go_on_at(log, size)


cdef void go_on_at(Log* log, int64_t size) noexcept nogil:
    """From here on the log has this size, and the marks point there."""
    cdef int i
    log.size = size
    for i in range(2):
        if log.streams[i] is not NULL:
            save_mark(log.streams[i], log.streams[i].done)


cdef int rotate(Log* log) noexcept nogil:
    """log -> log.1 -> ... by rename, oldest first, so that a reader can follow the shift."""
    cdef char older[540]
    cdef char newer[540]
    cdef int i, fd, rc, last = 1
    cdef uint64_t inode = 0, other_inode
    cdef int64_t size = 0, other_size
    # The new file is made first, and stays open: where that fails (a full disk, no descriptor
    # left), nothing has changed.
    snprintf(newer, sizeof(newer), b"%s.new", log.path)
    fd = arcbox_open_log(newer, 1)
    if fd < 0:
        return -errno
    rc = arcbox_stat(fd, NULL, &inode, &size)
    if rc < 0:
        close(fd)
        return rc
    # A shift that was cut short by a crash has left an empty place: fill that one.
    while last < log.max_files:
        snprintf(older, sizeof(older), b"%s.%d", log.path, last)
        if arcbox_stat(-1, older, &other_inode, &other_size) < 0:
            break
        last += 1
    for i in range(last, 0, -1):
        snprintf(older, sizeof(older), b"%s.%d", log.path, i)
        if i > 1:
            snprintf(newer, sizeof(newer), b"%s.%d", log.path, i - 1)
        else:
            snprintf(newer, sizeof(newer), b"%s", log.path)
        if rename(newer, older) < 0 and errno != ENOENT:
            rc = -errno
            close(fd)
            return rc
    snprintf(newer, sizeof(newer), b"%s.new", log.path)
    if rename(newer, log.path) < 0:
        rc = -errno
        close(fd)
        return rc
    go_on_in(log, fd, inode, size)
    return 0


cdef int append(Log* log, const char* data, size_t n, size_t* kept) noexcept nogil:
    """Append lines; 0 or -errno.

    Where it fails, `kept` bytes stay in the log: whole lines, which a reader may have
    taken already.  NULL: all or none.
    """
    cdef size_t written = 0, whole
    cdef ssize_t rc
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    cdef int error
    while written < n:
        rc = write(log.fd, data + written, n - written)
        if rc < 0:
            if errno == EINTR:
                continue
            error = errno
            whole = written if kept is not NULL else 0
            while whole and data[whole - 1] != c"\n":
                whole -= 1
            # A line cut short must not stay: readers take only whole ones.
            if written > whole and arcbox_stat(log.fd, NULL, &inode, &size) == 0:
                ftruncate(log.fd, size - <int64_t> (written - whole))
            log.size += whole
            if kept is not NULL:
                kept[0] = whole
            return -error
        written += rc
    log.size += n
    return 0


cdef int prepare(Log* log, size_t n, int64_t now, Totals* totals) noexcept nogil:
    """Have an open log with room for n bytes under its size."""
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    cdef int rc
    if log.fd < 0:
        rc = open_log(log)
        if rc < 0:
            return rc
    elif now >= log.check_at:
        # Somebody may have moved, removed or truncated the file.
        log.check_at = now + SECOND
        rc = arcbox_stat(-1, log.path, &inode, &size)
        if rc < 0 or inode != log.inode:
            rc = open_log(log)
            if rc < 0:
                return rc
        elif size != log.size:
            go_on_at(log, size)
    if log.size > 0 and log.size + <int64_t> n > log.max_size and now >= log.rotate_at:
        if rotate(log) < 0:
            # Better a large log than none; try again later.
            log.rotate_at = now + SECOND
        else:
            totals.rotations += 1
    return 0


# --------------------------------------------------------------------- lines


cdef inline size_t put_prefix(char* out, const char* stamp, int name, const char* tag, size_t tag_length) noexcept nogil:
    memcpy(out, stamp, STAMP_LENGTH)
    memcpy(out + STAMP_LENGTH, b" stderr " if name == STDERR else b" stdout ", 8)
    memcpy(out + STAMP_LENGTH + 8, tag, tag_length)
    out[STAMP_LENGTH + 8 + tag_length] = c" "
    return STAMP_LENGTH + 9 + tag_length


cdef int tell_gap(Stream* s, char* out, const char* stamp, int64_t now, Totals* totals) noexcept nogil:
    cdef size_t n = 0
    cdef int rc
    if s.open:
        n = put_prefix(out, stamp, s.name, b"F:end", 5)
        out[n] = c"\n"
        n += 1
    n += put_prefix(out + n, stamp, s.name, b"F:gap", 5)
    n += snprintf(
        out + n, 200, b"[output lost: %lld bytes, %lld lines: the log could not be written: %s]\n",
        <long long> s.lost_bytes, <long long> s.lost_lines,
        strerror(s.log.error if s.log.error else EIO),
    )
    rc = prepare(s.log, n, now, totals)
    if rc == 0:
        rc = append(s.log, out, n, NULL)
    if rc == 0:
        s.open = False
        s.lost_bytes = s.lost_lines = 0
        save_mark(s, s.done)
    return rc


cdef int deliver(
    Stream* s, char* data, char* out, bint parts, bint last, int64_t now, Totals* totals,
) noexcept nogil:
    """Bring the spool's lines into the log; 0, -errno, or 1: nothing to write yet.

    parts: write a started line as a part.  last: nothing more will come, so a
    started line is the last one.
    """
    cdef char stamp[STAMP_LENGTH]
    cdef char prefix[PREFIX]
    cdef size_t prefix_length, n, i, used, length, kept
    cdef ssize_t got
    cdef const char* newline
    cdef int rc
    format_stamp(arcbox_realtime(), stamp)
    if s.cut and not lose_rest_of_line(s, data, last, totals):
        return 1
    if s.lost_bytes:
        # What is lost is settled before it is told: a crash behind the telling finds it told
        # (count_output), and neither tells it again nor counts more to it.
        save_mark(s, s.done)
        rc = tell_gap(s, out, stamp, now, totals)
        if rc < 0:
            return rc
    while s.done < s.size:
        if s.searched and not parts and not last and s.size - s.done < HOLD:
            # Most likely one more piece of a started line: look at the new bytes only.
            got = pread(s.spool, data, <size_t> (s.size - s.done - s.searched), HEADER + s.done + s.searched)
            if got >= 0 and memchr(data, c"\n", got) is NULL:
                s.searched += got
                return 0
        n = INPUT if s.size - s.done > INPUT else <size_t> (s.size - s.done)
        got = pread(s.spool, data, n, HEADER + s.done)
        if got <= 0:
            return -EIO
        n = got
        i = used = 0
        prefix_length = put_prefix(prefix, stamp, s.name, b"F", 1)
        while i < n:
            newline = <const char*> memchr(data + i, c"\n", n - i)
            if newline is NULL:
                break
            length = newline + 1 - (data + i)
            if used + prefix_length + length > OUTPUT:
                break
            memcpy(out + used, prefix, prefix_length)
            memcpy(out + used + prefix_length, data + i, length)
            used += prefix_length + length
            i += length
        if i == 0 or (newline is NULL and i < n and s.done + <int64_t> n == s.size and (parts or last)):
            # What is left is a started line (or a window without an end).
            length = n - i
            if i == 0 and not parts and not last and length < HOLD:
                s.searched = length
                return 0
            if used + PREFIX + length + 1 <= OUTPUT:
                if last and s.done + <int64_t> n == s.size:
                    used += put_prefix(out + used, stamp, s.name, b"F:end", 5)
                else:
                    used += put_prefix(out + used, stamp, s.name, b"P", 1)
                memcpy(out + used, data + i, length)
                used += length
                out[used] = c"\n"
                used += 1
                i = n
        rc = prepare(s.log, used, now, totals)
        kept = 0
        if rc == 0:
            rc = append(s.log, out, used, &kept)
        if rc < 0:
            if kept:
                # The lines that found room, less the prefix of each: all but the last of
                # a batch have the same, and the last is not among them.
                s.done += <int64_t> (kept - prefix_length * count_lines(out, kept))
                s.searched = 0
                s.open = False
            return rc
        s.done += i
        s.searched = 0
        # What the last line was: a part's tag stands right behind the stream's name.
        if i == n and data[n - 1] != c"\n":
            s.open = not (last and s.done == s.size)
        else:
            s.open = False
    if last and s.open:
        # The output ended behind a part: say so, or the next run's first line would be joined to it.
        used = put_prefix(out, stamp, s.name, b"F:end", 5)
        out[used] = c"\n"
        rc = prepare(s.log, used + 1, now, totals)
        if rc == 0:
            rc = append(s.log, out, used + 1, NULL)
        if rc < 0:
            return rc
        s.open = False
    return 0


cdef size_t count_lines(const char* data, size_t n) noexcept nogil:
    cdef const char* end = data + n
    cdef const char* p = data
    cdef size_t lines = 0
    while p < end:
        p = <const char*> memchr(p, c"\n", end - p)
        if p is NULL:
            break
        lines += 1
        p += 1
    return lines


cdef bint lose_rest_of_line(Stream* s, char* data, bint last, Totals* totals) noexcept nogil:
    """A reader must not take the end of a line that is lost for a line; False: it has not come yet."""
    cdef ssize_t got
    cdef const char* newline
    while s.done < s.size:
        got = pread(s.spool, data, INPUT if s.size - s.done > INPUT else <size_t> (s.size - s.done), HEADER + s.done)
        if got <= 0:
            return True
        newline = <const char*> memchr(data, c"\n", got)
        if newline is not NULL:
            got = newline + 1 - data
        count_lost(s, data, got, totals)
        s.done += got
        if newline is not NULL:
            s.cut = False
            return True
    if s.size:
        empty(s)
    if last:
        s.cut = False
    return last


cdef void drop(Stream* s, char* data, Totals* totals) noexcept nogil:
    """The log cannot be written and the spool is full: count, and let go."""
    cdef ssize_t got
    cdef const char* p
    cdef size_t left
    while s.done < s.size:
        left = INPUT if s.size - s.done > INPUT else <size_t> (s.size - s.done)
        got = pread(s.spool, data, left, HEADER + s.done)
        if got <= 0:
            break
        count_lost(s, data, got, totals)
        s.done += got
        s.cut = data[got - 1] != c"\n"
    s.done = s.size
    s.searched = 0
    empty(s)


cdef void count_lost(Stream* s, const char* data, size_t n, Totals* totals) noexcept nogil:
    s.lost_bytes += n
    s.lost_lines += count_lines(data, n)
    totals.dropped += n


cdef void lose(
    Stream* s, const char* lost, size_t n, char* data, char* out, int64_t now, Totals* totals,
) noexcept nogil:
    """The spool has no room for these: they are lost, behind what is in it.

    `lost` may lie in `data` or `out`: it is counted before those are used.
    """
    cdef int64_t lines = count_lines(lost, n)
    cdef bint cut = lost[n - 1] != c"\n"
    # What came before goes into the log before the gap, a started line as a part; or into the gap.
    if s.done < s.size and deliver(s, data, out, True, False, now, totals) < 0:
        drop(s, data, totals)
    s.lost_bytes += n
    s.lost_lines += lines
    s.cut = cut
    totals.dropped += n
    save_mark(s, s.done)


cdef void write_out(
    Stream* s, char* data, char* out, bint last, int64_t now, Totals* totals,
) noexcept nogil:
    """Deliver, with all that can go wrong."""
    cdef int rc
    cdef Log* log = s.log
    if log.error and now < log.retry_at:
        rc = -log.error
    else:
        rc = deliver(s, data, out, s.size >= SPOOL_FULL, last, now, totals)
        if rc == 0:
            log.error = 0
        elif rc < 0:
            log.error = -rc
            log.retry_at = now + SECOND // 5
    s.stuck = rc < 0
    if rc == 0:
        if s.done == s.size and s.size >= EMPTY_AT:
            empty(s)
    elif s.size - s.done >= SPOOL_LIMIT:
        drop(s, data, totals)


cdef ssize_t take(Stream* s, char* data, char* out, int64_t now, Totals* totals) noexcept nogil:
    """Move bytes from the source into the spool; their number, 0 at the end, or -errno."""
    cdef ssize_t n, rc
    cdef size_t written = 0
    if s.pty:
        n = read(s.source, data, INPUT)
        if n < 0:
            n = 0 if errno == EIO else -errno
        while n > 0 and written < <size_t> n:
            rc = pwrite(s.spool, data + written, n - written, HEADER + s.size + <int64_t> written)
            if rc < 0:
                break
            written += rc
        if n > 0:
            s.size += written
            totals.bytes += written
            if written < <size_t> n:
                # Read is read.
                lose(s, data + written, n - written, data, out, now, totals)
        return n
    n = arcbox_splice(s.source, s.spool, HEADER + s.size, TAKE)
    if n < 0 and errno != EAGAIN and errno != EINTR and s.size:
        # The spool has no room: make some.
        write_out(s, data, out, False, now, totals)
        if s.size and s.done == s.size:
            empty(s)
        n = arcbox_splice(s.source, s.spool, HEADER + s.size, TAKE)
    if n < 0:
        n = -errno
    if n > 0:
        s.size += n
        totals.bytes += n
    elif n < 0 and n != -EAGAIN and n != -EINTR:
        # The spool's file system is full (or gone): the container goes on, its output is counted as lost.
        n = read(s.source, out, INPUT)
        if n < 0:
            return -errno
        if n > 0:
            lose(s, out, n, data, out, now, totals)
    return n


cdef void serve(int epoll, Stream* s, char* data, char* out, int64_t now, Totals* totals) noexcept nogil:
    cdef ssize_t n
    cdef bint hung_up
    if s.ended or s.source < 0:
        return
    n = take(s, data, out, now, totals)
    if n == -EAGAIN or n == -EINTR:
        return
    hung_up = s.pty and n == 0 and not s.last
    if hung_up != s.hung_up:
        s.hung_up = hung_up
        if s.watched:
            # It would be readable all the time.
            arcbox_watch(epoll, EPOLL_CTL_MOD, s.source, s, hung_up)
    if n <= 0 and not hung_up:
        s.ended = True
        if s.watched:
            arcbox_watch(epoll, EPOLL_CTL_DEL, s.source, NULL, False)
            s.watched = False
    write_out(s, data, out, False, now, totals)


# ------------------------------------------------------------ after a crash


cdef int count_output(
    int fd, int64_t at, int name, char* data, int64_t* content, bint* open_, bint* told,
) noexcept nogil:
    """Add up what a log has of a stream's output from an offset on; `told`: and of its gaps, one or more."""
    cdef size_t have = 0, i, n
    cdef ssize_t got
    cdef const char* newline
    cdef Line line
    cdef Minute minute
    minute.known = minute.whole_known = False
    while True:
        got = pread(fd, data + have, OUTPUT - have, at)
        if got < 0:
            return -errno
        if got == 0:
            return 0
        at += got
        have += got
        i = 0
        while True:
            newline = <const char*> memchr(data + i, c"\n", have - i)
            if newline is NULL:
                break
            n = newline - (data + i)
            if n and data[i] != c"{":
                parse_line(data + i, n, False, &minute, NULL, &line)
                if line.stamped and line.stream == name:
                    if line.note:
                        told[0] = True
                    else:
                        content[0] += line.length + (not line.more and not line.unended)
                    open_[0] = line.more
            i = newline + 1 - data
        have -= i
        memmove(data, data + i, have)
        if have == OUTPUT:
            have = 0  # not one of ours: they are all shorter


cdef class CaptureLog:
    """One container's log file, written by its streams."""

    cdef Log log
    cdef readonly str path

    def __cinit__(self, str path, int64_t max_size, int max_files):
        cdef bytes raw = os.fsencode(path)
        if len(raw) >= 500:
            raise ValueError(f"the path of a log has at most 499 bytes: {path}")
        memcpy(self.log.path, <const char*> raw, len(raw) + 1)
        self.path = path
        self.log.fd = -1
        self.log.max_size = max_size
        self.log.max_files = max_files if max_files > 0 else 1

    def __dealloc__(self):
        self.close()

    @property
    def error(self):
        """errno of the last write, 0 where it went well."""
        return self.log.error

    def open(self):
        """Open the log, without the line that a crash has left half written."""
        cdef int rc = open_log(&self.log)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc), self.path)
        cdef int fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        cdef int64_t size = self.log.size, low
        cdef bytes block
        try:
            if size and os.pread(fd, 1, size - 1) != b"\n":
                # Ours are shorter than this; what is longer was not ours, and ends here.
                low = size - 4 * LINE_WINDOW if size > 4 * LINE_WINDOW else 0
                block = os.pread(fd, size - low, low)
                if b"\n" in block or low == 0:
                    os.truncate(self.path, low + block.rfind(b"\n") + 1)
                else:
                    rc = append(&self.log, b"\n", 1, NULL)
                self.log.size = os.fstat(fd).st_size
        finally:
            os.close(fd)

    def close(self):
        if self.log.fd >= 0:
            close(self.log.fd)
        self.log.fd = -1


@cython.no_gc_clear  # the end of a source looks at its log
cdef class Source:
    """One stream of a container on its way into the log."""

    cdef Stream stream
    cdef readonly CaptureLog log
    cdef readonly str spool_path

    def __cinit__(self, CaptureLog log, str name, int source, str spool_path, bint pty=False):
        """Takes over the descriptor `source`, which must not block.

        -1: nothing more comes; there is only what an earlier run left in the spool.
        """
        self.stream.source = -1
        self.stream.spool = -1
        self.log = log
        self.spool_path = spool_path
        self.stream.log = &log.log
        self.stream.name = {"stdout": STDOUT, "stderr": STDERR}[name]
        self.stream.pty = pty
        self.stream.spool = os.open(spool_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.stream.source = source
        self.stream.ended = source < 0

    def __dealloc__(self):
        self.close()

    def recover(self):
        """Find out what of the spool is in the log already."""
        cdef Stream* s = &self.stream
        cdef Header header
        cdef int64_t content = 0, size = os.fstat(s.spool).st_size
        cdef bint open_ = False, told = False
        cdef char* data
        cdef int rc = 0, fd, name = s.name
        cdef int64_t at
        memset(&header, 0, sizeof(Header))
        if pread(s.spool, &header, HEADER, 0) != HEADER or header.magic != MAGIC:
            s.size = s.done = 0
            if ftruncate(s.spool, HEADER) < 0:
                raise OSError(errno, os.strerror(errno), self.spool_path)
        else:
            s.size = size - HEADER
            s.lost_bytes = header.lost_bytes
            s.lost_lines = header.lost_lines
            s.cut = header.cut != 0
            open_ = header.open != 0
            s.done = header.skip if s.size else 0
            # No mark: the log could not be opened yet, so it has nothing of this.
            files, at = self.files_since(header.inode, header.offset) if header.inode else ([], 0)
            data = <char*> malloc(OUTPUT)
            if data is NULL:
                raise MemoryError
            try:
                for fd in files:
                    with nogil:
                        rc = count_output(fd, at, name, data, &content, &open_, &told)
                    at = 0
                    if rc < 0:
                        raise OSError(-rc, os.strerror(-rc), self.log.path)
            finally:
                free(data)
                for fd in files:
                    os.close(fd)
            s.done = min(s.done + content, s.size)
            s.open = open_
            if told:
                s.lost_bytes = s.lost_lines = 0
        s.log.streams[s.name] = s
        if save_mark(s, s.done) < 0:
            raise OSError(errno, os.strerror(errno), self.spool_path)

    def files_since(self, uint64_t inode, int64_t offset):
        """Descriptors of the marked file and the newer ones, oldest first; and where to begin."""
        files = []
        found = False
        for number in range(self.log.log.max_files + 1):
            try:
                fd = os.open(self.log.path + (f".{number}" if number else ""), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:
                # Too many are open, most likely: not the more for this.
                for fd in files:
                    os.close(fd)
                raise
            files.insert(0, fd)
            status = os.fstat(fd)
            if status.st_ino == inode:
                found = True
                break
        # A mark in a file that is gone: all that is left is newer.
        return files, (offset if found and offset <= status.st_size else 0)

    @property
    def name(self):
        return "stderr" if self.stream.name == STDERR else "stdout"

    @property
    def ended(self):
        """Every writer is gone and all they wrote was taken."""
        return bool(self.stream.ended)

    @property
    def pending(self):
        """Bytes taken and not yet in the log."""
        return self.stream.size - self.stream.done

    @property
    def lost(self):
        """Bytes dropped, and not yet told in the log."""
        return self.stream.lost_bytes

    @property
    def lag(self):
        """Bytes written by the container and not yet in the log."""
        cdef int source = self.stream.source
        return self.pending + (arcbox_waiting(source) if source >= 0 else 0)

    def close(self):
        cdef Stream* s = &self.stream
        if s.log is not NULL and s.log.streams[s.name] is s:
            # What is lost and not told yet is told by the next one.
            save_mark(s, s.done)
            s.log.streams[s.name] = NULL
        if self.stream.source >= 0:
            close(self.stream.source)
        if self.stream.spool >= 0:
            close(self.stream.spool)
        self.stream.source = self.stream.spool = -1


cdef class Pump:
    """Serves all sources from one thread; all calls but `wake` and the totals are that thread's."""

    cdef int epoll, event
    cdef char* data
    cdef char* out
    cdef epoll_event* events
    cdef Totals totals
    cdef dict sources
    cdef int64_t last_round, last_retry

    def __cinit__(self):
        self.sources = {}
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.epoll < 0 or self.event < 0:
            raise OSError(errno, os.strerror(errno))
        self.data = <char*> malloc(INPUT)
        self.out = <char*> malloc(OUTPUT + 512)
        self.events = <epoll_event*> malloc(EVENTS * sizeof(epoll_event))
        if self.data is NULL or self.out is NULL or self.events is NULL:
            raise MemoryError
        arcbox_watch(self.epoll, EPOLL_CTL_ADD, self.event, NULL, False)

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        if self.event >= 0:
            close(self.event)
        free(self.data)
        free(self.out)
        free(self.events)

    @property
    def bytes(self):
        """Bytes taken from containers."""
        return self.totals.bytes

    @property
    def dropped(self):
        """Bytes dropped because the log could not be written."""
        return self.totals.dropped

    @property
    def rotations(self):
        return self.totals.rotations

    def wake(self):
        """Let `run` return.  From any thread."""
        cdef uint64_t one = 1
        write(self.event, &one, 8)

    def add(self, Source source):
        cdef int rc
        self.sources[<uint64_t> &source.stream] = source
        if not source.stream.ended:
            rc = arcbox_watch(self.epoll, EPOLL_CTL_ADD, source.stream.source, &source.stream, False)
            if rc < 0:
                del self.sources[<uint64_t> &source.stream]
                raise OSError(-rc, os.strerror(-rc))
            source.stream.watched = True
        # What a crash left in the spool.
        with nogil:
            write_out(&source.stream, self.data, self.out, False, arcbox_monotonic(), &self.totals)

    def remove(self, Source source):
        if source.stream.watched:
            arcbox_watch(self.epoll, EPOLL_CTL_DEL, source.stream.source, NULL, False)
            source.stream.watched = False
        self.sources.pop(<uint64_t> &source.stream, None)

    def drain(self, Source source):
        """Take what is there now.  For when the processes are gone: a terminal that nobody has open has ended."""
        cdef Stream* s = &source.stream
        cdef int64_t before = -1
        cdef int rounds = 0
        s.last = True
        with nogil:
            # A writer that never stops must not keep us here: the caller comes again.
            while not s.ended and before != self.totals.bytes + self.totals.dropped and rounds < 16:
                before = self.totals.bytes + self.totals.dropped
                serve(self.epoll, s, self.data, self.out, arcbox_monotonic(), &self.totals)
                rounds += 1

    def flush(self, Source source):
        """Write all that was taken, a line without its newline too; whether it worked."""
        cdef Stream* s = &source.stream
        with nogil:
            write_out(s, self.data, self.out, True, arcbox_monotonic(), &self.totals)
        return s.done == s.size and s.lost_bytes == 0 and not s.open

    def run(self):
        """Serve until woken, until a source ended, or for 0.2 s where a log has no room; the sources that ended."""
        cdef bint woken
        cdef Source source
        cdef list ended = []
        cdef bint troubled = False
        for source in self.sources.values():
            if source.stream.stuck:
                troubled = True
        with nogil:
            woken = self.loop(troubled)
        for source in self.sources.values():
            if source.stream.ended and not source.stream.told:
                source.stream.told = True
                ended.append(source)
            if source.stream.stuck:
                # Try again: there may be room now.
                with nogil:
                    write_out(&source.stream, self.data, self.out, False, arcbox_monotonic(), &self.totals)
        return ended

    cdef bint loop(self, bint troubled) noexcept nogil:
        cdef int count, i
        cdef Stream* s
        cdef int64_t now, before
        cdef uint64_t value
        cdef bint leave = False
        while not leave:
            count = epoll_wait(self.epoll, self.events, EVENTS, 200 if troubled else -1)
            if count < 0:
                if errno == EINTR:
                    continue
                return False
            now = arcbox_monotonic()
            if count == 0 or (troubled and now - self.last_retry > SECOND // 5):
                self.last_retry = now
                return False
            before = self.totals.bytes
            for i in range(count):
                s = <Stream*> arcbox_token(self.events, i)
                if s is NULL:
                    read(self.event, &value, 8)
                    leave = True
                    continue
                serve(self.epoll, s, self.data, self.out, now, &self.totals)
                if s.ended or (s.stuck and not troubled):
                    leave = True
            if not leave and self.totals.bytes - before < HOLD and now - self.last_round < 300000:
                # Many small writes: gather them.  The pipe holds far more than
                # comes in this time, so the writer does not notice.
                arcbox_pause_us(200)
            self.last_round = now
        return True

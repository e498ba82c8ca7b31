# cython: cdivision=True
"""What was taken from a container's stream and is not in its log yet.  Linux only.

A killed agent loses no byte and doubles none, because each step leaves its own
trace: the spool's size counts what was taken from the FIFO (splice moves bytes
and counts them in one step), and the log itself counts what was written of it.

A spool is a file on tmpfs: a header, then what was taken and may not be in the log yet.

    0        8       16        24      32          40          48     56      64
    | magic  | inode | offset  | skip  | lost bytes| lost lines| open | cut   | bytes ...
               `-- the mark: --'  `-- so many of the bytes are accounted for before the mark

After a crash, what the log has of this stream behind the mark, counted in bytes
of output, is where the spool's bytes go on.  The spool is emptied in three
steps, each of which reads right when the next one was never made: the mark is
set to the log's end with skip = all; the bytes are cut off; skip = 0.

The wall clock is read here, once a batch: passing it in from Python would mean
holding the interpreter's lock for every batch, and a busy event loop would then
hold up containers.
"""

from libc.errno cimport EIO, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, memset, strerror
from arcbox_agent._lines cimport NANOSECONDS, STAMP_LENGTH, STDERR, format_stamp, next_nanosecond
from arcbox_agent._log_file cimport HELD, CaptureLog, Log, append_lines, prepare_log

import os

cdef extern from *:
    """
    #include <stdint.h>
    #include <fcntl.h>
    #include <sys/mman.h>
    #include <time.h>
    #include <unistd.h>

    static int arcbox_memory_file(void) {
        return memfd_create("spool", MFD_CLOEXEC);
    }

    /* `to` becomes what `from` is, and stays close-on-exec. */
    static int arcbox_replace(int from, int to) {
        return dup3(from, to, O_CLOEXEC);
    }

    static int64_t arcbox_realtime(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int64_t arcbox_realtime() nogil
    int arcbox_memory_file() nogil
    int arcbox_replace(int from_fd, int to_fd) nogil
    int close(int fd) nogil
    int ftruncate(int fd, int64_t size) nogil
    ssize_t pread(int fd, void* to, size_t n, int64_t at) nogil
    ssize_t pwrite(int fd, const void* data, size_t n, int64_t at) nogil

cdef enum:
    MAGIC = 0x31504253  # SBP1

# Bytes, and lines, that no stream ever loses: a count above is damage, and could not be added to.
cdef int64_t MOST_LOST = <int64_t> 1 << 60

cdef struct Header:
    uint64_t magic
    uint64_t inode
    int64_t offset
    int64_t skip
    int64_t lost_bytes
    int64_t lost_lines
    uint64_t open
    uint64_t cut


cdef int save_mark(Spool* spool, int64_t skip) noexcept nogil:
    """Write the header; 0 or -errno."""
    cdef Header header
    memset(&header, 0, sizeof(Header))
    header.magic = MAGIC
    header.inode = spool.log.inode
    header.offset = spool.log.size
    header.skip = skip
    header.lost_bytes = spool.lost_bytes
    header.lost_lines = spool.lost_lines
    header.open = spool.open
    header.cut = spool.cut
    return 0 if pwrite(spool.fd, &header, HEADER, 0) == HEADER else -errno


cdef void log_moved(void* spool) noexcept nogil:
    save_mark(<Spool*> spool, (<Spool*> spool).done)


cdef void empty(Spool* spool) noexcept nogil:
    """All of the spool is accounted for: the three steps."""
    if save_mark(spool, spool.size) == 0 and ftruncate(spool.fd, HEADER) == 0:
        save_mark(spool, 0)
        spool.size = spool.done = spool.searched = 0


cdef bint into_memory(Spool* spool) noexcept nogil:
    """Go on in a file in memory, where the spool's file system has no room; False: there is none either.

    The next agent finds the old file empty, and loses of the output only what has not come into the
    log until then: far less than what the container would write in vain.
    """
    cdef char copied[4096]
    cdef ssize_t got
    cdef int64_t at = 0
    cdef int fd
    if spool.in_memory:
        return False
    fd = arcbox_memory_file()
    if fd < 0:
        return False
    while True:
        got = pread(spool.fd, copied, sizeof(copied), at)
        if got == 0:
            break
        if got < 0 or pwrite(fd, copied, got, at) != got:
            close(fd)
            return False
        at += got
    # What is there goes into the log by this file alone: found again, it would be there twice.
    spool.in_memory = ftruncate(spool.fd, 0) == 0 and arcbox_replace(fd, spool.fd) >= 0
    close(fd)
    return spool.in_memory


cdef inline ssize_t read_output(Spool* spool, char* data) noexcept nogil:
    """The next output that is not done, at most INPUT bytes; their number."""
    cdef int64_t left = spool.size - spool.done
    return pread(spool.fd, data, INPUT if left > INPUT else <size_t> left, HEADER + spool.done)


# -------------------------------------------------------- into the log: lines


# Lines for the log, made of a window of the spool.
cdef struct Batch:
    int64_t time  # of the next line, as the prefix has it too
    char prefix[PREFIX]  # of whole lines
    size_t prefix_length
    size_t taken  # bytes of the window
    size_t used  # bytes of lines in work.out
    size_t lines  # of output that end in it
    bint started  # what is left of the window is a started line
    bint part  # the last line is a part


cdef int64_t take_stamp(Log* log, char* text) noexcept nogil:
    """A time that no line of the log has yet, as a number and as text: now, or the last one and a nanosecond.

    A reader may go on behind the time of the last line that it saw.
    """
    cdef int64_t stamp = arcbox_realtime()
    # By a second or more the clock was set back: the lines have the new time.
    if stamp <= log.last_stamp < stamp + NANOSECONDS:
        stamp = log.last_stamp + 1
    log.last_stamp = stamp
    format_stamp(stamp, text)
    return stamp


cdef inline size_t put_prefix(
    char* out, const char* stamp, int stream, const char* tag, size_t tag_length) noexcept nogil:
    memcpy(out, stamp, STAMP_LENGTH)
    memcpy(out + STAMP_LENGTH, b" stderr " if stream == STDERR else b" stdout ", 8)
    memcpy(out + STAMP_LENGTH + 8, tag, tag_length)
    out[STAMP_LENGTH + 8 + tag_length] = c" "
    return STAMP_LENGTH + 9 + tag_length


cdef int deliver(Spool* spool, Work* work, bint parts, bint last) noexcept nogil:
    """Bring the spool's lines into the log; 0, -errno, HELD (`prepare_log`), or UNFINISHED: nothing to write yet.

    parts: write a started line as a part.  last: nothing more will come, so a
    started line is the last one.
    """
    cdef Batch batch
    cdef char stamp[STAMP_LENGTH]
    cdef ssize_t got
    cdef bint at_end
    cdef int rc
    if spool.cut and not lose_rest_of_line(spool, work, last):
        return UNFINISHED
    if spool.lost_bytes:
        # The count is saved before it is reported: after a crash the log has the report
        # (count_output), and nothing is reported twice or added to it.
        save_mark(spool, spool.done)
        rc = report_gap(spool, work)
        if rc:
            return rc
    batch.time = take_stamp(spool.log, stamp)
    batch.prefix_length = put_prefix(batch.prefix, stamp, spool.stream, b"F", 1)
    while spool.done < spool.size:
        if spool.searched and not parts and not last and is_still_started(spool, work.data):
            return 0
        got = read_output(spool, work.data)
        if got <= 0:
            return -EIO
        add_whole_lines(&batch, work.data, <size_t> got, work.out)
        at_end = spool.done + got == spool.size
        if batch.started and (batch.taken == 0 or (at_end and (parts or last))):
            # A started line, or a window without an end.
            if batch.taken == 0 and got < HOLD and not parts and not last:
                spool.searched = got
                return 0
            add_started_line(&batch, spool.stream, work.data, <size_t> got, work.out, last and at_end)
        spool.log.last_stamp = batch.time
        rc = write_batch(spool, work, &batch)
        if rc:
            return rc
    return end_open_line(spool, work) if last and spool.open else 0


cdef bint is_still_started(Spool* spool, char* data) noexcept nogil:
    """Look at what is new in a started line: most likely it is one more piece without a newline."""
    cdef ssize_t got
    if spool.size - spool.done >= HOLD:
        return False
    got = pread(
        spool.fd, data, <size_t> (spool.size - spool.done - spool.searched), HEADER + spool.done + spool.searched)
    if got < 0 or memchr(data, c"\n", got) is not NULL:
        return False
    spool.searched += got
    return True


cdef void add_whole_lines(Batch* batch, const char* data, size_t n, char* out) noexcept nogil:
    """The window's whole lines, each with its prefix, as far as `out` has room."""
    cdef size_t i = 0, used = 0, lines = 0, length
    cdef const char* newline
    batch.started = batch.part = False
    while i < n:
        newline = <const char*> memchr(data + i, c"\n", n - i)
        if newline is NULL:
            batch.started = True
            break
        length = newline + 1 - (data + i)
        if used + batch.prefix_length + length > OUTPUT:
            break
        memcpy(out + used, batch.prefix, batch.prefix_length)
        memcpy(out + used + batch.prefix_length, data + i, length)
        used += batch.prefix_length + length
        i += length
        lines += 1
        next_nanosecond(&batch.time, batch.prefix)
    batch.lines = lines
    batch.taken = i
    batch.used = used


cdef void add_started_line(
    Batch* batch, int stream, const char* data, size_t n, char* out, bint last) noexcept nogil:
    """The rest of the window as a part, or as the output's last line; left for the next batch without room."""
    cdef size_t length = n - batch.taken
    if batch.used + PREFIX + length + 1 > OUTPUT:
        return
    if last:
        batch.used += put_prefix(out + batch.used, batch.prefix, stream, b"F:end", 5)
    else:
        batch.used += put_prefix(out + batch.used, batch.prefix, stream, b"P", 1)
        batch.part = True
    next_nanosecond(&batch.time, batch.prefix)
    memcpy(out + batch.used, data + batch.taken, length)
    out[batch.used + length] = c"\n"
    batch.used += length + 1
    batch.taken = n


cdef void count_written(Spool* spool, int64_t n, int64_t lines) noexcept nogil:
    spool.log.past.bytes[spool.stream] += n
    spool.log.past.lines[spool.stream] += lines


cdef int write_batch(Spool* spool, Work* work, const Batch* batch) noexcept nogil:
    """Append the batch to the log and account for it, or for the lines that found room; 0, -errno or HELD."""
    cdef size_t kept = 0, lines
    cdef int64_t content
    cdef int rc = prepare_log(spool.log, batch.used, work.now, &work.totals.rotations)
    if rc == 0:
        rc = append_lines(spool.log, work.out, batch.used, &kept)
    if rc == 0:
        spool.done += batch.taken
        spool.searched = 0
        spool.open = batch.part
        count_written(spool, <int64_t> batch.taken, <int64_t> batch.lines)
    elif kept:
        # All but the last line of a batch have the same prefix, and the last is not among them.
        lines = count_lines(work.out, kept)
        content = <int64_t> (kept - batch.prefix_length * lines)
        spool.done += content
        count_written(spool, content, <int64_t> lines)
        spool.searched = 0
        spool.open = False
    return rc


cdef int end_open_line(Spool* spool, Work* work) noexcept nogil:
    """The output ended behind a part: without this, the next run's first line would be joined to it."""
    cdef char stamp[STAMP_LENGTH]
    take_stamp(spool.log, stamp)
    cdef size_t n = put_prefix(work.out, stamp, spool.stream, b"F:end", 5)
    work.out[n] = c"\n"
    cdef int rc = prepare_log(spool.log, n + 1, work.now, &work.totals.rotations)
    if rc == 0:
        rc = append_lines(spool.log, work.out, n + 1, NULL)
    if rc == 0:
        spool.open = False
    return rc


# ------------------------------------------------------------- lost output


cdef int report_gap(Spool* spool, Work* work) noexcept nogil:
    """One line in the log that says how much is missing; 0, -errno or HELD."""
    cdef char stamp[STAMP_LENGTH]
    cdef char* out = work.out
    cdef size_t n = 0
    cdef int rc
    take_stamp(spool.log, stamp)
    if spool.open:
        n = put_prefix(out, stamp, spool.stream, b"F:end", 5)
        out[n] = c"\n"
        n += 1
        take_stamp(spool.log, stamp)
    n += put_prefix(out + n, stamp, spool.stream, b"F:gap", 5)
    n += snprintf(
        out + n, 200, b"[output lost: %lld bytes, %lld lines: the log could not be written: %s]\n",
        <long long> spool.lost_bytes, <long long> spool.lost_lines,
        strerror(spool.log.error if spool.log.error else EIO),
    )
    rc = prepare_log(spool.log, n, work.now, &work.totals.rotations)
    if rc == 0:
        rc = append_lines(spool.log, out, n, NULL)
    if rc == 0:
        spool.open = False
        spool.lost_bytes = spool.lost_lines = 0
        save_mark(spool, spool.done)
    return rc


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


cdef void count_lost(Spool* spool, const char* data, size_t n, Work* work) noexcept nogil:
    spool.lost_bytes += n
    spool.lost_lines += count_lines(data, n)
    work.totals.dropped += n


cdef bint lose_rest_of_line(Spool* spool, Work* work, bint last) noexcept nogil:
    """Drop the end of a line whose beginning is lost, which would pass for a line; False: it has not come yet."""
    cdef ssize_t got
    cdef const char* newline
    while spool.done < spool.size:
        got = read_output(spool, work.data)
        if got <= 0:
            return True
        newline = <const char*> memchr(work.data, c"\n", got)
        if newline is not NULL:
            got = newline + 1 - work.data
        count_lost(spool, work.data, got, work)
        spool.done += got
        if newline is not NULL:
            spool.cut = False
            return True
    if spool.size:
        empty(spool)
    if last:
        spool.cut = False
    return last


cdef void drop(Spool* spool, Work* work) noexcept nogil:
    """The log cannot be written and the spool is full: count its output as lost."""
    cdef ssize_t got
    while spool.done < spool.size:
        got = read_output(spool, work.data)
        if got <= 0:
            break
        count_lost(spool, work.data, got, work)
        spool.done += got
        spool.cut = work.data[got - 1] != c"\n"
    spool.done = spool.size
    spool.searched = 0
    empty(spool)


cdef void lose(Spool* spool, const char* lost, size_t n, Work* work) noexcept nogil:
    """The spool has no room for these n bytes, which follow its own: count them as lost.

    `lost` may lie in `work.data` or `work.out`: it is counted before those are used.
    """
    cdef int64_t lines = count_lines(lost, n)
    cdef bint cut = lost[n - 1] != c"\n"
    cdef int rc
    # What came before goes into the log before the gap, a started line as a part; or into the gap.
    if spool.done < spool.size:
        rc = deliver(spool, work, True, False)
        if rc < 0 or rc == HELD:
            drop(spool, work)
    spool.lost_bytes += n
    spool.lost_lines += lines
    spool.cut = cut
    work.totals.dropped += n
    save_mark(spool, spool.done)


# -------------------------------------------------------------- begin and end


cdef int open_spool(Spool* spool, str path) except -1:
    """Open or make the file.  OSError: it cannot be."""
    spool.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return 0


cdef bint is_whole(const Header* header, int64_t size) noexcept nogil:
    """Whether it is what `save_mark` writes, for a spool of so many bytes of output."""
    return (
        header.magic == MAGIC and header.offset >= 0 and 0 <= header.skip
        and (size == 0 or header.skip <= size)  # the three steps end with a skip of bytes that are cut off
        and 0 <= header.lost_bytes <= MOST_LOST and 0 <= header.lost_lines <= MOST_LOST
    )


cdef int recover_spool(Spool* spool, CaptureLog log, str path) except -1:
    """Find out what of the spool is in the log already.  OSError: a file of either cannot be used."""
    cdef Header header
    cdef int64_t content = 0, size = os.fstat(spool.fd).st_size
    cdef bint open_ = False, gap = False
    memset(&header, 0, sizeof(Header))
    if pread(spool.fd, &header, HEADER, 0) != HEADER or not is_whole(&header, size - HEADER):
        # Where the bytes go on is not known.  They are told as lost: a guess would double some.
        spool.size = spool.done = 0
        spool.lost_bytes = max(size - HEADER, 0)
        if ftruncate(spool.fd, HEADER) < 0:
            raise OSError(errno, os.strerror(errno), path)
    else:
        spool.size = size - HEADER
        spool.lost_bytes = header.lost_bytes
        spool.lost_lines = header.lost_lines
        spool.cut = header.cut != 0
        open_ = header.open != 0
        spool.done = header.skip if spool.size else 0
        # Without a mark the log could not be opened yet, so it has nothing of this.
        if header.inode:
            log.output_since(header.inode, header.offset, spool.stream, &content, &open_, &gap)
        spool.done = min(spool.done + content, spool.size)
        spool.open = open_
        if gap:
            spool.lost_bytes = spool.lost_lines = 0
    log.log.moved = log_moved
    log.log.spools[spool.stream] = spool
    if save_mark(spool, spool.done) < 0:
        raise OSError(errno, os.strerror(errno), path)
    return 0


cdef void close_spool(Spool* spool) noexcept:
    if spool.log is not NULL and spool.log.spools[spool.stream] is spool:
        # What is lost and not reported yet is reported by the next run.
        save_mark(spool, spool.done)
        spool.log.spools[spool.stream] = NULL
    if spool.fd >= 0:
        close(spool.fd)
    spool.fd = -1

# cython: cdivision=True
"""The pump: what containers write, from their FIFOs into CRI logs.  Linux only.

    FIFO --splice--> spool (tmpfs) --lines, with the time--> log --rename--> log.1 ...
         `---- _pump: sources ----'`------ _spool: deliver ------'`-- _log_file: rotate

One thread serves all sources and holds no interpreter lock while it works, so neither a busy
event loop nor a slow disk of one request stops a container.  _spool.pyx says why a killed agent
loses no byte and doubles none.
"""

from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from arcbox_agent._lines cimport STDERR, STDOUT
from arcbox_agent._log_file cimport HELD, CaptureLog, Log
from arcbox_agent._spool cimport (
    HEADER, HOLD, INPUT, OUTPUT, Spool, Work,
    close_spool, deliver, drop, empty, into_memory, lose, open_spool, recover_spool,
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
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <time.h>
    #include <unistd.h>

    static int64_t arcbox_monotonic(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static void arcbox_pause_us(long us) {
        struct timespec t = {0, us * 1000};
        nanosleep(&t, NULL);
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
    ssize_t read(int fd, void* to, size_t n) nogil
    ssize_t write(int fd, const void* data, size_t n) nogil
    ssize_t pwrite(int fd, const void* data, size_t n, int64_t at) nogil
    int64_t arcbox_monotonic() nogil
    void arcbox_pause_us(long us) nogil
    ssize_t arcbox_splice(int source, int to, int64_t at, size_t n) nogil
    int arcbox_watch(int epoll, int op, int fd, void* token, bint edge) nogil
    void* arcbox_token(epoll_event* events, int i) nogil
    int arcbox_waiting(int fd) nogil

cdef enum:
    TAKE = 1048576  # bytes taken at once: a whole pipe
    # The spool is emptied when all of it is in the log and it has EMPTY_AT bytes,
    # and in any case (by writing a started line as a part) when it has SPOOL_FULL.
    EMPTY_AT = 65536
    SPOOL_FULL = 1048576
    # While the log cannot be written, the spool buffers up to this many bytes; beyond that,
    # output is dropped and counted.
    SPOOL_LIMIT = 4194304
    EVENTS = 64

cdef int64_t SECOND = 1000000000
# After so long a started line (a prompt, a progress bar) is written as a part.
cdef int64_t PART_AFTER = 50000000

cdef struct Stream:
    Spool spool
    int source
    bint pty
    bint hung_up  # no process has the terminal open; one may open it again
    bint last  # its processes are gone
    bint watched
    bint ended  # end of file was seen
    bint reported  # ... and `run` has returned it
    bint stuck  # what is in the spool could not be written the last time
    bint held  # the log waits for a reader: nothing is taken, so the container waits in its pipe
    # A started line is in the spool: where it begins, and when it is written as a part.
    int64_t started_at
    int64_t due  # monotonic ns, 0: there is none
    Stream* before
    Stream* after
    Started* all_started


# The streams with a started line, the one that is due first at the front.
cdef struct Started:
    Stream* first
    Stream* last


cdef void not_started(Stream* s) noexcept nogil:
    if s.due == 0:
        return
    if s.before is not NULL:
        s.before.after = s.after
    else:
        s.all_started.first = s.after
    if s.after is not NULL:
        s.after.before = s.before
    else:
        s.all_started.last = s.before
    s.before = s.after = NULL
    s.due = 0


cdef void started(Stream* s, int64_t now) noexcept nogil:
    """A line has begun.  One that is longer only keeps its time."""
    if s.due and s.started_at == s.spool.done:
        return
    not_started(s)
    s.started_at = s.spool.done
    s.due = now + PART_AFTER
    s.before = s.all_started.last
    if s.before is not NULL:
        s.before.after = s
    else:
        s.all_started.first = s
    s.all_started.last = s


cdef void write_out(Stream* s, Work* work, bint parts, bint last) noexcept nogil:
    """Deliver, with all that can go wrong.  parts, last: see `deliver`."""
    cdef int rc
    cdef Spool* spool = &s.spool
    cdef Log* log = spool.log
    if log.error and work.now < log.retry_at:
        rc = -log.error
    else:
        rc = deliver(spool, work, parts or spool.size >= SPOOL_FULL, last)
        if rc == 0:
            log.error = 0
        elif rc < 0:
            log.error = -rc
            log.retry_at = work.now + SECOND // 5
    s.stuck = rc < 0
    s.held = rc == HELD
    if rc == 0 and spool.done < spool.size and s.all_started is not NULL:
        started(s, work.now)
    else:
        not_started(s)
    if rc == 0:
        if spool.done == spool.size and spool.size >= EMPTY_AT:
            empty(spool)
    elif rc < 0 and spool.size - spool.done >= SPOOL_LIMIT:
        drop(spool, work)


cdef ssize_t take_pty(Stream* s, Work* work) noexcept nogil:
    """Read a terminal into the spool; the number of bytes, 0 at the end, or -errno."""
    cdef Spool* spool = &s.spool
    cdef ssize_t rc, n = read(s.source, work.data, INPUT)
    cdef size_t written = 0
    if n < 0:
        return 0 if errno == EIO else -errno
    while written < <size_t> n:
        rc = pwrite(spool.fd, work.data + written, n - written, HEADER + spool.size + <int64_t> written)
        if rc < 0:
            if into_memory(spool):
                continue
            break
        written += rc
    spool.size += written
    work.totals.bytes += written
    if written < <size_t> n:
        # A pty cannot be un-read: what the spool has no room for is lost and counted.
        lose(spool, work.data + written, n - written, work)
    return n


cdef ssize_t take(Stream* s, Work* work) noexcept nogil:
    """Move bytes from the source into the spool; their number, 0 at the end, or -errno."""
    cdef Spool* spool = &s.spool
    cdef ssize_t n
    if s.pty:
        return take_pty(s, work)
    n = arcbox_splice(s.source, spool.fd, HEADER + spool.size, TAKE)
    if n < 0 and errno != EAGAIN and errno != EINTR and spool.size:
        # The spool has no room: make some.
        write_out(s, work, False, False)
        if spool.size and spool.done == spool.size:
            empty(spool)
        n = arcbox_splice(s.source, spool.fd, HEADER + spool.size, TAKE)
    if n < 0:
        n = -errno
    if n < 0 and n != -EAGAIN and n != -EINTR and into_memory(spool):
        n = arcbox_splice(s.source, spool.fd, HEADER + spool.size, TAKE)
        if n < 0:
            n = -errno
    if n > 0:
        spool.size += n
        work.totals.bytes += n
    elif n < 0 and n != -EAGAIN and n != -EINTR:
        # The spool's file system is full (or gone): the container goes on, its output is counted as lost.
        n = read(s.source, work.out, INPUT)
        if n < 0:
            return -errno
        if n > 0:
            lose(spool, work.out, n, work)
    return n


cdef void serve(int epoll, Stream* s, Work* work) noexcept nogil:
    """Take what a source has, and write it out."""
    cdef ssize_t n
    cdef bint hung_up
    if s.ended or s.source < 0:
        return
    n = take(s, work)
    if n == -EAGAIN or n == -EINTR:
        return
    hung_up = s.pty and n == 0 and not s.last
    if hung_up != s.hung_up:
        s.hung_up = hung_up
        if s.watched:
            # Level-triggered, it would be readable all the time.
            arcbox_watch(epoll, EPOLL_CTL_MOD, s.source, s, hung_up)
    if n <= 0 and not hung_up:
        s.ended = True
        if s.watched:
            arcbox_watch(epoll, EPOLL_CTL_DEL, s.source, NULL, False)
            s.watched = False
    write_out(s, work, False, False)
    if s.held and s.watched:
        arcbox_watch(epoll, EPOLL_CTL_DEL, s.source, NULL, False)
        s.watched = False


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
        self.stream.spool.fd = -1
        self.log = log
        self.spool_path = spool_path
        self.stream.spool.log = &log.log
        self.stream.spool.stream = {"stdout": STDOUT, "stderr": STDERR}[name]
        self.stream.pty = pty
        open_spool(&self.stream.spool, spool_path)
        self.stream.source = source
        self.stream.ended = source < 0

    def __dealloc__(self):
        self.close()

    def recover(self):
        """Find out what of the spool is in the log already.  OSError: a file of either cannot be used."""
        recover_spool(&self.stream.spool, self.log, self.spool_path)

    @property
    def name(self):
        return "stderr" if self.stream.spool.stream == STDERR else "stdout"

    @property
    def ended(self):
        """Every writer is gone and all they wrote was taken."""
        return bool(self.stream.ended)

    @property
    def pending(self):
        """Bytes taken and not yet in the log."""
        return self.stream.spool.size - self.stream.spool.done

    @property
    def lost(self):
        """Bytes dropped, and not yet reported in the log."""
        return self.stream.spool.lost_bytes

    @property
    def lag(self):
        """Bytes written by the container and not yet in the log."""
        cdef int source = self.stream.source
        return self.pending + (arcbox_waiting(source) if source >= 0 else 0)

    def close(self):
        close_spool(&self.stream.spool)
        if self.stream.source >= 0:
            close(self.stream.source)
        self.stream.source = -1


cdef class Pump:
    """Serves all sources from one thread: it alone may call anything but `wake` and the totals."""

    cdef int epoll, event
    cdef Work work
    cdef epoll_event* events
    cdef dict sources
    cdef int64_t last_round, last_retry
    cdef Started started

    def __cinit__(self):
        self.sources = {}
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.epoll < 0 or self.event < 0:
            raise OSError(errno, os.strerror(errno))
        self.work.data = <char*> malloc(INPUT)
        self.work.out = <char*> malloc(OUTPUT + 512)
        self.events = <epoll_event*> malloc(EVENTS * sizeof(epoll_event))
        if self.work.data is NULL or self.work.out is NULL or self.events is NULL:
            raise MemoryError
        arcbox_watch(self.epoll, EPOLL_CTL_ADD, self.event, NULL, False)

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        if self.event >= 0:
            close(self.event)
        free(self.work.data)
        free(self.work.out)
        free(self.events)

    @property
    def bytes(self):
        """Bytes taken from containers."""
        return self.work.totals.bytes

    @property
    def dropped(self):
        """Bytes dropped because the log could not be written."""
        return self.work.totals.dropped

    @property
    def rotations(self):
        return self.work.totals.rotations

    def wake(self):
        """Let `run` return.  From any thread."""
        cdef uint64_t one = 1
        write(self.event, &one, 8)

    def add(self, Source source):
        """Serve it from now on, beginning with what a crash left in its spool."""
        cdef int rc
        self.sources[<uint64_t> &source.stream] = source
        source.stream.all_started = &self.started
        if not source.stream.ended:
            rc = arcbox_watch(self.epoll, EPOLL_CTL_ADD, source.stream.source, &source.stream, False)
            if rc < 0:
                del self.sources[<uint64_t> &source.stream]
                raise OSError(-rc, os.strerror(-rc))
            source.stream.watched = True
        with nogil:
            self.write_out(&source.stream, False)

    def remove(self, Source source):
        not_started(&source.stream)
        if source.stream.watched:
            arcbox_watch(self.epoll, EPOLL_CTL_DEL, source.stream.source, NULL, False)
            source.stream.watched = False
        self.sources.pop(<uint64_t> &source.stream, None)

    def drain(self, Source source):
        """Take what is there now, once the processes are gone: a terminal that none has open has ended."""
        cdef Stream* s = &source.stream
        cdef int64_t before = -1
        cdef int rounds = 0
        s.last = s.spool.log.last = True
        with nogil:
            # A writer that never stops must not keep the thread here: the caller comes again.
            while not s.ended and before != self.work.totals.bytes + self.work.totals.dropped and rounds < 16:
                before = self.work.totals.bytes + self.work.totals.dropped
                self.work.now = arcbox_monotonic()
                serve(self.epoll, s, &self.work)
                rounds += 1

    def flush(self, Source source):
        """Write all that was taken, a line without its newline too; whether it worked."""
        cdef Spool* spool = &source.stream.spool
        with nogil:
            self.write_out(&source.stream, True)
        return spool.done == spool.size and spool.lost_bytes == 0 and not spool.open

    def run(self):
        """Serve until woken, until a source ended, or for 0.2 s where a log has no room; the sources that ended."""
        cdef Source source
        cdef list ended = []
        cdef bint troubled = False
        for source in self.sources.values():
            if source.stream.stuck:
                troubled = True
        with nogil:
            self.loop(troubled)
        # What was held may go on: `wake` is called when a reader has come further.
        for source in self.sources.values():
            if source.stream.held:
                self.go_on(&source.stream)
            if source.stream.ended and not source.stream.reported:
                source.stream.reported = True
                ended.append(source)
            if source.stream.stuck:
                # There may be room by now.
                with nogil:
                    self.write_out(&source.stream, False)
        return ended

    cdef void write_out(self, Stream* s, bint last) noexcept nogil:
        self.work.now = arcbox_monotonic()
        write_out(s, &self.work, False, last)

    cdef int go_on(self, Stream* s) except -1:
        """Take from a source that was held, if it is no longer."""
        cdef int rc
        with nogil:
            self.write_out(s, False)
        if s.held or s.ended or s.watched or s.source < 0:
            return 0
        rc = arcbox_watch(self.epoll, EPOLL_CTL_ADD, s.source, s, s.hung_up)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        s.watched = True
        return 0

    cdef void write_parts(self) noexcept nogil:
        """Write the started lines that are due."""
        cdef Stream* s
        while self.started.first is not NULL and self.started.first.due <= self.work.now:
            s = self.started.first
            not_started(s)
            write_out(s, &self.work, True, False)

    cdef int patience(self, bint troubled) noexcept nogil:
        """Milliseconds until there is something to do without an event; -1: never."""
        cdef int64_t left
        cdef int most = 200 if troubled else -1
        if self.started.first is NULL:
            return most
        left = (self.started.first.due - arcbox_monotonic()) // 1000000 + 1
        if left < 0:
            left = 0
        return <int> left if most < 0 or left < most else most

    cdef void loop(self, bint troubled) noexcept nogil:
        cdef int count, i
        cdef Stream* s
        cdef int64_t before
        cdef uint64_t value
        cdef bint leave = False
        while not leave:
            count = epoll_wait(self.epoll, self.events, EVENTS, self.patience(troubled))
            if count < 0:
                if errno == EINTR:
                    continue
                return
            self.work.now = arcbox_monotonic()
            self.write_parts()
            if troubled and self.work.now - self.last_retry > SECOND // 5:
                self.last_retry = self.work.now
                return
            before = self.work.totals.bytes
            for i in range(count):
                s = <Stream*> arcbox_token(self.events, i)
                if s is NULL:
                    read(self.event, &value, 8)
                    leave = True
                    continue
                serve(self.epoll, s, &self.work)
                if s.ended or (s.stuck and not troubled):
                    leave = True
            if not leave and self.work.totals.bytes - before < HOLD and self.work.now - self.last_round < 300000:
                # Many small writes: gather them.  The pipe holds far more than
                # comes in this time, so the writer does not notice.
                arcbox_pause_us(200)
            self.last_round = self.work.now

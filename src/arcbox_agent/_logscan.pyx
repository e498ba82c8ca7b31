# cython: cdivision=True
"""Finds places in log files without reading them through.

`TailScan` finds, backwards, where the last lines begin; `bisect` finds a time in
a large file.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memmove
from arcbox_agent._file_read cimport _BLOCKED, _END, _MORE, READ_SIZE, last_byte, read_at
from arcbox_agent._lines cimport (
    LINE_WINDOW, PART_LIMIT, STDERR, STDOUT, STREAMS, UNNAMED, Line, Minute, leading_nuls, parse_line,
)

import os


cdef class TailScan:
    """Finds, backwards, where the last `lines` lines of a log begin.

    Goes through one file after the other, newest first: `open(end)` for each,
    then `step(fd)` until it says END (this file's beginning was reached: open
    the next older one) or `done`.  Lines are counted as `Engine` gives them,
    after the filters; a text in parts counts once, and its parts are looked for
    behind at most PART_LIMIT bytes of other lines.

    When done, `starts` has for stdout, stderr and plain lines where theirs
    begin, each as (file, offset), files counted in the order they were opened.
    """

    cdef int64_t lines, found
    cdef bint want[STREAMS]
    cdef bint ranged
    cdef int64_t since, until
    cdef Minute minute
    cdef char* data
    cdef char* scratch
    cdef char* spare
    cdef size_t capacity, start, stop  # data[start:stop] is the file's [low, high)
    cdef int64_t low, high, floor
    cdef size_t block
    cdef bint longer  # the line that ends at high is longer than LINE_WINDOW; its end is dropped
    cdef bint unended
    cdef int file
    cdef bint settled[STREAMS]
    cdef bint need[STREAMS]
    cdef int64_t gap[STREAMS]
    cdef int start_file[STREAMS]
    cdef int64_t start_offset[STREAMS]
    cdef readonly bint done

    def __cinit__(self):
        self.capacity = LINE_WINDOW + READ_SIZE
        self.block = 16384
        self.file = -1

    def __init__(
        self, int64_t lines, *, bint stdout=True, bint stderr=True, since=None, until=None, bint unended=True
    ):
        """unended: a last line without its newline counts (in the first file opened)."""
        if lines < 1:
            raise ValueError("lines must be 1 or more")
        self.lines = lines
        self.want[STDOUT] = self.want[UNNAMED] = stdout
        self.want[STDERR] = stderr
        self.ranged = since is not None or until is not None
        self.since = INT64_MIN if since is None else since
        self.until = INT64_MAX if until is None else until
        self.unended = unended

    def __dealloc__(self):
        free(self.data)
        free(self.scratch)
        free(self.spare)

    def open(self, int64_t end, int64_t floor=0):
        """Begin with a file of which the bytes from `floor`, a line's beginning, to `end` count."""
        cdef int s
        self.file += 1
        self.floor = floor
        if self.file == 0:
            # A stream with nothing to show begins where all ends.
            for s in range(STREAMS):
                self.start_offset[s] = end
        self.low = self.high = end
        self.start = self.stop = self.capacity
        self.longer = False

    @property
    def starts(self):
        return tuple([(self.start_file[s], self.start_offset[s]) for s in range(STREAMS)])

    def step(self, int fd, *, int64_t budget=1 << 20, bint nowait=False):
        """Scan on; MORE, END (of this file) or BLOCKED; `done` says whether all was found."""
        cdef int rc
        if self.data is NULL:
            self.data = <char*> malloc(self.capacity)
            self.scratch = <char*> malloc(LINE_WINDOW)
            self.spare = <char*> malloc(LINE_WINDOW)
            if self.data is NULL or self.scratch is NULL or self.spare is NULL:
                raise MemoryError
        with nogil:
            rc = self.scan(fd, budget, nowait)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return rc

    cdef int scan(self, int fd, int64_t budget, bint nowait) noexcept nogil:
        cdef size_t n, take, nuls
        cdef ssize_t got
        cdef const char* newline
        cdef int64_t begin
        cdef int stream, rc
        while not self.done:
            # The line that ends at high: its newline is the byte before, but for the file's last.
            n = self.stop - self.start
            newline = NULL
            if n:
                # The last byte is this line's own newline, unless it is one without or its end is dropped.
                take = n - 1 if (self.data[self.stop - 1] == c"\n" and not self.longer) else n
                newline = <const char*> last_byte(self.data + self.start, c"\n", take)
            if newline is NULL and self.low > self.floor:
                if budget <= 0:
                    return _MORE
                if n >= LINE_WINDOW:
                    # Too long to hold: only where it begins is looked for.
                    self.longer = True
                    self.stop = self.start
                    n = 0
                take = self.block
                if self.block < READ_SIZE:
                    self.block *= 2
                if <int64_t> take > self.low - self.floor:
                    take = <size_t> (self.low - self.floor)
                if self.start < take:
                    memmove(self.data + self.capacity - n, self.data + self.start, n)
                    self.start = self.capacity - n
                    self.stop = self.capacity
                # Where a block cannot be had without waiting, nothing has changed yet.
                got = read_at(fd, self.data + self.start - take, take, self.low - <int64_t> take, nowait)
                if got == -EAGAIN and nowait:
                    return _BLOCKED
                if got < 0:
                    return <int> got
                if <size_t> got < take:
                    if nowait:
                        return _BLOCKED
                    return -EAGAIN  # the file shrank: the caller begins again
                self.start -= take
                self.low -= take
                budget -= take
                continue
            if newline is NULL and self.high <= self.floor:
                return _END
            begin = self.low + (newline - (self.data + self.start)) + 1 if newline is not NULL else self.floor
            if self.longer:
                rc = self.count_longer(fd, begin, nowait)
                if rc == -EAGAIN and nowait:
                    return _BLOCKED
                if rc < 0:
                    return rc
            else:
                n = <size_t> (self.high - begin)
                take = n
                if n and self.data[self.stop - 1] == c"\n":
                    take -= 1
                if n and take == n and self.file == 0 and not self.unended:
                    # A line that is still being written: what comes begins with it.
                    for stream in range(STREAMS):
                        self.start_offset[stream] = begin
                elif n:
                    nuls = leading_nuls(self.data + self.stop - n, take)
                    if nuls == take:
                        nuls = 0
                    take -= nuls
                    self.count(self.data + self.stop - n + nuls, take, take < LINE_WINDOW, begin)
            self.longer = False
            self.stop = self.start + (<size_t> (begin - self.low))
            self.high = begin
            if begin <= self.floor:
                return _END
        return _END

    cdef int count_longer(self, int fd, int64_t begin, bint nowait) noexcept nogil:
        """Count the line from begin to high, which is longer than LINE_WINDOW; 0 or -errno (-EAGAIN: it shrank).

        Most likely it is a hole with a line of usual length behind it.
        """
        cdef int64_t at = begin
        cdef size_t take, nuls
        cdef ssize_t got
        cdef bint ended
        while True:
            take = LINE_WINDOW if self.high - at > LINE_WINDOW else <size_t> (self.high - at)
            got = read_at(fd, self.spare, take, at, nowait)
            if got < 0:
                return <int> got
            if <size_t> got < take:
                return -EAGAIN
            nuls = leading_nuls(self.spare, take)
            if nuls == 0 or at + <int64_t> nuls >= self.high:
                break
            at += nuls
        ended = take and self.spare[take - 1] == c"\n" and at + <int64_t> take == self.high
        take -= ended
        if take == 0:
            return 0  # nothing but a hole
        self.count(self.spare, take, at + <int64_t> take + ended == self.high and take < LINE_WINDOW, begin)
        return 0

    cdef void count(self, const char* p, size_t n, bint whole, int64_t begin) noexcept nogil:
        cdef Line line
        cdef int s
        parse_line(p, n, whole, &self.minute, self.scratch, &line)
        s = line.stream
        if not self.want[s] or line.hole:
            self.pass_by(-1, n)
            return
        if self.ranged and not (line.stamped and self.since <= line.stamp <= self.until):
            self.pass_by(-1, n)
            return
        if line.more and self.need[s]:
            # A part of a text whose end was counted.
            self.start_file[s] = self.file
            self.start_offset[s] = begin
            self.pass_by(s, n)
            return
        if self.found == self.lines:
            # The end of a text that is not ours: those of its stream begin after it.
            self.need[s] = False
            self.pass_by(s, n)
            return
        self.found += 1
        self.need[s] = True
        self.start_file[s] = self.file
        self.start_offset[s] = begin
        self.pass_by(s, n)

    cdef void pass_by(self, int stream, size_t n) noexcept nogil:
        """Another line is behind us; are we done?"""
        cdef int s
        cdef bint waiting = False
        for s in range(STREAMS):
            self.gap[s] = 0 if s == stream else self.gap[s] + <int64_t> n
            # Plain lines have no parts.
            if s != UNNAMED and self.need[s] and self.gap[s] < PART_LIMIT:
                waiting = True
        if self.found == self.lines and not waiting:
            self.done = True


def bisect(int fd, int64_t size, int64_t stamp, bint after=False):
    """The beginning of a line near where the times pass `stamp`, for files whose times grow.

    Not `after`: every line before it is earlier than stamp.  `after`: every line
    from it on is later.  Where lines have no time it errs towards reading more.
    """
    cdef int64_t low = 0, high = size, middle, place = 0, found
    cdef Minute minute
    cdef Line line
    cdef char* data = <char*> malloc(READ_SIZE)
    cdef char* scratch = <char*> malloc(READ_SIZE)
    cdef ssize_t got = 0
    cdef size_t i
    cdef const char* newline
    cdef bint later, known
    minute.known = minute.second_known = False
    if data is NULL or scratch is NULL:
        free(data)
        free(scratch)
        raise MemoryError
    with nogil:
        # low: 0 or a line's beginning known to be before the place.
        while high - low > READ_SIZE:
            middle = low + (high - low) // 2
            got = read_at(fd, data, READ_SIZE, middle, False)
            if got < 0:
                break
            known = False
            later = not after
            found = middle
            newline = <const char*> memchr(data, c"\n", got)
            while newline is not NULL and not known:
                i = newline + 1 - data
                newline = <const char*> memchr(data + i, c"\n", got - i)
                if newline is NULL:
                    break
                parse_line(data + i, newline - (data + i), True, &minute, scratch, &line)
                if line.stamped:
                    known = True
                    later = line.stamp > stamp if after else line.stamp >= stamp
                    found = middle + <int64_t> i
            if not known and after:
                # Nothing to judge by: the place may lie behind.
                later = False
            if later:
                high = middle
            else:
                low = found if known else middle
        if got >= 0 and not after:
            # low is 0, a line's beginning, or (where nothing could be judged) somewhere.
            place = low
        elif got >= 0:
            # The next line's beginning at or after high.
            place = high
            while place < size:
                got = read_at(fd, data, READ_SIZE, place, False)
                if got <= 0:
                    break
                newline = <const char*> memchr(data, c"\n", got)
                if newline is not NULL:
                    place += newline + 1 - data
                    break
                place += got
    free(data)
    free(scratch)
    if got < 0:
        raise OSError(-got, os.strerror(-got))
    return place

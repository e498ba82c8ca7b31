# cython: cdivision=True
"""The line engine: log files in, LogEntry frames out, no Python object a line.

`Engine` reads a file forwards from an offset and keeps nothing of it but that
offset and the texts whose end it has not seen.  Nothing here knows of sockets,
event loops or clocks; a read that would block can be refused (`nowait`), so that
the caller may choose the thread that waits.
"""

from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from arcbox_agent._file_read cimport READ_SIZE, open_cached_fd, open_file_fd, read_at
from arcbox_agent._lines cimport LINE_WINDOW, PART_LIMIT, STDERR, STDOUT, STREAMS, UNNAMED, Line, Minute, parse_line
from arcbox_agent._log_output cimport (
    CURSOR_LIMIT, ENTRIES, FRAMES_V1, FRAMES_V2, TEXT, Lost, Output, append_gap, split_entries,
)
from arcbox_agent._log_reading cimport INPUT_SIZE, Input, begin_line, run
from arcbox_agent._log_texts cimport Chain, State, chain_end, put_cursor, take_line, wanted

import os

# How a read ended.
MORE = 0  # there is more to read now
END = 1  # the end of the file, or of what was asked
BLOCKED = 2  # only with nowait: the disk would have to be waited for
CHANGED = 3  # what lies before the offset is not what was read there


# Read buffers are big and needed only while reading: they are passed around.
cdef class Buffers:
    cdef Input input
    cdef Output output

    def __cinit__(self):
        self.input.data = <char*> malloc(INPUT_SIZE)
        self.input.scratch = <char*> malloc(LINE_WINDOW)
        if self.input.data is NULL or self.input.scratch is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.input.data)
        free(self.input.scratch)
        free(self.output.data)


cdef list idle_buffers = []

cdef Buffers acquire_buffers():
    return idle_buffers.pop() if idle_buffers else Buffers()

cdef release_buffers(Buffers buffers):
    # One is kept at hand; one whose output grew for a large entry is not.
    if not idle_buffers and buffers.output.capacity <= 4 * READ_SIZE:
        idle_buffers.append(buffers)


# Output of an Engine, by its name.
cdef dict MODES = {"v1": FRAMES_V1, "v2": FRAMES_V2, "text": TEXT, "entries": ENTRIES}


cdef class Engine:
    """Reads log files forwards and gives what their lines say.

    `output`: `v1` or `v2` LogEntry frames (with `trace`), `text` (each line and
    a newline), or `entries`.  `since`, `until`: Unix ns, both inclusive, None:
    unbounded; they are judged line by line of the file, parts too.
    `part_limit`: the longest text of one entry.  `detail`: with cursors and gaps.  `eager`: at the
    end of a read, what there is of a text whose end is missing is given too.
    """

    cdef State state

    def __init__(
        self, str output="entries", *, bytes trace=b"", bint stdout=True, bint stderr=True,
        since=None, until=None, bint timestamps=False, size_t part_limit=PART_LIMIT,
        bint detail=False, bint eager=False,
    ):
        self.state.form.mode = MODES[output]
        self.state.form.detail = detail
        self.state.eager = eager
        if len(trace) > 0xFFFF:
            raise ValueError("a trace id has at most 65535 bytes")
        if part_limit < 1 or part_limit > 1 << 30:
            raise ValueError("part_limit must be from 1 to 2**30")
        if trace:
            self.state.form.trace = <char*> malloc(len(trace))
            if self.state.form.trace is NULL:
                raise MemoryError
            memcpy(self.state.form.trace, PyBytes_AS_STRING(trace), len(trace))
            self.state.form.trace_length = len(trace)
        self.state.want[STDOUT] = self.state.want[UNNAMED] = stdout
        self.state.want[STDERR] = stderr
        self.state.ranged = since is not None or until is not None
        self.state.since = INT64_MIN if since is None else since
        self.state.until = INT64_MAX if until is None else until
        self.state.form.timestamps = timestamps
        self.state.part_limit = part_limit

    def __dealloc__(self):
        cdef int stream
        free(self.state.form.trace)
        for stream in range(STREAMS):
            free(self.state.chains[stream].data)

    @property
    def offset(self):
        """Where the next read begins: always the beginning of a line, but inside a very long one."""
        return self.state.here.offset

    @property
    def entries(self):
        """Entries given so far."""
        return self.state.entries

    @property
    def last_stamp(self):
        """The time of the last entry given, Unix ns."""
        return self.state.last_stamp

    @property
    def nothing(self):
        """Output of no entries."""
        return [] if self.state.form.mode == ENTRIES else b""

    @property
    def open(self):
        """Texts wait for their end: in a chain of parts, or in a very long line."""
        return bool(
            self.state.inside or self.state.chains[STDOUT].open
            or self.state.chains[STDERR].open or self.state.chains[UNNAMED].open
        )

    @property
    def cursor(self):
        """The place behind what was given."""
        cdef char cursor[CURSOR_LIMIT]
        return cursor[:put_cursor(&self.state, -1, False, self.state.whole, cursor)].decode("ascii")

    @property
    def wants(self):
        """Whether lines of stdout and of stderr are given."""
        return bool(self.state.want[STDOUT]), bool(self.state.want[STDERR])

    def is_like(self, Engine other):
        """Whether both stand at one offset, and would go on there in the same way."""
        cdef int stream
        cdef const Chain* mine
        cdef const Chain* theirs
        if self.state.here.offset != other.state.here.offset or self.state.inside or other.state.inside:
            return False
        for stream in range(STREAMS):
            mine = &self.state.chains[stream]
            theirs = &other.state.chains[stream]
            if mine.open != theirs.open or mine.open and (mine.length or theirs.length or mine.begun != theirs.begun):
                return False
        return True

    def go_on_in_texts(self, began, leave_out):
        """After `seek`: these streams are inside a text, whose beginning was given before; by stream.

        leave_out: so many bytes of each stream's next line were given too.
        """
        cdef int stream
        for stream in range(STREAMS):
            self.state.leave_out[stream] = leave_out[stream]
            if began[stream]:
                self.state.chains[stream].open = self.state.chains[stream].begun = True
                self.state.chains[stream].stamped = False
                self.state.chains[stream].stamp = 0

    def gap(self, str stream, uint64_t lost_bytes, uint64_t lost_lines, bint at_least, str reason):
        """Output that tells of a gap in this place."""
        cdef Buffers buffers = acquire_buffers()
        cdef bytes text = reason.encode("utf-8", "replace")
        cdef char cursor[CURSOR_LIMIT]
        cdef size_t length = put_cursor(&self.state, -1, False, self.state.whole, cursor)
        cdef Lost lost
        lost.bytes = lost_bytes
        lost.lines = lost_lines
        lost.at_least = at_least
        lost.reason = text
        lost.reason_length = len(text)
        buffers.output.length = 0
        if append_gap(&self.state.form, &buffers.output, STDERR if stream == "stderr" else STDOUT,
                      self.state.last_stamp, &lost, cursor, length if self.state.line_place.file else 0):
            release_buffers(buffers)
            raise MemoryError
        return self.take(buffers)

    def seek(self, int64_t offset, skip=None, uint64_t file=0):
        """Go on at a line's beginning in a file, which may be another one.

        skip: for each of stdout, stderr and plain lines, the offset before which they are left out.
        file: its inode, for cursors.
        """
        cdef int stream
        if skip is not None and len(skip) != STREAMS:
            raise ValueError(f"skip: expected {STREAMS} offsets, not {len(skip)}")
        self.state.line_place.file = file
        self.state.line_place.offset = offset
        self.state.line_place.taken = self.state.stamp = 0
        self.state.whole = False
        self.state.here.offset = offset
        self.state.here.back = self.state.here.overlap_length = 0
        self.state.inside = self.state.hole = False
        for stream in range(STREAMS):
            self.state.skip[stream] = 0 if skip is None else skip[stream]

    @property
    def line_offset(self):
        """Where the very long line began whose end is missing; None: nothing was read of such a line."""
        return self.state.line.offset if self.state.inside else None

    def step_back(self):
        """Go back to `line_offset`: the end of the file from there on was cut away.

        Returns the rest of the line where parts of it were given already; what was only
        read is forgotten.
        """
        cdef Chain* chain = &self.state.chains[self.state.stream]
        cdef object output = self.nothing
        if self.state.inside:
            if self.state.entries != self.state.line_entries:
                output = self.cut()
            elif not self.state.dropped:
                chain.open = self.state.line_open
                chain.length = self.state.line_length
                if not chain.open:
                    free(chain.data)
                    chain.data = NULL
                    chain.capacity = 0
            self.state.inside = False
            self.state.here = self.state.line
        return output

    def clone(self):
        """Another engine in the same state."""
        cdef Engine other = Engine.__new__(Engine)
        cdef int stream
        cdef Chain* chain
        other.state = self.state
        other.state.form.trace = NULL
        for stream in range(STREAMS):
            other.state.chains[stream].data = NULL
            other.state.chains[stream].capacity = 0
        if self.state.form.trace_length:
            other.state.form.trace = <char*> malloc(self.state.form.trace_length)
            if other.state.form.trace is NULL:
                raise MemoryError
            memcpy(other.state.form.trace, self.state.form.trace, self.state.form.trace_length)
        for stream in range(STREAMS):
            chain = &other.state.chains[stream]
            if chain.length:
                chain.data = <char*> malloc(chain.length)
                if chain.data is NULL:
                    raise MemoryError
                chain.capacity = chain.length
                memcpy(chain.data, self.state.chains[stream].data, chain.length)
        return other

    def read(self, int fd, *, end=None, size_t target=READ_SIZE, int64_t budget=1 << 20, bint nowait=False):
        """Read on; returns how it ended and what came out: `(MORE | END | BLOCKED | CHANGED, output)`.

        Ends once the output has `target` bytes or `budget` bytes were read.  A
        line without its newline is left for the next read.
        """
        cdef Buffers buffers = acquire_buffers()
        cdef int64_t stop = INT64_MAX - READ_SIZE if end is None else end
        cdef int rc
        buffers.output.length = 0
        with nogil:
            rc = run(&self.state, &buffers.input, &buffers.output, fd, stop, target, budget, nowait)
        if rc < 0:
            release_buffers(buffers)
            raise OSError(-rc, os.strerror(-rc))
        return rc, self.take(buffers)

    cdef object take(self, Buffers buffers):
        cdef object output
        if self.state.form.mode == ENTRIES:
            output = split_entries(buffers.output.data, buffers.output.length)
        else:
            output = PyBytes_FromStringAndSize(buffers.output.data, buffers.output.length)
        release_buffers(buffers)
        return output

    def cut(self):
        """End the texts whose end will never come: their file was truncated or is gone."""
        cdef Buffers buffers = acquire_buffers()
        cdef int rc = 0, stream
        buffers.output.length = 0
        for stream in (STDOUT, STDERR, UNNAMED):
            if rc == 0 and self.state.chains[stream].open:
                rc = chain_end(&self.state, &buffers.output, stream, False, False, self.state.whole)
        self.state.inside = False
        if rc < 0:
            release_buffers(buffers)
            raise MemoryError
        return self.take(buffers)

    def end_file(self, int fd, end=None):
        """What the last line of a file says whose newline is missing, when the file will not grow.

        Chains go on: their next part may be in the next file.
        """
        cdef Buffers buffers = acquire_buffers()
        cdef int rc
        buffers.output.length = 0
        rc = self.last_line(buffers, fd, INT64_MAX if end is None else end, False)
        if rc < 0:
            release_buffers(buffers)
            raise OSError(-rc, os.strerror(-rc))
        return self.take(buffers)

    def finish(self, fd=None, end=None):
        """What is left when nothing more will come: the last line of the file, where its
        newline is missing (only with `fd`), and the texts whose end was not seen, each `partial`."""
        cdef Buffers buffers = acquire_buffers()
        cdef int rc = 0, stream
        buffers.output.length = 0
        if fd is not None:
            rc = self.last_line(buffers, fd, INT64_MAX if end is None else end, True)
        for stream in (STDOUT, STDERR, UNNAMED):
            if rc == 0 and self.state.chains[stream].open and (
                self.state.chains[stream].length or not self.state.chains[stream].begun
            ):
                rc = chain_end(&self.state, &buffers.output, stream, True, True, self.state.whole)
        self.state.inside = False
        if rc < 0:
            release_buffers(buffers)
            raise OSError(-rc, os.strerror(-rc))
        return self.take(buffers)

    cdef int last_line(self, Buffers buffers, int fd, int64_t end, bint more):
        cdef Line line
        cdef ssize_t got = 0
        cdef int64_t size = end - self.state.here.offset
        cdef int rc = 0
        if self.state.inside:
            self.state.inside = False
            if not more and not self.state.dropped and not self.state.more:
                return chain_end(&self.state, &buffers.output, self.state.stream, False, False, True)
            return 0
        if size > LINE_WINDOW:
            size = LINE_WINDOW
        if size > 0:
            with nogil:
                got = read_at(fd, buffers.input.data, <size_t> size, self.state.here.offset, False)
        if got < 0:
            return <int> got
        if got and memchr(buffers.input.data, c"\n", got) is NULL:
            parse_line(buffers.input.data, got, True, &self.state.minute, buffers.input.scratch, &line)
            begin_line(&self.state, &line, self.state.here.offset)
            if wanted(&self.state, &line, self.state.here.offset) and (
                self.state.leave_out[line.stream] == 0 or self.state.leave_out[line.stream] < <int64_t> line.length
            ):
                line.more = line.more or more
                rc = take_line(&self.state, &buffers.output, &line)
            self.state.here.offset += got
            self.state.here.back = self.state.here.overlap_length = 0
        return rc


def open_cached(path):
    """A descriptor to read a file with; BlockingIOError where the disk, or an old kernel, would make us wait."""
    cdef bytes raw = os.fsencode(path)
    cdef int fd = open_cached_fd(raw)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    return fd


def open_unlinked(path, bint no_links):
    """A descriptor to read a file with.

    OSError with ELOOP: its name, or with no_links any part of its path, is a link.
    """
    cdef bytes raw = os.fsencode(path)
    cdef const char* name = raw
    cdef int fd
    with nogil:
        fd = open_file_fd(name, no_links)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    return fd


def line_at(int fd, int64_t offset):
    """Of the line that begins at an offset: its time (0: it has none), its stream and where the next line begins.

    None: no line begins there.  The end of the file is taken for the next line's beginning.
    """
    cdef Buffers buffers = acquire_buffers()
    cdef const char* newline = NULL
    cdef Line line
    cdef Minute minute
    cdef ssize_t got
    cdef int64_t at = offset
    cdef char before = c"\n"
    minute.known = minute.second_known = False
    try:
        got = read_at(fd, &before, 1, offset - 1, False) if offset else 1
        if got == 1 and before in (c"\n", 0):
            got = read_at(fd, buffers.input.data, LINE_WINDOW, offset, False)
        else:
            return None
        if got <= 0:
            return None
        newline = <const char*> memchr(buffers.input.data, c"\n", got)
        parse_line(buffers.input.data, newline - buffers.input.data if newline is not NULL else got,
                   newline is not NULL or got < LINE_WINDOW, &minute, buffers.input.scratch, &line)
        while newline is NULL and got > 0:
            at += got
            got = read_at(fd, buffers.input.data, LINE_WINDOW, at, False)
            newline = <const char*> memchr(buffers.input.data, c"\n", got) if got > 0 else NULL
        return line.stamp, line.stream, at + (newline + 1 - buffers.input.data if newline is not NULL else 0)
    finally:
        release_buffers(buffers)

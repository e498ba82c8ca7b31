# cython: cdivision=True
"""The line engine: log files in, LogEntry frames out, no Python object a line.

`Engine` reads a file forwards from an offset and keeps nothing of it but that
offset and the texts whose end it has not seen.  Nothing here knows of sockets,
event loops or clocks; a read that would block can be refused (`nowait`), so that
the caller may choose the thread that waits.
"""

from libc.errno cimport EAGAIN, ENOMEM, errno
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from arcbox_agent._file_read cimport _BLOCKED, _CHANGED, _END, _MORE, READ_SIZE, open_cached_fd, open_file_fd, read_at
from arcbox_agent._lines cimport (
    LINE_WINDOW, PART_LIMIT, STDERR, STDOUT, STREAMS, UNNAMED, Line, Minute, leading_nuls, parse_line,
)

from arcbox_agent._log_output cimport (
    CURSOR_LIMIT, ENTRIES, FRAMES_V1, FRAMES_V2, TEXT, Form, Lost, Output, append_entry, append_gap, split_entries,
)

import os

# How a read ended.
MORE = 0  # there is more to read now
END = 1  # the end of the file, or of what was asked
BLOCKED = 2  # only with nowait: the disk would have to be waited for
CHANGED = 3  # what lies before the offset is not what was read there

cdef enum:
    # To see a file that was truncated and has grown past the offset since, the
    # line before the offset is read again, and its first bytes, which hold its
    # time, compared: OVERLAP of them, where the line is not longer than BACK.
    OVERLAP = 48
    BACK = 4096
    INPUT_SIZE = BACK + LINE_WINDOW + READ_SIZE
    # The cached part of a file ends with a page; the size of every page is a multiple of it.
    PAGE = 4096

# A place in a log: bytes of the text of the line that begins at an offset of a file.
cdef struct Place:
    uint64_t file
    int64_t offset
    int64_t taken


# A text whose end has not been seen yet.
cdef struct Chain:
    Place start  # of `data`
    char* data
    size_t length
    size_t capacity
    int64_t stamp
    bint stamped
    bint open
    bint begun  # a part of it was delivered


# A line's beginning, or any other offset of a file, and what lies before it.
cdef struct Position:
    int64_t offset
    int back  # so far before the offset a read begins
    int overlap_length
    char overlap[OVERLAP]  # what is to be found there


# All that stays between two reads.
cdef struct State:
    Form form
    bint want[STREAMS]
    bint ranged
    int64_t since
    int64_t until
    size_t part_limit
    Position here  # of the first byte not yet used up
    int64_t skip[STREAMS]  # lines of this stream that begin before it are left out
    int64_t leave_out[STREAMS]  # bytes of the text of the stream's next line
    bint eager  # at the end of what there is, a text that has not ended is given as far as it goes
    # The line at hand, or the last one: where it begins, how much of its text is used up, whether all of it is.
    Place line_place
    int64_t stamp
    bint whole
    int64_t entries
    int64_t last_stamp
    # The engine is inside a line longer than LINE_WINDOW, which flows through in pieces.
    bint inside
    bint hole  # the bytes before the offset are a hole as long as LINE_WINDOW, which may go on
    bint dropped
    bint more
    bint unended
    int stream
    # Where it began, and how its stream's chain and `entries` stood there.
    Position line
    bint line_open
    size_t line_length
    int64_t line_entries
    Minute minute
    Chain chains[STREAMS]


# -------------------------------------------------------------------- chains


cdef inline char* put_hex(char* out, uint64_t value) noexcept nogil:
    cdef int shift = 60
    while shift and (value >> shift) == 0:
        shift -= 4
    while shift >= 0:
        out[0] = b"0123456789abcdef"[(value >> shift) & 15]
        out += 1
        shift -= 4
    return out


cdef size_t put_cursor(const State* state, int stream, bint open_, bint whole, char* out) noexcept nogil:
    """Write the place behind an entry of a stream, at most CURSOR_LIMIT bytes; their number.

        FILE-OFFSET-STAMP[tTAKEN][o][OFILE.OFFSET.TAKEN][e][E...][u][U...]   (hexadecimal)

    The line that begins at FILE and OFFSET and has this time was the last one; tTAKEN: only so
    many bytes of its text.  o (e, u): stdout (stderr, plain text) is inside a text.  O: what of
    stdout was read and not given begins there.

    open_: the entry's text goes on.  whole: the line at hand ends with the entry.
    """
    cdef char* p = put_hex(out, state.line_place.file)
    cdef const Chain* chain
    cdef int s
    p[0] = c"-"
    p = put_hex(p + 1, <uint64_t> state.line_place.offset)
    p[0] = c"-"
    p = put_hex(p + 1, <uint64_t> state.stamp)
    if not whole:
        p[0] = c"t"
        p = put_hex(p + 1, <uint64_t> (state.line_place.taken if stream == state.stream else 0))
    for s in range(STREAMS):
        chain = &state.chains[s]
        if (open_ if s == stream else chain.open and chain.begun):
            p[0] = b"oeu"[s]
            p += 1
        if s != stream and chain.open and (chain.length or not chain.begun):
            p[0] = b"OEU"[s]
            p = put_hex(p + 1, chain.start.file)
            p[0] = c"."
            p = put_hex(p + 1, <uint64_t> chain.start.offset)
            p[0] = c"."
            p = put_hex(p + 1, <uint64_t> chain.start.taken)
    return p - out


cdef int emit(
    State* state, Output* out, int stream, bint stamped, int64_t stamp, const char* canonical,
    const char* text, size_t n, bint partial, bint first, bint open_, bint whole,
) noexcept nogil:
    """Append one entry and count it; 0 or -ENOMEM.  open_, whole: see put_cursor."""
    cdef char cursor[CURSOR_LIMIT]
    cdef size_t length = put_cursor(state, stream, open_, whole, cursor) if state.form.detail else 0
    cdef int rc = append_entry(
        &state.form, out, stream, stamp, canonical, text, n, stamped and first, partial, cursor, length)
    if rc == 0:
        state.entries += 1
        state.last_stamp = stamp
    return rc


cdef int chain_add(State* state, Output* out, int stream, const char* text, size_t n) noexcept nogil:
    """Add to a text; what is beyond part_limit goes out as parts, once it is sure that more follows."""
    cdef Chain* chain = &state.chains[stream]
    cdef size_t take, capacity
    cdef char* data
    cdef int rc
    while n:
        if chain.length == state.part_limit:
            rc = emit(state, out, stream, chain.stamped, chain.stamp, NULL,
                      chain.data, chain.length, True, not chain.begun, True, False)
            if rc:
                return rc
            chain.begun = True
            chain.length = 0
        if chain.length == 0:
            chain.start = state.line_place
        take = state.part_limit - chain.length
        if take > n:
            take = n
        if chain.length + take > chain.capacity:
            capacity = chain.capacity * 2 if chain.capacity * 2 > chain.length + take else chain.length + take
            if capacity > state.part_limit:
                capacity = state.part_limit
            data = <char*> realloc(chain.data, capacity)
            if data is NULL:
                return -ENOMEM
            chain.data = data
            chain.capacity = capacity
        memcpy(chain.data + chain.length, text, take)
        chain.length += take
        state.line_place.taken += take
        text += take
        n -= take
    return 0


cdef int chain_flush(State* state, Output* out, int stream) noexcept nogil:
    """Give what there is of a text that goes on."""
    cdef Chain* chain = &state.chains[stream]
    cdef int rc
    if not chain.open or chain.length == 0:
        return 0
    rc = emit(state, out, stream, chain.stamped, chain.stamp, NULL,
              chain.data, chain.length, True, not chain.begun, True, state.whole)
    chain.begun = True
    chain.length = 0
    return rc


cdef int chain_end(State* state, Output* out, int stream, bint partial, bint open_, bint whole) noexcept nogil:
    """Give the last of a text.  open_, whole: see put_cursor."""
    cdef Chain* chain = &state.chains[stream]
    cdef int rc = emit(state, out, stream, chain.stamped, chain.stamp, NULL,
                       chain.data, chain.length, partial, not chain.begun, open_, whole)
    free(chain.data)  # idle followers hold nothing
    chain.data = NULL
    chain.length = chain.capacity = 0
    chain.open = chain.begun = False
    return rc


cdef inline bint wanted(State* state, Line* line, int64_t begin) noexcept nogil:
    if not state.want[line.stream] or begin < state.skip[line.stream] or line.hole:
        return False
    if state.ranged:
        # A line without a time is outside every range.
        return line.stamped and state.since <= line.stamp <= state.until
    return True


cdef inline void chain_open(State* state, Line* line) noexcept nogil:
    cdef Chain* chain = &state.chains[line.stream]
    if not chain.open:
        chain.open = True
        chain.begun = False
        chain.start = state.line_place
        chain.stamp = line.stamp
        chain.stamped = line.stamped
    elif not chain.stamped:
        # Its first parts were given before a cursor.
        chain.stamp = line.stamp
        chain.stamped = line.stamped


cdef inline const char* number_at(const char* p, const char* end, uint64_t* value) noexcept nogil:
    value[0] = 0
    while p < end and c"0" <= p[0] <= c"9":
        value[0] = value[0] * 10 + <uint64_t> (p[0] - c"0")
        p += 1
    return p


cdef const char* word_at(const char* p, const char* end, const char* word, size_t n) noexcept nogil:
    """Behind the word at p; NULL: it is not there."""
    return p + n if p is not NULL and <size_t> (end - p) >= n and memcmp(p, word, n) == 0 else NULL


cdef int take_note(State* state, Output* out, Line* line) noexcept nogil:
    """What the capture says of lost output (`_spool.report_gap`), as a gap; a text that goes on is cut off there."""
    cdef Chain* chain = &state.chains[line.stream]
    cdef const char* end = line.text + line.length
    cdef const char* p = word_at(line.text, end, b"[output lost: ", 14)
    cdef char cursor[CURSOR_LIMIT]
    cdef Lost lost
    cdef int rc
    if chain.open:
        # Where all of it was given already, there is nothing to add.
        rc = 0 if chain.begun and chain.length == 0 else chain_end(state, out, line.stream, True, False, False)
        if rc:
            return rc
        chain.open = chain.begun = False
    lost.bytes = lost.lines = 0
    if p is not NULL:
        p = word_at(number_at(p, end, &lost.bytes), end, b" bytes, ", 8)
    if p is not NULL:
        p = word_at(number_at(p, end, &lost.lines), end, b" lines: ", 8)
    lost.at_least = p is NULL
    if p is NULL:
        p = line.text
    elif end > p and (end - 1)[0] == c"]":
        end -= 1
    lost.reason = p
    lost.reason_length = end - p
    state.entries += 1
    state.last_stamp = line.stamp
    return append_gap(&state.form, out, line.stream, line.stamp, &lost,
                      cursor, put_cursor(state, line.stream, False, True, cursor))


cdef inline void leave_out(State* state, Line* line) noexcept nogil:
    """The beginning of this text was given before a cursor."""
    cdef size_t n = <size_t> state.leave_out[line.stream]
    if n > line.length:
        n = line.length
    line.text += n
    line.length -= n
    line.canonical = NULL
    state.line_place.taken = <int64_t> n
    state.leave_out[line.stream] = 0


cdef int take_line(State* state, Output* out, Line* line) noexcept nogil:
    """A whole line that is wanted."""
    cdef int rc
    if state.leave_out[line.stream]:
        leave_out(state, line)
    if line.note and state.form.detail:
        return take_note(state, out, line)
    if not line.more and not state.chains[line.stream].open and line.length <= state.part_limit:
        return emit(state, out, line.stream, line.stamped, line.stamp, line.canonical,
                    line.text, line.length, line.unended, True, False, True)
    chain_open(state, line)
    rc = chain_add(state, out, line.stream, line.text, line.length)
    if rc == 0 and not line.more:
        rc = chain_end(state, out, line.stream, line.unended, False, True)
    return rc


cdef struct Input:
    char* data
    char* scratch  # LINE_WINDOW bytes for unescaping
    size_t start  # first byte not used up
    size_t stop
    ssize_t last  # where the last line before start begins; below 0: not in here


cdef void remember(Position* position, const Position* start, const Input* inp) noexcept nogil:
    """Note what lies before inp.start.  `start`: where this read began."""
    cdef size_t back
    if inp.last < 0:
        # Nothing is used up yet.
        if position is not start:
            position[0] = start[0]
        return
    back = inp.start - <size_t> inp.last
    if back > BACK:
        back = OVERLAP
    position.back = <int> back
    position.overlap_length = <int> back if back < OVERLAP else OVERLAP
    memcpy(position.overlap, inp.data + inp.start - back, position.overlap_length)


cdef inline void begin_line(State* state, Line* line, int64_t offset) noexcept nogil:
    state.line_place.offset = offset
    state.line_place.taken = 0
    state.stamp = line.stamp
    state.stream = line.stream
    state.whole = False


cdef int take_lines(State* state, Input* inp, Output* out, size_t target) noexcept nogil:
    """Use up the whole lines of the input, until there is no more or target bytes came out.

    1: a line's end is missing; 0: enough for now; below: -errno.
    """
    cdef const char* p
    cdef const char* newline
    cdef size_t n, nuls, left
    cdef Line line
    cdef int rc
    cdef int64_t base = state.here.offset - <int64_t> inp.start  # of inp.data[0]
    while out.length < target:
        n = inp.stop - inp.start
        if n == 0:
            return 1
        p = inp.data + inp.start
        newline = <const char*> memchr(p, c"\n", n)
        if newline is not NULL:
            n = newline - p
        elif not state.inside and n < LINE_WINDOW:
            return 1
        rc = 0
        if not state.inside and (state.hole or (p[0] == 0 and n >= LINE_WINDOW)):
            # A hole of any length, and its newline: what is behind it is looked at as the line that it is.
            nuls = leading_nuls(p, n)
            if nuls == 0 and p[0] == c"\n":
                nuls = 1
                state.hole = False
            else:
                state.hole = nuls > 0
            if nuls:
                inp.last = <ssize_t> inp.start
                inp.start += nuls
                state.here.offset = base + <int64_t> inp.start
                continue
        if state.inside:
            if not state.dropped:
                left = <size_t> state.leave_out[state.stream]
                if left > n:
                    left = n
                state.leave_out[state.stream] -= left
                state.line_place.taken += left
                rc = chain_add(state, out, state.stream, p + left, n - left)
                if rc == 0 and newline is not NULL and not state.more:
                    rc = chain_end(state, out, state.stream, state.unended, False, True)
            state.inside = newline is NULL
        elif newline is not NULL and n < LINE_WINDOW:
            parse_line(p, n, True, &state.minute, inp.scratch, &line)
            begin_line(state, &line, base + <int64_t> inp.start)
            if wanted(state, &line, base + <int64_t> inp.start):
                rc = take_line(state, out, &line)
        else:
            parse_line(p, n, False, &state.minute, inp.scratch, &line)
            begin_line(state, &line, base + <int64_t> inp.start)
            state.dropped = not wanted(state, &line, base + <int64_t> inp.start)
            state.more = line.more
            state.unended = line.unended
            state.inside = newline is NULL
            if state.inside:
                remember(&state.line, &state.here, inp)
                state.line.offset = base + <int64_t> inp.start
                state.line_open = state.chains[line.stream].open
                state.line_length = state.chains[line.stream].length
                state.line_entries = state.entries
            if not state.dropped:
                chain_open(state, &line)
                left = <size_t> state.leave_out[line.stream]
                if left:
                    leave_out(state, &line)
                    state.leave_out[line.stream] = <int64_t> left - state.line_place.taken
                rc = chain_add(state, out, line.stream, line.text, line.length)
                if rc == 0 and newline is not NULL and not line.more:
                    rc = chain_end(state, out, line.stream, line.unended, False, True)
        if rc:
            return rc
        state.whole = newline is not NULL
        inp.last = <ssize_t> inp.start
        inp.start += n + (newline is not NULL)
        state.here.offset = base + <int64_t> inp.start
    return 0


cdef int run(
    State* state, Input* inp, Output* out, int fd, int64_t end, size_t target, int64_t budget, bint nowait,
) noexcept nogil:
    """Read from state.here.offset on; how it ended (_MORE.._CHANGED), or -errno."""
    cdef size_t want, keep
    cdef ssize_t got
    cdef int rc, stream
    cdef bint first = True, last = False, cut
    cdef int64_t at = state.here.offset - state.here.back  # of the next byte to read
    inp.start = inp.stop = 0
    inp.last = -1
    while True:
        if not first and inp.start > BACK:
            # Keep what is not used up, and what may be needed to recognise the place.
            keep = inp.start - BACK
            memmove(inp.data, inp.data + keep, inp.stop - keep)
            inp.start -= keep
            inp.stop -= keep
            if inp.last >= 0:
                # Of a line longer than what is kept, the rest stands for it.
                inp.last = inp.last - <ssize_t> keep if inp.last > <ssize_t> keep else 0
        want = INPUT_SIZE - inp.stop
        if want > READ_SIZE:
            want = READ_SIZE
        if at + <int64_t> want > end:
            want = <size_t> (end - at) if end > at else 0
        got = read_at(fd, inp.data + inp.stop, want, at, nowait) if want else 0
        if got == -EAGAIN and nowait:
            # Return the output so far; the caller repeats the blocking read in a thread.
            rc = _MORE if out.length else _BLOCKED
            break
        if got < 0:
            return <int> got
        # The end of the file, or only of its cached part: the next read shows which.
        cut = nowait and 0 < <size_t> got < want and (at + got) % PAGE == 0
        last = (<size_t> got < want and not cut) or want == 0 or at + got >= end
        inp.stop += got
        at += got
        budget -= got
        if first:
            first = False
            if cut and got < state.here.back:
                return _BLOCKED
            if got < state.here.back or memcmp(inp.data, state.here.overlap, state.here.overlap_length) != 0:
                return _CHANGED
            inp.start = state.here.back
        rc = take_lines(state, inp, out, target)
        if rc < 0:
            return rc
        if rc == 0:
            rc = _MORE
            break
        if last:
            rc = _END
            break
        if budget <= 0:
            rc = _MORE
            break
    remember(&state.here, &state.here, inp)
    if rc == _END and state.eager:
        for stream in range(STREAMS):
            if chain_flush(state, out, stream):
                return -ENOMEM
    return rc


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

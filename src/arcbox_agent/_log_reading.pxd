# A file's bytes into lines, and each line that is wanted to the texts (_log_texts.pxd).
# Nothing here holds the GIL.  All of it is compiled into _logs.

from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy, memmove
from arcbox_agent._file_read cimport _BLOCKED, _CHANGED, _END, _MORE, READ_SIZE, read_at
from arcbox_agent._lines cimport LINE_WINDOW, STREAMS, Line, leading_nuls, parse_line
from arcbox_agent._log_output cimport Output
from arcbox_agent._log_texts cimport (
    BACK, OVERLAP, Position, State, chain_add, chain_end, chain_flush, chain_open, leave_out, take_line, wanted,
)

cdef enum:
    INPUT_SIZE = BACK + LINE_WINDOW + READ_SIZE
    # The cached part of a file ends with a page; the size of every page is a multiple of it.
    PAGE = 4096


cdef struct Input:
    char* data
    char* scratch  # LINE_WINDOW bytes for unescaping
    size_t start  # first byte not used up
    size_t stop
    ssize_t last  # where the last line before start begins; below 0: not in here


cdef inline void remember(Position* position, const Position* start, const Input* inp) noexcept nogil:
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


cdef inline int take_lines(State* state, Input* inp, Output* out, size_t target) noexcept nogil:
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


cdef inline int run(
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

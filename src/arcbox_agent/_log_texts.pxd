# What the line engine keeps between two reads: its place, and the texts whose end it has not seen.
# A line that is wanted becomes an entry, or a part of its stream's text; how an entry is written is
# _log_output's.  All of it is compiled into _logs.

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy
from arcbox_agent._lines cimport LINE_WINDOW, STREAMS, Line, Minute
from arcbox_agent._log_output cimport CURSOR_LIMIT, Form, Lost, Output, append_entry, append_gap

cdef enum:
    # To see a file that was truncated and has grown past the offset since, the
    # line before the offset is read again, and its first bytes, which hold its
    # time, compared: OVERLAP of them, where the line is not longer than BACK.
    OVERLAP = 48
    BACK = 4096

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


cdef inline size_t put_cursor(const State* state, int stream, bint open_, bint whole, char* out) noexcept nogil:
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


cdef inline int emit(
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


cdef inline int chain_add(State* state, Output* out, int stream, const char* text, size_t n) noexcept nogil:
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


cdef inline int chain_flush(State* state, Output* out, int stream) noexcept nogil:
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


cdef inline int chain_end(State* state, Output* out, int stream, bint partial, bint open_, bint whole) noexcept nogil:
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


cdef inline const char* word_at(const char* p, const char* end, const char* word, size_t n) noexcept nogil:
    """Behind the word at p; NULL: it is not there."""
    return p + n if p is not NULL and <size_t> (end - p) >= n and memcmp(p, word, n) == 0 else NULL


cdef inline int take_note(State* state, Output* out, Line* line) noexcept nogil:
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


cdef inline int take_line(State* state, Output* out, Line* line) noexcept nogil:
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

# cython: cdivision=True
"""Entries of a log as LogEntry frames (V1, V2), as text, or as Python objects.

    V1  u32 length, u32 type |                | stream, data, timestamp: int64,     partial, cursor, gap
    V2  u32 length, u32 type | u16, trace id  | stream, data, timestamp: Timestamp, partial, cursor, gap

The fields are in the order of their numbers, as the generated classes write them; a test
compares both.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from arcbox_agent._bytes cimport append_block, append_u16, append_u32, append_varint, u32_at, varint_size
from arcbox_agent._lines cimport NANOSECONDS, STAMP_LENGTH, STDERR, format_stamp
from arcbox_agent._tags cimport (
    TAG_LOG_ENTRY_CURSOR, TAG_LOG_ENTRY_DATA, TAG_LOG_ENTRY_GAP, TAG_LOG_ENTRY_PARTIAL, TAG_LOG_ENTRY_STREAM,
    TAG_LOG_ENTRY_TIMESTAMP,
    TAG_LOG_ENTRY_V2_TIMESTAMP, TAG_LOG_GAP_AT_LEAST, TAG_LOG_GAP_BYTES, TAG_LOG_GAP_LINES, TAG_LOG_GAP_REASON,
    TAG_TIMESTAMP_NANOS, TAG_TIMESTAMP_SECONDS, TYPE_LOG_ENTRY,
)

cdef enum:
    # More than all of an entry has but its data, the trace id and a gap's reason.
    ENTRY_HEAD = 200 + CURSOR_LIMIT


cdef uint8_t* make_room(Output* out, size_t n) noexcept nogil:
    """The end of the output, with n bytes behind it; NULL: no memory."""
    cdef size_t capacity = out.capacity
    cdef char* data
    if out.length + n > capacity:
        capacity = capacity * 2 if capacity * 2 > out.length + n else out.length + n
        data = <char*> realloc(out.data, capacity)
        if data is NULL:
            return NULL
        out.data = data
        out.capacity = capacity
    return <uint8_t*> out.data + out.length


# The time of an entry, and how many bytes its fields have.
cdef struct Time:
    uint64_t seconds  # V1: all of the stamp
    uint64_t nanos
    size_t size  # of the message Timestamp in V2, of the varint in V1
    size_t field  # with its tag and length; 0: the field is left out


cdef inline Time time_of(int mode, int64_t stamp) noexcept nogil:
    cdef Time time
    cdef int64_t seconds = stamp, nanos = 0
    time.seconds = time.nanos = time.size = time.field = 0
    if stamp == 0:
        return time
    if mode == FRAMES_V1:
        time.seconds = <uint64_t> stamp
        time.size = varint_size(time.seconds)
        time.field = 1 + time.size
        return time
    seconds = stamp // NANOSECONDS
    nanos = stamp - seconds * NANOSECONDS
    if nanos < 0:  # a division rounds down only in the build with checks
        seconds -= 1
        nanos += NANOSECONDS
    time.seconds = <uint64_t> seconds
    time.nanos = <uint64_t> nanos
    if seconds:
        time.size += 1 + varint_size(time.seconds)
    if nanos:
        time.size += 1 + varint_size(time.nanos)
    time.field = 2 + time.size
    return time


cdef inline uint8_t* append_head(
    const Form* form, uint8_t* p, int stream, size_t data_length, size_t rest) noexcept nogil:
    """A frame up to the bytes of its data.  rest: the length of what `append_tail` and others add."""
    cdef size_t payload = 8 + rest
    if data_length:
        payload += 1 + varint_size(data_length) + data_length
    if form.mode == FRAMES_V1:
        p = append_u32(p, <uint32_t> (4 + payload))
        p = append_u32(p, TYPE_LOG_ENTRY)
    else:
        p = append_u32(p, <uint32_t> (6 + form.trace_length + payload))
        p = append_u32(p, TYPE_LOG_ENTRY)
        p = append_u16(p, <uint32_t> form.trace_length)
        p = append_block(p, form.trace, form.trace_length)
    p[0] = TAG_LOG_ENTRY_STREAM
    p[1] = 6
    memcpy(p + 2, b"stderr" if stream == STDERR else b"stdout", 6)
    p += 8
    if data_length:
        p[0] = TAG_LOG_ENTRY_DATA
        p = append_varint(p + 1, data_length)
    return p


cdef inline size_t tail_length(const Time* time, bint partial, size_t cursor_length) noexcept nogil:
    cdef size_t n = time.field + (3 if partial else 0)
    if cursor_length:
        n += 2 + varint_size(cursor_length) + cursor_length
    return n


cdef inline uint8_t* append_tail(
    int mode, uint8_t* p, const Time* time, bint partial, const char* cursor, size_t cursor_length) noexcept nogil:
    """A frame's fields behind its data, but the gap."""
    if time.field:
        if mode == FRAMES_V1:
            p[0] = TAG_LOG_ENTRY_TIMESTAMP
            p = append_varint(p + 1, time.seconds)
        else:
            p[0] = TAG_LOG_ENTRY_V2_TIMESTAMP
            p[1] = <uint8_t> time.size
            p += 2
            if time.seconds:
                p[0] = TAG_TIMESTAMP_SECONDS
                p = append_varint(p + 1, time.seconds)
            if time.nanos:
                p[0] = TAG_TIMESTAMP_NANOS
                p = append_varint(p + 1, time.nanos)
    if partial:
        p = append_varint(p, TAG_LOG_ENTRY_PARTIAL)
        p[0] = 1
        p += 1
    if cursor_length:
        p = append_varint(p, TAG_LOG_ENTRY_CURSOR)
        p = append_varint(p, cursor_length)
        p = append_block(p, cursor, cursor_length)
    return p


cdef int append_entry(
    const Form* form, Output* out, int stream, int64_t stamp, const char* canonical,
    const char* text, size_t n, bint prefixed, bint partial, const char* cursor, size_t cursor_length,
) noexcept nogil:
    """Append one entry; 0 or -ENOMEM.

    stamp: Unix ns, 0: none.  canonical: the stamp as format_stamp writes it, or NULL.
    prefixed: the time goes before the text, where the form has timestamps.
    cursor_length: 0: none.
    """
    cdef size_t prefix = STAMP_LENGTH + 1 if prefixed and form.timestamps else 0
    cdef bint framed = form.mode == FRAMES_V1 or form.mode == FRAMES_V2
    cdef Time time
    cdef uint8_t* p = make_room(out, n + form.trace_length + ENTRY_HEAD)
    if p is NULL:
        return -ENOMEM
    if framed:
        time = time_of(form.mode, stamp)
        p = append_head(form, p, stream, prefix + n, tail_length(&time, partial, cursor_length))
    elif form.mode == ENTRIES:
        p = append_record(p, stream, stamp, partial, False, prefix + n, cursor, cursor_length)
    if prefix:
        if canonical is not NULL:
            memcpy(p, canonical, STAMP_LENGTH)
        else:
            format_stamp(stamp, <char*> p)
        p[STAMP_LENGTH] = c" "
        p += prefix
    p = append_block(p, text, n)
    if framed:
        p = append_tail(form.mode, p, &time, partial, cursor, cursor_length)
    elif form.mode == TEXT and not partial:
        p[0] = c"\n"
        p += 1
    out.length = p - <uint8_t*> out.data
    return 0


cdef inline uint8_t* append_record(
    uint8_t* p, int stream, int64_t stamp, bint partial, bint gap, size_t length,
    const char* cursor, size_t cursor_length,
) noexcept nogil:
    """An entry for `split_entries`, up to its data."""
    memcpy(p, &stamp, 8)
    p[8] = <uint8_t> stream
    p[9] = partial
    p[10] = gap
    p[11] = <uint8_t> cursor_length
    p = append_u32(p + 12, <uint32_t> length)
    return append_block(p, cursor, cursor_length)


cdef int append_gap(
    const Form* form, Output* out, int stream, int64_t stamp, const Lost* lost,
    const char* cursor, size_t cursor_length,
) noexcept nogil:
    """Append an entry that tells of a gap, where the form has them; 0 or -ENOMEM."""
    cdef size_t n = 0, rest
    cdef Time time
    cdef uint8_t* p
    if not form.detail:
        return 0
    p = make_room(out, lost.reason_length + form.trace_length + ENTRY_HEAD)
    if p is NULL:
        return -ENOMEM
    if form.mode == ENTRIES:
        p = append_record(p, stream, stamp, False, True, 17 + lost.reason_length, cursor, cursor_length)
        memcpy(p, &lost.bytes, 8)
        memcpy(p + 8, &lost.lines, 8)
        p[16] = lost.at_least
        p = append_block(p + 17, lost.reason, lost.reason_length)
    else:
        if lost.bytes:
            n += 1 + varint_size(lost.bytes)
        if lost.lines:
            n += 1 + varint_size(lost.lines)
        if lost.at_least:
            n += 2
        if lost.reason_length:
            n += 1 + varint_size(lost.reason_length) + lost.reason_length
        time = time_of(form.mode, stamp)
        rest = tail_length(&time, False, cursor_length)
        p = append_head(form, p, stream, 0, rest + 2 + varint_size(n) + n)
        p = append_tail(form.mode, p, &time, False, cursor, cursor_length)
        p = append_varint(p, TAG_LOG_ENTRY_GAP)
        p = append_varint(p, n)
        if lost.bytes:
            p[0] = TAG_LOG_GAP_BYTES
            p = append_varint(p + 1, lost.bytes)
        if lost.lines:
            p[0] = TAG_LOG_GAP_LINES
            p = append_varint(p + 1, lost.lines)
        if lost.at_least:
            p[0] = TAG_LOG_GAP_AT_LEAST
            p[1] = 1
            p += 2
        if lost.reason_length:
            p[0] = TAG_LOG_GAP_REASON
            p = append_varint(p + 1, lost.reason_length)
            p = append_block(p, lost.reason, lost.reason_length)
    out.length = p - <uint8_t*> out.data
    return 0


cdef class Gap:
    """Output that is not in the log any more, or never was, as LogGap has it.

    `bytes` (newlines included), `lines`: as far as known.  `at_least`: more may be lost.
    """

    cdef readonly uint64_t bytes
    cdef readonly uint64_t lines
    cdef readonly bint at_least
    cdef readonly str reason

    def __init__(self, uint64_t bytes=0, uint64_t lines=0, bint at_least=False, str reason=""):
        self.bytes = bytes
        self.lines = lines
        self.at_least = at_least
        self.reason = reason

    def __repr__(self):
        return f"Gap(bytes={self.bytes}, lines={self.lines}, at_least={self.at_least}, reason={self.reason!r})"

    def __eq__(self, other):
        if not isinstance(other, Gap):
            return NotImplemented
        return (self.bytes, self.lines, self.at_least, self.reason) == (
            other.bytes, other.lines, other.at_least, other.reason
        )

    __hash__ = None


cdef class Entry:
    """One line of a log, as LogEntry has it.

    `stream`: `stdout` or `stderr`.  `data`: the line, without its newline.
    `timestamp`: Unix ns, 0 where the line has none.  `partial`: the line goes
    on in the next entry of this stream, or ends without a newline.
    `cursor`: the place behind it, for `read_log(after=...)`.
    `gap`: None, or what is lost in this place; then there is no data.
    """

    cdef readonly str stream
    cdef readonly bytes data
    cdef readonly int64_t timestamp
    cdef readonly bint partial
    cdef readonly str cursor
    cdef readonly Gap gap

    def __init__(
        self, str stream, bytes data, int64_t timestamp=0, bint partial=False, str cursor="", Gap gap=None
    ):
        self.stream = stream
        self.data = data
        self.timestamp = timestamp
        self.partial = partial
        self.cursor = cursor
        self.gap = gap

    def __repr__(self):
        return (
            f"Entry(stream={self.stream!r}, data={self.data!r}, "
            f"timestamp={self.timestamp}, partial={self.partial}, cursor={self.cursor!r}, gap={self.gap!r})"
        )

    def __eq__(self, other):
        """Of two entries that say the same; where they stand does not matter."""
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.stream, self.data, self.timestamp, self.partial, self.gap) == (
            other.stream, other.data, other.timestamp, other.partial, other.gap
        )

    __hash__ = None


cdef list split_entries(const char* p, size_t n):
    cdef list entries = []
    cdef const char* end = p + n
    cdef int64_t stamp
    cdef uint32_t length
    cdef uint8_t cursor_length
    cdef uint64_t lost_bytes, lost_lines
    cdef Entry entry
    while p < end:
        memcpy(&stamp, p, 8)
        length = u32_at(<const uint8_t*> p + 12)
        entry = Entry.__new__(Entry)
        entry.stream = "stderr" if p[8] == STDERR else "stdout"
        entry.timestamp = stamp
        entry.partial = p[9]
        cursor_length = <uint8_t> p[11]
        entry.cursor = p[16:16 + cursor_length].decode("ascii")
        if p[10]:
            p += 16 + cursor_length
            memcpy(&lost_bytes, p, 8)
            memcpy(&lost_lines, p + 8, 8)
            entry.data = b""
            entry.gap = Gap(lost_bytes, lost_lines, p[16] != 0, p[17:length].decode("utf-8", "replace"))
            p += length
        else:
            p += 16 + cursor_length
            entry.data = PyBytes_FromStringAndSize(p, length)
            p += length
        entries.append(entry)
    return entries


def with_trace(bytes frames, bytes trace):
    """V2 frames that have no trace id, with one: a shared encoding for a peer of its own."""
    cdef const uint8_t* p = <const uint8_t*> PyBytes_AS_STRING(frames)
    cdef const uint8_t* end = p + len(frames)
    cdef const uint8_t* walk = p
    cdef size_t count = 0, extra = len(trace), length
    cdef bytes result
    cdef uint8_t* out
    if extra > 0xFFFF:
        raise ValueError("a trace id has at most 65535 bytes")
    while end - walk >= 10:
        length = u32_at(walk)
        if length < 6 or length > <size_t> (end - walk - 4) or walk[8] or walk[9]:
            break
        walk += 4 + length
        count += 1
    if walk != end:
        raise ValueError("not whole V2 frames without a trace id")
    result = PyBytes_FromStringAndSize(NULL, len(frames) + count * extra)
    out = <uint8_t*> PyBytes_AS_STRING(result)
    while p < end:
        length = u32_at(p)
        out = append_u32(out, <uint32_t> (length + extra))
        out = append_block(out, p + 4, 4)
        out = append_u16(out, <uint32_t> extra)
        out = append_block(out, PyBytes_AS_STRING(trace), extra)
        out = append_block(out, p + 10, length - 6)
        p += 4 + length
    return result

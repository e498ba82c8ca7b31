# cython: cdivision=True
"""Entries of a log as LogEntry frames (V1, V2), as text, or as Python objects.

    V1  u32 length, u32 type |                | stream, data, timestamp: int64,     partial
    V2  u32 length, u32 type | u16, trace id  | stream, data, timestamp: Timestamp, partial

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
    TAG_LOG_ENTRY_DATA, TAG_LOG_ENTRY_PARTIAL, TAG_LOG_ENTRY_STREAM, TAG_LOG_ENTRY_TIMESTAMP,
    TAG_LOG_ENTRY_V2_TIMESTAMP, TAG_TIMESTAMP_NANOS, TAG_TIMESTAMP_SECONDS, TYPE_LOG_ENTRY,
)

cdef enum:
    # More than all of an entry has but its data and the trace id.
    ENTRY_HEAD = 160


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
    const Form* form, uint8_t* p, int stream, size_t data_length, size_t time_field, bint partial) noexcept nogil:
    """A frame up to the bytes of its data."""
    cdef size_t payload = 8 + time_field + (3 if partial else 0)
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


cdef inline uint8_t* append_tail(int mode, uint8_t* p, const Time* time, bint partial) noexcept nogil:
    """A frame's fields behind its data."""
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
    return p


cdef int append_entry(
    const Form* form, Output* out, int stream, int64_t stamp, const char* canonical,
    const char* text, size_t n, bint prefixed, bint partial,
) noexcept nogil:
    """Append one entry; 0 or -ENOMEM.

    stamp: Unix ns, 0: none.  canonical: the stamp as format_stamp writes it, or NULL.
    prefixed: the time goes before the text, where the form has timestamps.
    """
    cdef size_t prefix = STAMP_LENGTH + 1 if prefixed and form.timestamps else 0
    cdef bint framed = form.mode == FRAMES_V1 or form.mode == FRAMES_V2
    cdef Time time
    cdef uint8_t* p = make_room(out, n + form.trace_length + ENTRY_HEAD)
    if p is NULL:
        return -ENOMEM
    if framed:
        time = time_of(form.mode, stamp)
        p = append_head(form, p, stream, prefix + n, time.field, partial)
    elif form.mode == ENTRIES:
        memcpy(p, &stamp, 8)
        p[8] = <uint8_t> stream
        p[9] = partial
        p[10] = p[11] = 0
        p = append_u32(p + 12, <uint32_t> (prefix + n))
    if prefix:
        if canonical is not NULL:
            memcpy(p, canonical, STAMP_LENGTH)
        else:
            format_stamp(stamp, <char*> p)
        p[STAMP_LENGTH] = c" "
        p += prefix
    p = append_block(p, text, n)
    if framed:
        p = append_tail(form.mode, p, &time, partial)
    elif form.mode == TEXT and not partial:
        p[0] = c"\n"
        p += 1
    out.length = p - <uint8_t*> out.data
    return 0


cdef class Entry:
    """One line of a log, as LogEntry has it.

    `stream`: `stdout` or `stderr`.  `data`: the line, without its newline.
    `timestamp`: Unix ns, 0 where the line has none.  `partial`: the line goes
    on in the next entry of this stream, or ends without a newline.
    """

    cdef readonly str stream
    cdef readonly bytes data
    cdef readonly int64_t timestamp
    cdef readonly bint partial

    def __init__(self, str stream, bytes data, int64_t timestamp=0, bint partial=False):
        self.stream = stream
        self.data = data
        self.timestamp = timestamp
        self.partial = partial

    def __repr__(self):
        return (
            f"Entry(stream={self.stream!r}, data={self.data!r}, "
            f"timestamp={self.timestamp}, partial={self.partial})"
        )

    def __eq__(self, other):
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.stream, self.data, self.timestamp, self.partial) == (
            other.stream, other.data, other.timestamp, other.partial
        )

    __hash__ = None


cdef list split_entries(const char* p, size_t n):
    cdef list entries = []
    cdef const char* end = p + n
    cdef int64_t stamp
    cdef uint32_t length
    cdef Entry entry
    while p < end:
        memcpy(&stamp, p, 8)
        length = u32_at(<const uint8_t*> p + 12)
        entry = Entry.__new__(Entry)
        entry.stream = "stderr" if p[8] == STDERR else "stdout"
        entry.data = PyBytes_FromStringAndSize(p + 16, length)
        entry.timestamp = stamp
        entry.partial = p[9]
        entries.append(entry)
        p += 16 + length
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

# cython: cdivision=True
"""The line engine: log files in, LogEntry frames out, no Python object a line.

A line is judged by itself, on sight, so that reading may start anywhere:

    2026-11-23T17:45:12.255151664Z stdout F text       CRI; P: the text goes on
    [2026-11-23T17:45:12.255+01:00] [stderr]: text     agents of 0.0.1-alpha.1
    {"log":"text\\n","stream":"stdout","time":"..."}    Docker's json-file
    text                                               all else: stdout, no time

`Engine` reads a file forwards from an offset and keeps nothing of it but that
offset and the texts whose end it has not seen.  `TailScan` finds, backwards,
where the last lines begin; `bisect` finds a time in a large file.  Nothing here
knows of sockets, event loops or clocks; a read that would block can be refused
(`nowait`), so that the caller may choose the thread that waits.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

import os

cdef extern from *:
    """
    #include <unistd.h>
    #include <string.h>
    #include <stddef.h>
    #include <errno.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <fcntl.h>
    #include <stdint.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #endif

    /* nowait: EAGAIN instead of waiting for the disk, and where the kernel or the
       file system cannot promise not to. */
    static ssize_t arcbox_read_at(int fd, void *to, size_t n, off_t at, int nowait) {
    #if defined(__linux__) && defined(RWF_NOWAIT)
        if (nowait) {
            struct iovec v = {to, n};
            ssize_t r = preadv2(fd, &v, 1, at, RWF_NOWAIT);
            if (r < 0 && (errno == ENOSYS || errno == EINVAL || errno == EOPNOTSUPP)) errno = EAGAIN;
            return r;
        }
    #else
        if (nowait) { errno = EAGAIN; return -1; }
    #endif
        return pread(fd, to, n, at);
    }

    /* Open for reading without waiting for the disk: EAGAIN where that cannot be. */
    static int arcbox_open_cached(const char *path) {
    #if defined(__linux__) && defined(SYS_openat2)
        struct { uint64_t flags, mode, resolve; } how = {O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0, 0x20 /* CACHED */};
        int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
        if (fd < 0 && (errno == ENOSYS || errno == EINVAL || errno == EPERM || errno == E2BIG)) errno = EAGAIN;
        return fd;
    #else
        errno = EAGAIN;
        return -1;
    #endif
    }

    static void *arcbox_last_byte(const void *from, int byte, size_t n) {
    #ifdef __linux__
        return memrchr(from, byte, n);
    #else
        const unsigned char *p = (const unsigned char *)from;
        while (n--) if (p[n] == (unsigned char)byte) return (void *)(p + n);
        return NULL;
    #endif
    }
    """
    ssize_t arcbox_read_at(int fd, void* to, size_t n, int64_t at, int nowait) nogil
    int arcbox_open_cached(const char* path) nogil
    void* arcbox_last_byte(const void* start, int byte, size_t n) nogil


# How a read ended.
MORE = 0  # there is more to read now
END = 1  # the end of the file, or of what was asked
BLOCKED = 2  # only with nowait: the disk would have to be waited for
CHANGED = 3  # what lies before the offset is not what was read there

cdef enum:
    _MORE = 0
    _END = 1
    _BLOCKED = 2
    _CHANGED = 3
    # To see a file that was truncated and has grown past the offset since, the
    # line before the offset is read again, and its first bytes, which hold its
    # time, compared: OVERLAP of them, where the line is not longer than BACK.
    OVERLAP = 48
    BACK = 4096
    READ_SIZE = 131072
    INPUT_SIZE = BACK + LINE_WINDOW + READ_SIZE

cdef enum:
    FRAMES_V1 = 1
    FRAMES_V2 = 2
    TEXT = 3  # each entry's data and a newline
    ENTRIES = 4  # for take_entries

cdef enum:
    LOG_ENTRY = 0x1021


# ------------------------------------------------------------------ one line


cdef inline int digit(const char* p) noexcept nogil:
    cdef int value = (<uint8_t> p[0]) - 48
    return value if 0 <= value <= 9 else -1


cdef inline int two_digits(const char* p) noexcept nogil:
    cdef int a = digit(p), b = digit(p + 1)
    return -1 if a < 0 or b < 0 else a * 10 + b


cdef bint parse_minute(const char* p, Minute* minute) noexcept nogil:
    # `2026-11-23T17:45:`, 17 bytes
    cdef int century = two_digits(p), year = two_digits(p + 2), month = two_digits(p + 5)
    cdef int day = two_digits(p + 8), hour = two_digits(p + 11), mins = two_digits(p + 14), last
    if century < 0 or year < 0 or month < 1 or month > 12 or day < 1:
        return False
    if hour < 0 or hour > 23 or mins < 0 or mins > 59:
        return False
    if p[4] != c"-" or p[7] != c"-" or p[13] != c":" or p[16] != c":":
        return False
    if p[10] != c"T" and p[10] != c"t":
        return False
    year += century * 100
    last = 31
    if month == 2:
        last = 29 if (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)) else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        last = 30
    if day > last:
        return False
    memcpy(minute.text, p, 17)
    minute.seconds = days_from_civil(year, month, day) * 86400 + hour * 3600 + mins * 60
    minute.known = True
    return True


cdef size_t parse_stamp(
    const char* p, size_t n, Minute* minute, int64_t* stamp, bint* canonical
) noexcept nogil:
    """The length of the RFC 3339 time at p, or 0 where there is none."""
    cdef size_t i = 19
    cdef int second, value, digits = 0, hours, minutes
    cdef int64_t nanos = 0, seconds
    if n < 20:
        return 0
    if n > STAMP_LENGTH and minute.whole_known and memcmp(minute.whole, p, STAMP_LENGTH) == 0:
        stamp[0] = minute.stamp
        canonical[0] = True
        return STAMP_LENGTH
    if not (minute.known and memcmp(minute.text, p, 17) == 0):
        if not parse_minute(p, minute):
            return 0
    second = two_digits(p + 17)
    if second < 0 or second > 60:  # 60: a leap second, the same as the next one
        return 0
    if p[19] == c".":
        i = 20
        while i < n:
            value = digit(p + i)
            if value < 0:
                break
            digits += 1
            if digits > 9:
                return 0
            nanos = nanos * 10 + value
            i += 1
        if digits == 0:
            return 0
        for value in range(digits, 9):
            nanos *= 10
    if i >= n:
        return 0
    seconds = minute.seconds + second
    canonical[0] = False
    if p[i] == c"Z" or p[i] == c"z":
        canonical[0] = digits == 9 and second < 60 and p[i] == c"Z" and p[10] == c"T"
        i += 1
    elif p[i] == c"+" or p[i] == c"-":
        if i + 6 > n or p[i + 3] != c":":
            return 0
        hours = two_digits(p + i + 1)
        minutes = two_digits(p + i + 4)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
            return 0
        value = hours * 3600 + minutes * 60
        seconds += value if p[i] == c"-" else -value
        i += 6
    else:
        return 0
    # int64 nanoseconds reach from 1677 to 2262; a time outside becomes the nearest inside.
    if seconds > 9223372035LL:
        stamp[0] = INT64_MAX
        canonical[0] = False
    elif seconds < -9223372036LL:
        stamp[0] = INT64_MIN + 1
        canonical[0] = False
    else:
        stamp[0] = seconds * NANOSECONDS + nanos
    if canonical[0]:
        memcpy(minute.whole, p, STAMP_LENGTH)
        minute.stamp = stamp[0]
        minute.whole_known = True
    return i


cdef inline int parse_stream(const char* p) noexcept nogil:
    if memcmp(p, b"stdout", 6) == 0:
        return STDOUT
    return STDERR if memcmp(p, b"stderr", 6) == 0 else -1


cdef bint parse_cri(const char* p, size_t n, Minute* minute, Line* line) noexcept nogil:
    # TIME SP stdout|stderr SP F|P[:more tags] SP text
    cdef bint canonical = False
    cdef size_t i = parse_stamp(p, n, minute, &line.stamp, &canonical)
    cdef const char* end
    if i == 0 or i + 9 > n or p[i] != c" " or p[i + 7] != c" ":
        return False
    line.stream = parse_stream(p + i + 1)
    if line.stream < 0:
        return False
    line.canonical = p if canonical else NULL
    i += 8
    if p[i] == c"P":
        line.more = True
    elif p[i] != c"F":
        return False
    i += 1
    if i < n and p[i] == c":":
        end = <const char*> memchr(p + i, c" ", n - i if n - i < 64 else 64)
        if end is NULL:
            return False
        if end - (p + i) == 4:
            line.note = memcmp(p + i, b":gap", 4) == 0
            line.unended = memcmp(p + i, b":end", 4) == 0
        i = end - p
    if i < n:
        if p[i] != c" ":
            return False
        i += 1
    line.stamped = True
    line.text = p + i
    line.length = n - i
    return True


cdef bint parse_bracketed(const char* p, size_t n, Minute* minute, Line* line) noexcept nogil:
    # [TIME] [stdout|stderr]: text
    cdef bint canonical = False
    cdef size_t i = parse_stamp(p + 1, n - 1, minute, &line.stamp, &canonical)
    if i == 0 or i + 12 > n or memcmp(p + i + 1, b"] [", 3) != 0 or memcmp(p + i + 10, b"]:", 2) != 0:
        return False
    line.stream = parse_stream(p + i + 4)
    if line.stream < 0:
        return False
    line.canonical = p + 1 if canonical else NULL
    i += 12
    if i < n and p[i] == c" ":
        i += 1
    line.stamped = True
    line.text = p + i
    line.length = n - i
    return True


cdef int hex4(const char* p) noexcept nogil:
    cdef int value = 0, i
    cdef uint8_t c
    for i in range(4):
        c = <uint8_t> p[i]
        if 48 <= c <= 57:
            c -= 48
        elif 97 <= (c | 32) <= 102:
            c = (c | 32) - 87
        else:
            return -1
        value = value * 16 + c
    return value


cdef inline char* put_utf8(char* out, int code) noexcept nogil:
    if code < 0x80:
        out[0] = <char> code
        return out + 1
    if code < 0x800:
        out[0] = <char> (0xC0 | code >> 6)
        out[1] = <char> (0x80 | code & 0x3F)
        return out + 2
    if code < 0x10000:
        out[0] = <char> (0xE0 | code >> 12)
        out[1] = <char> (0x80 | code >> 6 & 0x3F)
        out[2] = <char> (0x80 | code & 0x3F)
        return out + 3
    out[0] = <char> (0xF0 | code >> 18)
    out[1] = <char> (0x80 | code >> 12 & 0x3F)
    out[2] = <char> (0x80 | code >> 6 & 0x3F)
    out[3] = <char> (0x80 | code & 0x3F)
    return out + 4


cdef const char* json_string(const char* p, const char* end, char* out, size_t* length) noexcept nogil:
    """Unescape the string after the quote before p into out; the byte after its end, or NULL.

    The unescaped text is never longer than the escaped one.
    """
    cdef char* start = out
    cdef int code, low
    cdef char escape
    while p < end:
        if p[0] == c'"':
            length[0] = out - start
            return p + 1
        if p[0] != c"\\":
            out[0] = p[0]
            out += 1
            p += 1
            continue
        if end - p < 2:
            return NULL
        escape = p[1]
        p += 2
        if escape == c"n":
            out[0] = c"\n"
        elif escape == c"t":
            out[0] = c"\t"
        elif escape == c"r":
            out[0] = c"\r"
        elif escape == c"b":
            out[0] = c"\b"
        elif escape == c"f":
            out[0] = c"\f"
        elif escape == c'"' or escape == c"\\" or escape == c"/":
            out[0] = escape
        elif escape == c"u":
            if end - p < 4:
                return NULL
            code = hex4(p)
            if code < 0:
                return NULL
            p += 4
            if 0xD800 <= code < 0xE000:
                low = -1
                if code < 0xDC00 and end - p >= 6 and p[0] == c"\\" and p[1] == c"u":
                    low = hex4(p + 2)
                if 0xDC00 <= low < 0xE000:
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                    p += 6
                else:
                    code = 0xFFFD  # half a pair: no character
            out = put_utf8(out, code)
            continue
        else:
            return NULL
        out += 1
    return NULL


cdef inline const char* skip_blanks(const char* p, const char* end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\t" or p[0] == c"\r"):
        p += 1
    return p


cdef const char* json_skip(const char* p, const char* end) noexcept nogil:
    """The byte after the value at p, or NULL.  Only its extent is looked at."""
    cdef int depth = 0
    cdef bint any_ = False
    while p < end:
        if p[0] == c'"':
            p += 1
            while p < end and p[0] != c'"':
                p += 2 if p[0] == c"\\" else 1
            if p >= end:
                return NULL
            any_ = True
        elif p[0] == c"{" or p[0] == c"[":
            depth += 1
            any_ = True
        elif p[0] == c"}" or p[0] == c"]":
            if depth == 0:
                return p if any_ else NULL
            depth -= 1
        elif p[0] == c",":
            if depth == 0:
                return p if any_ else NULL
        else:
            any_ = True
        p += 1
    return NULL


cdef bint parse_json(const char* p, size_t n, Minute* minute, char* scratch, Line* line) noexcept nogil:
    """Docker's json-file: an object with the strings `log`, `stream` and `time`."""
    cdef const char* end = p + n
    cdef const char* key
    cdef size_t key_length, length = 0
    cdef bint canonical = False, has_log = False, has_time = False
    line.stream = -1
    p += 1
    while True:
        p = skip_blanks(p, end)
        if p >= end or p[0] != c'"':
            return False
        key = p + 1
        p = <const char*> memchr(key, c'"', end - key)
        if p is NULL:
            return False
        key_length = p - key
        p = skip_blanks(p + 1, end)
        if p >= end or p[0] != c":":
            return False
        p = skip_blanks(p + 1, end)
        if p >= end:
            return False
        if p[0] == c'"' and (
            key_length == 3 and memcmp(key, b"log", 3) == 0
            or key_length == 4 and memcmp(key, b"time", 4) == 0
            or key_length == 6 and memcmp(key, b"stream", 6) == 0
        ):
            p = json_string(p + 1, end, scratch, &length)
            if p is NULL:
                return False
            if key_length == 3:
                has_log = True
                line.text = scratch
                line.length = length
                scratch += length  # what is kept; the others are done with
            elif key_length == 4:
                if length == 0 or parse_stamp(scratch, length, minute, &line.stamp, &canonical) != length:
                    return False
                has_time = True
            else:
                line.stream = parse_stream(scratch) if length == 6 else -1
                if line.stream < 0:
                    return False
        else:
            p = json_skip(p, end)
            if p is NULL:
                return False
        p = skip_blanks(p, end)
        if p >= end:
            return False
        if p[0] == c"}":
            break
        if p[0] != c",":
            return False
        p += 1
    if skip_blanks(p + 1, end) != end or not has_log or not has_time or line.stream < 0:
        return False
    line.stamped = True
    if line.length and line.text[line.length - 1] == c"\n":
        line.length -= 1
    else:
        line.more = True
    return True


cdef void parse_line(
    const char* p, size_t n, bint whole, Minute* minute, char* scratch, Line* line
) noexcept nogil:
    """Read the line of n bytes at p, which has no newline.  whole: there is no more of it.

    scratch: room for n bytes, needed only where whole.
    """
    line.more = line.note = line.unended = False
    line.canonical = NULL
    if n:
        if 48 <= p[0] <= 57:
            if parse_cri(p, n, minute, line):
                return
        elif p[0] == c"[":
            if parse_bracketed(p, n, minute, line):
                return
        elif p[0] == c"{" and whole and n <= LINE_WINDOW:
            if parse_json(p, n, minute, scratch, line):
                return
    line.more = line.note = line.unended = False
    line.canonical = NULL
    line.stream = UNNAMED
    line.stamped = False
    line.stamp = 0
    line.text = p
    line.length = n


# -------------------------------------------------------------------- output


cdef struct Output:
    char* data
    size_t length
    size_t capacity


cdef char* reserve(Output* out, size_t n) noexcept nogil:
    cdef size_t capacity = out.capacity
    cdef char* data
    if out.length + n > capacity:
        capacity = capacity * 2 if capacity * 2 > out.length + n else out.length + n
        data = <char*> realloc(out.data, capacity)
        if data is NULL:
            return NULL
        out.data = data
        out.capacity = capacity
    return out.data + out.length


cdef inline char* put_varint(char* out, uint64_t value) noexcept nogil:
    while value >= 0x80:
        out[0] = <char> (value & 0x7F | 0x80)
        out += 1
        value >>= 7
    out[0] = <char> value
    return out + 1


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 0x80:
        size += 1
        value >>= 7
    return size


cdef inline char* put_u32(char* out, uint32_t value) noexcept nogil:
    out[0] = <char> (value >> 24)
    out[1] = <char> (value >> 16 & 0xFF)
    out[2] = <char> (value >> 8 & 0xFF)
    out[3] = <char> (value & 0xFF)
    return out + 4


# A text whose end has not been seen yet.
cdef struct Chain:
    char* data
    size_t length
    size_t capacity
    int64_t stamp
    bint stamped
    bint open
    bint begun  # a part of it was delivered


# All that stays between two reads.
cdef struct State:
    int mode
    bint want[STREAMS]
    bint ranged
    int64_t since
    int64_t until
    bint timestamps
    size_t part_limit
    char* trace
    size_t trace_length
    int64_t offset  # of the first byte not yet used up
    int64_t skip[STREAMS]  # lines that begin before it are not for us
    int64_t entries
    int64_t last_stamp
    # The line that is longer than LINE_WINDOW and being passed on in pieces.
    bint inside
    bint dropped
    bint more
    bint unended
    int stream
    Minute minute
    Chain chains[STREAMS]
    int back  # so far before the offset the next read begins
    int overlap_length
    char overlap[OVERLAP]  # what is to be found there


cdef int emit(
    State* state, Output* out, int stream, bint stamped, int64_t stamp, const char* canonical,
    const char* text, size_t n, bint partial, bint first,
) noexcept nogil:
    """Append one entry."""
    cdef size_t data_length = n, payload, prefix = 0, stamp_size = 0
    cdef int64_t seconds = 0, nanos = 0
    cdef size_t time_size = 0
    cdef char* p = reserve(out, n + state.trace_length + 160)
    if p is NULL:
        return -ENOMEM
    if state.timestamps and stamped and first:
        prefix = STAMP_LENGTH + 1
        data_length += prefix
    if state.mode == FRAMES_V1 or state.mode == FRAMES_V2:
        # field 1: string; 2: bytes; 3: int64 or Timestamp; 100: bool
        payload = 8
        if data_length:
            payload += 1 + varint_size(data_length) + data_length
        if stamp != 0:
            if state.mode == FRAMES_V1:
                time_size = varint_size(<uint64_t> stamp)
            else:
                seconds = stamp // NANOSECONDS
                if stamp < 0 and seconds * NANOSECONDS != stamp:
                    seconds -= 1
                nanos = stamp - seconds * NANOSECONDS
                if seconds:
                    time_size += 1 + varint_size(<uint64_t> seconds)
                if nanos:
                    time_size += 1 + varint_size(<uint64_t> nanos)
                stamp_size = 1
            stamp_size += 1 + time_size
            payload += stamp_size
        if partial:
            payload += 3
        if state.mode == FRAMES_V1:
            p = put_u32(p, <uint32_t> (4 + payload))
            p = put_u32(p, LOG_ENTRY)
        else:
            p = put_u32(p, <uint32_t> (6 + state.trace_length + payload))
            p = put_u32(p, LOG_ENTRY)
            p[0] = <char> (state.trace_length >> 8)
            p[1] = <char> (state.trace_length & 0xFF)
            memcpy(p + 2, state.trace, state.trace_length)
            p += 2 + state.trace_length
        p[0] = 0x0A
        p[1] = 6
        memcpy(p + 2, b"stderr" if stream == STDERR else b"stdout", 6)
        p += 8
        if data_length:
            p[0] = 0x12
            p = put_varint(p + 1, data_length)
    elif state.mode == ENTRIES:
        memcpy(p, &stamp, 8)
        p[8] = <char> stream
        p[9] = <char> partial
        p[10] = 0
        p[11] = 0
        p = put_u32(p + 12, <uint32_t> data_length)
    if prefix:
        if canonical is not NULL:
            memcpy(p, canonical, STAMP_LENGTH)
        else:
            format_stamp(stamp, p)
        p[STAMP_LENGTH] = c" "
        p += prefix
    if n:
        memcpy(p, text, n)
        p += n
    if state.mode == TEXT:
        if not partial:
            p[0] = c"\n"
            p += 1
    elif state.mode != ENTRIES:
        if stamp_size:
            if state.mode == FRAMES_V1:
                p[0] = 0x18
                p = put_varint(p + 1, <uint64_t> stamp)
            else:
                p[0] = 0x1A
                p[1] = <char> time_size
                p += 2
                if seconds:
                    p[0] = 0x08
                    p = put_varint(p + 1, <uint64_t> seconds)
                if nanos:
                    p[0] = 0x10
                    p = put_varint(p + 1, <uint64_t> nanos)
        if partial:
            p[0] = <char> 0xA0
            p[1] = 0x06
            p[2] = 1
            p += 3
    out.length = p - out.data
    state.entries += 1
    state.last_stamp = stamp
    return 0


# -------------------------------------------------------------------- chains


cdef int chain_add(State* state, Output* out, int stream, const char* text, size_t n) noexcept nogil:
    """Add to a text; what is beyond part_limit goes out as parts, once it is sure that more follows."""
    cdef Chain* chain = &state.chains[stream]
    cdef size_t take, capacity
    cdef char* data
    cdef int rc
    while n:
        if chain.length == state.part_limit:
            rc = emit(state, out, stream, chain.stamped, chain.stamp, NULL,
                      chain.data, chain.length, True, not chain.begun)
            if rc:
                return rc
            chain.begun = True
            chain.length = 0
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
        text += take
        n -= take
    return 0


cdef int chain_end(State* state, Output* out, int stream, bint partial) noexcept nogil:
    cdef Chain* chain = &state.chains[stream]
    cdef int rc = emit(state, out, stream, chain.stamped, chain.stamp, NULL,
                       chain.data, chain.length, partial, not chain.begun)
    free(chain.data)  # idle followers hold nothing
    chain.data = NULL
    chain.length = chain.capacity = 0
    chain.open = chain.begun = False
    return rc


cdef inline bint wanted(State* state, Line* line, int64_t begin) noexcept nogil:
    if not state.want[line.stream] or begin < state.skip[line.stream]:
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
        chain.stamp = line.stamp
        chain.stamped = line.stamped


cdef int take_line(State* state, Output* out, Line* line) noexcept nogil:
    """A whole line that is wanted."""
    cdef int rc
    if not line.more and not state.chains[line.stream].open and line.length <= state.part_limit:
        return emit(state, out, line.stream, line.stamped, line.stamp, line.canonical,
                    line.text, line.length, line.unended, True)
    chain_open(state, line)
    rc = chain_add(state, out, line.stream, line.text, line.length)
    if rc == 0 and not line.more:
        rc = chain_end(state, out, line.stream, line.unended)
    return rc


cdef struct Input:
    char* data
    char* scratch  # LINE_WINDOW bytes for unescaping
    size_t start  # first byte not used up
    size_t stop
    ssize_t last  # where the last line before start begins; below 0: not in here


cdef int take_lines(State* state, Input* inp, Output* out, size_t target) noexcept nogil:
    """Use up the whole lines of the input, until there is no more or target bytes came out.

    1: a line's end is missing; 0: enough for now; below: -errno.
    """
    cdef const char* p
    cdef const char* newline
    cdef size_t n
    cdef Line line
    cdef int rc
    cdef int64_t base = state.offset - <int64_t> inp.start  # of inp.data[0]
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
        if state.inside:
            if not state.dropped:
                rc = chain_add(state, out, state.stream, p, n)
                if rc == 0 and newline is not NULL and not state.more:
                    rc = chain_end(state, out, state.stream, state.unended)
            state.inside = newline is NULL
        elif newline is not NULL and n < LINE_WINDOW:
            parse_line(p, n, True, &state.minute, inp.scratch, &line)
            if wanted(state, &line, base + <int64_t> inp.start):
                rc = take_line(state, out, &line)
        else:
            parse_line(p, n, False, &state.minute, inp.scratch, &line)
            state.dropped = not wanted(state, &line, base + <int64_t> inp.start)
            state.stream = line.stream
            state.more = line.more
            state.unended = line.unended
            state.inside = newline is NULL
            if not state.dropped:
                chain_open(state, &line)
                rc = chain_add(state, out, line.stream, line.text, line.length)
                if rc == 0 and newline is not NULL and not line.more:
                    rc = chain_end(state, out, line.stream, line.unended)
        if rc:
            return rc
        inp.last = <ssize_t> inp.start
        inp.start += n + (newline is not NULL)
        state.offset = base + <int64_t> inp.start
    return 0


cdef ssize_t read_at(int fd, char* to, size_t n, int64_t at, bint nowait) noexcept nogil:
    """read, until n bytes, the end or EAGAIN; else -errno."""
    cdef size_t got = 0
    cdef ssize_t rc
    while got < n:
        rc = arcbox_read_at(fd, to + got, n - got, at + <int64_t> got, nowait)
        if rc < 0:
            if errno == EINTR:
                continue
            return -errno
        got += rc
        # A short read of a regular file is its end: one call less for each look at it.
        # With nowait it may also be where the cached part ends; the next read tells.
        break
    return got


cdef int run(
    State* state, Input* inp, Output* out, int fd, int64_t end, size_t target, int64_t budget, bint nowait,
) noexcept nogil:
    """Read from state.offset on; how it ended (_MORE.._CHANGED), or -errno."""
    cdef size_t want, keep, room
    cdef ssize_t got
    cdef int rc
    cdef bint first = True, last = False
    cdef int64_t at = state.offset - state.back  # of the next byte to read
    inp.start = inp.stop = 0
    inp.last = -1
    while True:
        if not first and inp.start > BACK:
            # Keep what is not used up, and what may be needed to recognise the place.
            keep = inp.start - BACK
            memmove(inp.data, inp.data + keep, inp.stop - keep)
            inp.start -= keep
            inp.stop -= keep
            inp.last -= <ssize_t> keep
        want = INPUT_SIZE - inp.stop
        if want > READ_SIZE:
            want = READ_SIZE
        if at + <int64_t> want > end:
            want = <size_t> (end - at) if end > at else 0
        got = read_at(fd, inp.data + inp.stop, want, at, nowait) if want else 0
        if got == -EAGAIN and nowait:
            rc = _BLOCKED
            break
        if got < 0:
            return <int> got
        last = <size_t> got < want or want == 0 or at + got >= end
        inp.stop += got
        at += got
        budget -= got
        if first:
            first = False
            if got < state.back or memcmp(inp.data, state.overlap, state.overlap_length) != 0:
                return _CHANGED
            inp.start = state.back
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
    if inp.start > 0 and (inp.last >= 0 or state.back == 0):
        keep = inp.start - inp.last if inp.last >= 0 else inp.start
        if keep > BACK:
            keep = OVERLAP
        state.back = <int> keep
        state.overlap_length = <int> keep if keep < OVERLAP else OVERLAP
        memcpy(state.overlap, inp.data + inp.start - keep, state.overlap_length)
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
        length = (<uint8_t> p[12]) << 24 | (<uint8_t> p[13]) << 16 | (<uint8_t> p[14]) << 8 | <uint8_t> p[15]
        entry = Entry.__new__(Entry)
        entry.stream = "stderr" if p[8] == STDERR else "stdout"
        entry.data = PyBytes_FromStringAndSize(p + 16, length)
        entry.timestamp = stamp
        entry.partial = p[9]
        entries.append(entry)
        p += 16 + length
    return entries


cdef dict MODES = {"v1": FRAMES_V1, "v2": FRAMES_V2, "text": TEXT, "entries": ENTRIES}


cdef class Engine:
    """Reads log files forwards and gives what their lines say.

    `output`: `v1` or `v2` LogEntry frames (with `trace`), `text` (each line and
    a newline), or `entries`.  `since`, `until`: Unix ns, both inclusive, None:
    unbounded; they are judged line by line of the file, parts too.
    `part_limit`: the longest text of one entry.
    """

    cdef State state

    def __init__(
        self, str output="entries", *, bytes trace=b"", bint stdout=True, bint stderr=True,
        since=None, until=None, bint timestamps=False, size_t part_limit=PART_LIMIT,
    ):
        self.state.mode = MODES[output]
        if len(trace) > 0xFFFF:
            raise ValueError("a trace id has at most 65535 bytes")
        if part_limit < 1 or part_limit > 1 << 30:
            raise ValueError("part_limit must be from 1 to 2**30")
        if trace:
            self.state.trace = <char*> malloc(len(trace))
            if self.state.trace is NULL:
                raise MemoryError
            memcpy(self.state.trace, PyBytes_AS_STRING(trace), len(trace))
            self.state.trace_length = len(trace)
        self.state.want[STDOUT] = self.state.want[UNNAMED] = stdout
        self.state.want[STDERR] = stderr
        self.state.ranged = since is not None or until is not None
        self.state.since = INT64_MIN if since is None else since
        self.state.until = INT64_MAX if until is None else until
        self.state.timestamps = timestamps
        self.state.part_limit = part_limit

    def __dealloc__(self):
        cdef int stream
        free(self.state.trace)
        for stream in range(STREAMS):
            free(self.state.chains[stream].data)

    @property
    def offset(self):
        """Where the next read begins: always the beginning of a line, but inside a very long one."""
        return self.state.offset

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
        return [] if self.state.mode == ENTRIES else b""

    @property
    def open(self):
        """Texts wait for their end: in a chain of parts, or in a very long line."""
        return bool(
            self.state.inside or self.state.chains[STDOUT].open
            or self.state.chains[STDERR].open or self.state.chains[UNNAMED].open
        )

    def seek(self, int64_t offset, skip=None):
        """Go on at a line's beginning in a file, which may be another one.

        skip: for each of stdout, stderr and plain lines, the offset before which they are left out.
        """
        cdef int stream
        self.state.offset = offset
        self.state.back = self.state.overlap_length = 0
        self.state.inside = False
        for stream in range(STREAMS):
            self.state.skip[stream] = 0 if skip is None else skip[stream]

    def clone(self):
        """Another engine in the same state."""
        cdef Engine other = Engine.__new__(Engine)
        cdef int stream
        cdef Chain* chain
        other.state = self.state
        other.state.trace = NULL
        for stream in range(STREAMS):
            other.state.chains[stream].data = NULL
            other.state.chains[stream].capacity = 0
        if self.state.trace_length:
            other.state.trace = <char*> malloc(self.state.trace_length)
            if other.state.trace is NULL:
                raise MemoryError
            memcpy(other.state.trace, self.state.trace, self.state.trace_length)
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
        if self.state.mode == ENTRIES:
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
        self.state.inside = False
        for stream in (STDOUT, STDERR, UNNAMED):
            if rc == 0 and self.state.chains[stream].open:
                rc = chain_end(&self.state, &buffers.output, stream, False)
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
        self.state.inside = False
        for stream in (STDOUT, STDERR, UNNAMED):
            if rc == 0 and self.state.chains[stream].open:
                rc = chain_end(&self.state, &buffers.output, stream, True)
        if rc < 0:
            release_buffers(buffers)
            raise OSError(-rc, os.strerror(-rc))
        return self.take(buffers)

    cdef int last_line(self, Buffers buffers, int fd, int64_t end, bint more):
        cdef Line line
        cdef ssize_t got = 0
        cdef int64_t size = end - self.state.offset
        cdef int rc = 0
        if self.state.inside:
            self.state.inside = False
            if not more and not self.state.dropped and not self.state.more:
                return chain_end(&self.state, &buffers.output, self.state.stream, False)
            return 0
        if size > LINE_WINDOW:
            size = LINE_WINDOW
        if size > 0:
            with nogil:
                got = read_at(fd, buffers.input.data, <size_t> size, self.state.offset, False)
        if got < 0:
            return <int> got
        if got and memchr(buffers.input.data, c"\n", got) is NULL:
            parse_line(buffers.input.data, got, True, &self.state.minute, buffers.input.scratch, &line)
            if wanted(&self.state, &line, self.state.offset):
                line.more = line.more or more
                rc = take_line(&self.state, &buffers.output, &line)
            self.state.offset += got
            self.state.back = self.state.overlap_length = 0
        return rc


def with_trace(bytes frames, bytes trace):
    """V2 frames that have no trace id, with one: a shared encoding for a peer of its own."""
    cdef const char* p = PyBytes_AS_STRING(frames)
    cdef const char* end = p + len(frames)
    cdef const char* walk = p
    cdef size_t count = 0, extra = len(trace), length
    cdef bytes result
    cdef char* out
    if extra > 0xFFFF:
        raise ValueError("a trace id has at most 65535 bytes")
    while end - walk >= 10:
        length = (<uint8_t> walk[0]) << 24 | (<uint8_t> walk[1]) << 16 | (<uint8_t> walk[2]) << 8 | <uint8_t> walk[3]
        if length < 6 or length > <size_t> (end - walk - 4) or walk[8] or walk[9]:
            break
        walk += 4 + length
        count += 1
    if walk != end:
        raise ValueError("not whole V2 frames without a trace id")
    result = PyBytes_FromStringAndSize(NULL, len(frames) + count * extra)
    out = PyBytes_AS_STRING(result)
    while p < end:
        length = (<uint8_t> p[0]) << 24 | (<uint8_t> p[1]) << 16 | (<uint8_t> p[2]) << 8 | <uint8_t> p[3]
        out = put_u32(out, <uint32_t> (length + extra))
        memcpy(out, p + 4, 4)
        out[4] = <char> (extra >> 8)
        out[5] = <char> (extra & 0xFF)
        memcpy(out + 6, PyBytes_AS_STRING(trace), extra)
        memcpy(out + 6 + extra, p + 10, length - 6)
        out += extra + length
        p += 4 + length
    return result


# ------------------------------------------------------------------ backwards


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
        """Scan on; MORE, END (of this file) or BLOCKED; `done` tells whether all was found."""
        cdef int rc
        if self.data is NULL:
            self.data = <char*> malloc(self.capacity)
            self.scratch = <char*> malloc(LINE_WINDOW)
            if self.data is NULL or self.scratch is NULL:
                raise MemoryError
        with nogil:
            rc = self.scan(fd, budget, nowait)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return rc

    cdef int scan(self, int fd, int64_t budget, bint nowait) noexcept nogil:
        cdef size_t n, take
        cdef ssize_t got
        cdef const char* newline
        cdef int64_t begin
        cdef int stream
        cdef char head[256]
        while not self.done:
            # The line that ends at high: its newline is the byte before, but for the file's last.
            n = self.stop - self.start
            newline = NULL
            if n:
                # The last byte is this line's own newline, unless it is one without or its end is dropped.
                take = n - 1 if (self.data[self.stop - 1] == c"\n" and not self.longer) else n
                newline = <const char*> arcbox_last_byte(self.data + self.start, c"\n", take)
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
                take = <size_t> (self.high - begin) if self.high - begin < 256 else 256
                got = read_at(fd, head, take, begin, nowait)
                if got == -EAGAIN and nowait:
                    return _BLOCKED
                if got < 0:
                    return <int> got
                self.count(head, got, False, begin)
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
                    self.count(self.data + self.stop - n, take, take < LINE_WINDOW, begin)
            self.longer = False
            self.stop = self.start + (<size_t> (begin - self.low))
            self.high = begin
            if begin <= self.floor:
                return _END
        return _END

    cdef void count(self, const char* p, size_t n, bint whole, int64_t begin) noexcept nogil:
        cdef Line line
        cdef int s
        parse_line(p, n, whole, &self.minute, self.scratch, &line)
        s = line.stream
        if not self.want[s]:
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


# ------------------------------------------------------------------- by time


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
    minute.known = minute.whole_known = False
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


def open_cached(path):
    """A descriptor to read a file with; BlockingIOError where the disk, or an old kernel, would make us wait."""
    cdef bytes raw = os.fsencode(path)
    cdef int fd = arcbox_open_cached(raw)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    return fd


def parse_time(bytes text):
    """Unix ns of an RFC 3339 time, or None."""
    cdef Minute minute
    cdef int64_t stamp = 0
    cdef bint canonical = False
    minute.known = minute.whole_known = False
    if not text or parse_stamp(PyBytes_AS_STRING(text), len(text), &minute, &stamp, &canonical) != <size_t> len(text):
        return None
    return stamp


def format_time(int64_t stamp):
    """Unix ns as RFC 3339, UTC, nine digits."""
    cdef char out[STAMP_LENGTH]
    format_stamp(stamp, out)
    return out[:STAMP_LENGTH].decode("ascii")

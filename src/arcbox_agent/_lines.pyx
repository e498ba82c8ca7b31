# cython: cdivision=True
"""One line of a log file: which format it has, and what it says.

A line is judged by itself, on sight, so that reading may start anywhere:

    2026-11-23T17:45:12.255151664Z stdout F text       CRI; P: the text goes on
    [2026-11-23T17:45:12.255+01:00] [stderr]: text     agents of 0.0.1-alpha.1
    {"log":"text\\n","stream":"stdout","time":"..."}    Docker's json-file
    text                                               all else: stdout, no time

NUL bytes before a record are what a power failure left of the lines before it.

Here are also the times of these formats, RFC 3339 from and to Unix nanoseconds.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING


cdef inline int digit(const char* p) noexcept nogil:
    cdef int value = (<uint8_t> p[0]) - 48
    return value if 0 <= value <= 9 else -1


cdef inline int two_digits(const char* p) noexcept nogil:
    cdef int a = digit(p), b = digit(p + 1)
    return -1 if a < 0 or b < 0 else a * 10 + b


cdef inline int64_t nine_digits(const char* p) noexcept nogil:
    """Their value; below 0: not all are digits."""
    cdef uint64_t x
    cdef int last = digit(p + 8)
    memcpy(&x, p, 8)
    # Eight ASCII digits in one word (little-endian): each byte is 0x30 to 0x39.
    if last < 0 or (x & 0xF0F0F0F0F0F0F0F0ULL) != 0x3030303030303030ULL:
        return -1
    x -= 0x3030303030303030ULL
    if (x + 0x0606060606060606ULL) & 0xF0F0F0F0F0F0F0F0ULL:
        return -1
    x = x * 10 + (x >> 8)
    x = (((x & 0x000000FF000000FFULL) * 0x000F424000000064ULL)
         + (((x >> 16) & 0x000000FF000000FFULL) * 0x0000271000000001ULL)) >> 32
    return <int64_t> (x & 0xFFFFFFFFULL) * 10 + last


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
    cdef int second, value, digits = 0, written = 0, hours, minutes
    cdef int64_t nanos = 0, seconds
    if n < 20:
        return 0
    if n > STAMP_LENGTH and minute.second_known and p[29] == c"Z" and memcmp(minute.second, p, 20) == 0:
        nanos = nine_digits(p + 20)
        if nanos >= 0:
            stamp[0] = minute.stamp + nanos
            canonical[0] = True
            return STAMP_LENGTH
        nanos = 0
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
        written = digits
        while digits < 9:
            nanos *= 10
            digits += 1
    if i >= n:
        return 0
    seconds = minute.seconds + second
    canonical[0] = False
    if p[i] == c"Z" or p[i] == c"z":
        canonical[0] = written == 9 and second < 60 and p[i] == c"Z" and p[10] == c"T"
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
        memcpy(minute.second, p, 20)
        minute.stamp = stamp[0] - nanos
        minute.second_known = True
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
            line.note = not line.more and memcmp(p + i, b":gap", 4) == 0
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


cdef inline char* append_utf8(char* out, int code) noexcept nogil:
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
            out = append_utf8(out, code)
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


cdef inline bint parse_record(
    const char* p, size_t n, bint whole, Minute* minute, char* scratch, Line* line
) noexcept nogil:
    line.more = line.note = line.unended = False
    line.canonical = NULL
    if 48 <= p[0] <= 57:
        return parse_cri(p, n, minute, line)
    if p[0] == c"[":
        return parse_bracketed(p, n, minute, line)
    return p[0] == c"{" and whole and n <= LINE_WINDOW and parse_json(p, n, minute, scratch, line)


cdef void parse_line(
    const char* p, size_t n, bint whole, Minute* minute, char* scratch, Line* line
) noexcept nogil:
    """Read the line of n bytes at p, which has no newline.  whole: there is no more of it.

    scratch: room for n bytes, needed only where whole.
    """
    cdef size_t nuls = leading_nuls(p, n) if n and p[0] == 0 else 0
    line.hole = nuls and nuls == n
    if n > nuls and parse_record(p + nuls, n - nuls, whole, minute, scratch, line):
        return
    line.more = line.note = line.unended = False
    line.canonical = NULL
    line.stream = UNNAMED
    line.stamped = False
    line.stamp = 0
    line.text = p
    line.length = n


def parse_time(bytes text):
    """Unix ns of an RFC 3339 time, or None."""
    cdef Minute minute
    cdef int64_t stamp = 0
    cdef bint canonical = False
    minute.known = minute.second_known = False
    if not text or parse_stamp(PyBytes_AS_STRING(text), len(text), &minute, &stamp, &canonical) != <size_t> len(text):
        return None
    return stamp


def format_time(int64_t stamp):
    """Unix ns as RFC 3339, UTC, nine digits."""
    cdef char out[STAMP_LENGTH]
    format_stamp(stamp, out)
    return out[:STAMP_LENGTH].decode("ascii")

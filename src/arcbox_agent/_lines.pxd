# One line of a log file, and its time (_lines.pyx); shared by all that read logs.

from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy

# Why these numbers:
#   LINE_WINDOW  The contract of writer and reader.  The capture writes no line longer than
#                this, its newline included, and a reader takes a line of this length only
#                when it is whole: so what a crash left of a line is never delivered, and
#                can be cut away.  A longer line of another writer flows through in pieces,
#                so that a line of any length costs the same memory.
#   PART_LIMIT   the longest text of one entry; what is longer is delivered in parts.
#   STAMP_LENGTH `2026-11-23T17:45:12.255151664Z`
cdef enum:
    LINE_WINDOW = 262144
    PART_LIMIT = 1048576
    STAMP_LENGTH = 30
    NANOSECONDS = 1000000000

cdef extern from *:
    """
    static const char arcbox_nuls[64];
    """
    const char* NULS "arcbox_nuls"

cdef enum:
    STDOUT = 0
    STDERR = 1
    UNNAMED = 2  # plain text, whose stream is unknown: shown as stdout, never joined with it
    STREAMS = 3

# What one line of a log file says.  `text` points into the line, or into the
# scratch memory that was given for unescaping.
cdef struct Line:
    int stream
    bint stamped
    bint more  # the text goes on in the next line of this stream
    bint note  # CRI tag `F:gap`: the agent's own words, no output
    bint hole  # nothing but NUL bytes: what a power failure leaves of a line
    bint unended  # CRI tag `F:end`: the output ended without a newline
    int64_t stamp  # Unix ns
    const char* canonical  # the stamp as format_stamp writes it, or NULL
    const char* text
    size_t length

# The last minute read, and the last second: most lines share them with the one before.
cdef struct Minute:
    char text[17]
    bint known
    bint second_known
    int64_t seconds
    char second[20]  # `2026-11-23T17:45:12.`, UTC
    int64_t stamp  # of that second


cdef inline int64_t days_from_civil(int64_t y, int64_t m, int64_t d) noexcept nogil:
    # Howard Hinnant's algorithm; years here are 0 to 9999, so that no step is negative
    # but for year 0 before March, which the + 400 takes care of.
    cdef int64_t era, yoe, doy
    y += 400 - (m <= 2)
    era = y // 400
    yoe = y - era * 400
    doy = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return (era - 1) * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


cdef inline void put_digits(char* out, int64_t value, int count) noexcept nogil:
    cdef int i
    for i in range(count - 1, -1, -1):
        out[i] = <char> (48 + value % 10)
        value //= 10


cdef inline void format_stamp(int64_t stamp, char* out) noexcept nogil:
    """Write STAMP_LENGTH bytes: UTC with nine digits, as CRI logs have them."""
    cdef int64_t seconds = stamp // NANOSECONDS, nanos = stamp - seconds * NANOSECONDS
    cdef int64_t days, era, doe, yoe, doy, mp, y, m
    if nanos < 0:  # a division rounds down only in the build with checks
        seconds -= 1
        nanos += NANOSECONDS
    # + 719468 days and the times of int64 nanoseconds (1677 to 2262): all positive from here.
    seconds += <int64_t> 719468 * 86400
    days = seconds // 86400
    seconds -= days * 86400
    era = days // 146097
    doe = days - era * 146097
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    m = mp + (3 if mp < 10 else -9)
    y = yoe + era * 400 + (m <= 2)
    put_digits(out, y, 4)
    out[4] = c"-"
    put_digits(out + 5, m, 2)
    out[7] = c"-"
    put_digits(out + 8, doy - (153 * mp + 2) // 5 + 1, 2)
    out[10] = c"T"
    put_digits(out + 11, seconds // 3600, 2)
    out[13] = c":"
    put_digits(out + 14, seconds // 60 % 60, 2)
    out[16] = c":"
    put_digits(out + 17, seconds % 60, 2)
    out[19] = c"."
    put_digits(out + 20, nanos, 9)
    out[29] = c"Z"


cdef inline void next_nanosecond(int64_t* stamp, char* text) noexcept nogil:
    """A nanosecond later; `text`: as format_stamp has written it."""
    cdef int i = STAMP_LENGTH - 2
    stamp[0] += 1
    while text[i] == c"9":
        text[i] = c"0"
        i -= 1
    if text[i] == c".":
        format_stamp(stamp[0], text)
    else:
        text[i] += 1


cdef inline size_t leading_nuls(const char* p, size_t n) noexcept nogil:
    cdef size_t i = 0
    while i + 64 <= n and memcmp(p + i, NULS, 64) == 0:
        i += 64
    while i < n and p[i] == 0:
        i += 1
    return i


cdef void parse_line(
    const char* p, size_t n, bint whole, Minute* minute, char* scratch, Line* line
) noexcept nogil

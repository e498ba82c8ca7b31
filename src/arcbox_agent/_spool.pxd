# What was taken from a container and is not in its log yet (_spool.pyx).

from libc.stdint cimport int64_t
from arcbox_agent._lines cimport LINE_WINDOW, STAMP_LENGTH
from arcbox_agent._log_file cimport CaptureLog, Log

cdef enum:
    HEADER = 64  # bytes of a spool before its output
    PREFIX = STAMP_LENGTH + 14  # ` stdout F:end `
    # Output looked at at once.  One line of it, with its prefix and a newline, is not longer
    # than LINE_WINDOW.
    INPUT = LINE_WINDOW - PREFIX - 1
    OUTPUT = 2 * LINE_WINDOW  # lines written at once
    # A started line of so many bytes is written as a part, instead of waiting for its newline.
    HOLD = 65536


cdef struct Spool:
    Log* log
    int stream  # STDOUT or STDERR
    int fd
    int64_t size  # bytes of output in the file
    int64_t done  # of them, so many are in the log or dropped
    int64_t searched  # behind done, so many have no newline
    bint open  # the last line in the log is a part
    int64_t lost_bytes  # not yet reported in the log
    int64_t lost_lines
    bint cut  # the lost bytes end inside a line, whose rest is lost with it
    bint in_memory  # the file is one in memory, which ends with the agent


cdef struct Totals:
    int64_t bytes
    int64_t dropped
    int64_t rotations


# The memory, the time and the counts of the one thread that serves all spools.
cdef struct Work:
    char* data  # INPUT bytes
    char* out  # OUTPUT + 512 bytes
    int64_t now  # monotonic ns
    Totals totals


cdef enum:
    UNFINISHED = 2  # of `deliver`; HELD is another


cdef int open_spool(Spool* spool, str path) except -1
cdef int recover_spool(Spool* spool, CaptureLog log, str path) except -1
cdef void close_spool(Spool* spool) noexcept
cdef void empty(Spool* spool) noexcept nogil
cdef bint into_memory(Spool* spool) noexcept nogil
cdef int deliver(Spool* spool, Work* work, bint parts, bint last) noexcept nogil
cdef void drop(Spool* spool, Work* work) noexcept nogil
cdef void lose(Spool* spool, const char* lost, size_t n, Work* work) noexcept nogil

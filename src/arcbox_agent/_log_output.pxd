# What comes out of the line engine: entries as frames, text or Python objects (_log_output.pyx).

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    FRAMES_V1 = 1
    FRAMES_V2 = 2
    TEXT = 3  # each entry's data and a newline
    ENTRIES = 4  # for split_entries


# How entries are written.
cdef struct Form:
    int mode
    bint timestamps  # each line begins with its time
    bint detail  # with cursors and gaps
    char* trace  # owner: the engine
    size_t trace_length


cdef struct Output:
    char* data  # owner: the engine's buffers
    size_t length
    size_t capacity


# A gap of the output, as LogGap has it.
cdef struct Lost:
    uint64_t bytes
    uint64_t lines
    bint at_least
    const char* reason  # UTF-8
    size_t reason_length


cdef enum:
    # `_logs.put_cursor` writes no more than this.
    CURSOR_LIMIT = 240


cdef int append_entry(
    const Form* form, Output* out, int stream, int64_t stamp, const char* canonical,
    const char* text, size_t n, bint prefixed, bint partial, const char* cursor, size_t cursor_length,
) noexcept nogil
cdef int append_gap(
    const Form* form, Output* out, int stream, int64_t stamp, const Lost* lost,
    const char* cursor, size_t cursor_length,
) noexcept nogil
cdef list split_entries(const char* p, size_t n)

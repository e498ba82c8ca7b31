# The decoder of frames, for compiled parts that answer from its bytes (_frames.pyx).

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from arcbox_agent._bytes cimport u32_at


# Where the next frame stands in the decoder's bytes.
cdef struct Head:
    uint32_t type
    int version
    const uint8_t* trace
    size_t trace_size
    const uint8_t* payload
    size_t payload_size
    size_t size  # of the whole frame


@cython.final
cdef class FrameDecoder:
    # Bytes not yet taken: `head` to `tail` of `base`, which is the last bytes object
    # fed (`owner`) where nothing was left over, else our own copy (`copy`).
    cdef const uint8_t* base
    cdef size_t head
    cdef size_t tail
    cdef bytes owner
    cdef uint8_t* copy  # owner: the decoder (malloc)
    cdef size_t capacity
    cdef uint32_t limit
    cdef int version
    cdef object failure
    cdef bint ended

    cdef int _append(self, const uint8_t* data, size_t size) except -1
    cdef int _raise_failed(self) except -1
    cdef int _fail(self, object error) except -1
    cdef int _peek(self, Head* frame, bint quiet) except -1
    cdef int _refuse(self, int found, Head* frame) except -1
    cdef void _release(self) noexcept
    cdef int _fail_truncated(self) except -1


cdef enum:
    # What `look` finds.
    WHOLE = 1
    NOT_WHOLE = 0
    TOO_LARGE = -1
    TOO_SHORT = -2
    TRACE_TOO_LONG = -3


cdef inline int look(FrameDecoder decoder, Head* frame) noexcept:
    """Where the next frame stands.  Below 0: it is broken, and `frame` has what is wrong."""
    cdef size_t left = decoder.tail - decoder.head
    cdef const uint8_t* p = decoder.base + decoder.head
    cdef uint32_t length
    cdef int version = decoder.version
    if left < 4:
        return NOT_WHOLE
    length = u32_at(p)
    frame.size = <size_t>length + 4
    frame.version = version
    # Judged as soon as it is there, and never a reason to take memory.
    if length > decoder.limit:
        return TOO_LARGE
    if length < 4 or (version == 2 and length < 6):
        return TOO_SHORT
    if version == 0:
        # A protobuf message never begins with a byte below 8: field number 0 is illegal.
        if length == 4:
            version = 1
        elif left < 9:
            return NOT_WHOLE
        else:
            version = 2 if p[8] < 8 else 1
        frame.version = version
        if version == 2 and length < 6:
            return TOO_SHORT
    frame.trace = NULL
    frame.trace_size = 0
    if version == 2 and left >= 10:
        frame.trace_size = <size_t>p[8] << 8 | p[9]
        if frame.trace_size > length - 6:
            return TRACE_TOO_LONG
    if left - 4 < length:
        return NOT_WHOLE
    frame.type = u32_at(p + 4)
    if version == 2:
        frame.trace = p + 10
        frame.payload = p + 10 + frame.trace_size
        frame.payload_size = length - 6 - frame.trace_size
    else:
        frame.payload = p + 8
        frame.payload_size = length - 4
    return WHOLE


cdef inline void take(FrameDecoder decoder, size_t size) noexcept:
    """The next `size` bytes are done with."""
    decoder.head += size
    if decoder.head == decoder.tail:
        decoder._release()

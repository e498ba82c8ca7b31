# The decoder of frames, for compiled parts that answer from its bytes (_frames.pyx).

cimport cython
from libc.stdint cimport uint8_t, uint32_t


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
    cdef void _take(self, size_t size) noexcept
    cdef int _fail_truncated(self) except -1

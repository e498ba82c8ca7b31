# The writers of single values, for all that makes frames.
#
#     prepend_...  backwards: the value ends before `p`, and the new `p` is its first byte
#     append_...   forwards: the value begins at `p`, and the new `p` is the byte after it
#
# Messages are written backwards (_wire.pxd says why); what has its length at hand, forwards.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

cdef extern from "<stdint.h>":
    const uint64_t UINT64_MAX


cdef inline uint8_t* prepend_u64(uint8_t* p, uint64_t bits) noexcept nogil:
    """Eight bytes, little-endian; the caller has reserved them."""
    cdef int i
    p -= 8
    for i in range(8):
        p[i] = <uint8_t>(bits >> (8 * i))
    return p


cdef inline uint64_t seven_bits_a_byte(uint64_t value) noexcept nogil:
    """The lowest 56 bits, spread over eight bytes from the lowest one on.

    The upper half moves up by four bits, of each half the upper half by two, of each quarter by one.
    """
    value = value & 0xFFFFFFF | (value & 0xFFFFFFF0000000ULL) << 4
    value = value & 0x00003FFF00003FFFULL | (value & 0x0FFFC0000FFFC000ULL) << 2
    return value & 0x007F007F007F007FULL | (value & 0x3F803F803F803F80ULL) << 1


cdef inline uint8_t* prepend_varint(uint8_t* p, uint64_t value) noexcept nogil:
    """At most ten bytes.  The caller has reserved them, and not less than eight."""
    cdef uint64_t bytes
    cdef int spare
    if value < 0x80:
        p -= 1
        p[0] = <uint8_t>value
        return p
    bytes = seven_bits_a_byte(value)
    value >>= 56
    if value:
        # Nine bytes, or ten with the one bit that is left for the tenth.
        if value >= 0x80:
            p -= 1
            p[0] = 1
        p -= 1
        p[0] = <uint8_t>value
        return prepend_u64(p, bytes | 0x8080808080808080ULL)
    # The last byte ends at p; what is spare stands before the first, and is written over.
    spare = __builtin_clzll(bytes) & 0x38
    prepend_u64(p, bytes << spare | 0x80808080808080ULL & (UINT64_MAX << spare))
    return p - 8 + (spare >> 3)


cdef inline uint8_t* prepend_tag(uint8_t* p, uint32_t tag) noexcept nogil:
    """A tag; the caller has reserved eight bytes."""
    if tag < 0x80:
        p -= 1
        p[0] = <uint8_t>tag
        return p
    if tag < 0x4000:
        p -= 2
        p[0] = <uint8_t>(tag | 0x80)
        p[1] = <uint8_t>(tag >> 7)
        return p
    return prepend_varint(p, tag)


cdef inline uint8_t* prepend_block(uint8_t* p, const void* data, size_t size) noexcept nogil:
    """`size` bytes, which the caller has reserved."""
    p -= size
    memcpy(p, data, size)
    return p


cdef inline uint8_t* prepend_double(uint8_t* p, double value) noexcept nogil:
    """Eight bytes, little-endian; the caller has reserved them."""
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return prepend_u64(p, bits)


cdef inline uint8_t* prepend_u32(uint8_t* p, uint32_t value) noexcept nogil:
    """Four bytes, big-endian; the caller has reserved them."""
    p -= 4
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value
    return p


cdef inline uint32_t u32_at(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline uint8_t* append_varint(uint8_t* p, uint64_t value) noexcept nogil:
    """At most ten bytes."""
    while value > 0x7F:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return p + 1


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value > 0x7F:
        size += 1
        value >>= 7
    return size


cdef inline uint8_t* append_u32(uint8_t* p, uint32_t value) noexcept nogil:
    """Four bytes, big-endian."""
    return prepend_u32(p + 4, value) + 4


cdef inline uint8_t* append_u16(uint8_t* p, uint32_t value) noexcept nogil:
    """Two bytes, big-endian."""
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value
    return p + 2


cdef inline uint8_t* append_block(uint8_t* p, const void* data, size_t size) noexcept nogil:
    """`size` bytes; with none, `data` may be no address at all."""
    if size:
        memcpy(p, data, size)
    return p + size

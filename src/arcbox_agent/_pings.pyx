# cython: binding=False, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""Plain pings, answered from the bytes of the decoder: no message is made of them."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec

from arcbox_agent._bytes cimport append_block, append_varint, prepend_u32
from arcbox_agent._classes cimport Message
from arcbox_agent._frames cimport WHOLE, FrameDecoder, Head, look, take
from arcbox_agent._tags cimport (
    TAG_PING_REQUEST_MESSAGE, TAG_PING_REQUEST_TIMED, TAG_PING_RESPONSE_MESSAGE, TAG_PING_RESPONSE_MONOTONIC_NS,
    TAG_PING_RESPONSE_TIME_NS, TAG_PING_RESPONSE_VERSION,
    TYPE_PING_REQUEST, TYPE_PING_RESPONSE,
)
from arcbox_agent._wire cimport Location, PyBytes_AS_STRING, begin_reading, read_size, text_of

from arcbox_agent.errors import DecodeError

cdef enum:
    ROUNDS_AT_ONCE = 4096  # at most: pings whose replies are given room in one allocation
    TIMED_SIZE = 3  # of the field `timed`: a tag of two bytes, and 1
    TIMES_SIZE = 24  # at most, of the two times in a reply: tags of two bytes, and varints


def serve_pings(FrameDecoder decoder not None, bytearray out not None, version, limit=1024):
    """Answer the run of plain pings at the decoder's head; returns how many there were.

    At most `limit` replies are appended to `out`.  The run stops before the first frame that
    is not whole, is no PingRequest, or has more in it than a message and `timed`: a clock
    (`timestamp_secs`), an unknown field, anything broken.  `next_frame` gives that one.
    """
    cdef Head head
    cdef bytes agent = version if isinstance(version, bytes) else version.encode()
    cdef size_t agent_size = <size_t>len(agent)
    cdef Py_ssize_t most = limit, served = 0
    cdef const uint8_t* text
    cdef const uint8_t* end
    cdef const uint8_t* after
    cdef uint8_t timed_field[TIMED_SIZE]
    cdef bint timed
    cdef size_t text_size, prefix, size, need, rounds
    cdef size_t used = <size_t>PyByteArray_GET_SIZE(out), room = used
    cdef uint8_t* p
    cdef int found
    cdef Location location
    if agent_size > 0x7F:
        raise ValueError("the version is longer than 127 bytes")
    if decoder.failure is not None:
        decoder._raise_failed()
    append_varint(timed_field, TAG_PING_REQUEST_TIMED)
    timed_field[TIMED_SIZE - 1] = 1
    begin_reading(&location, <PyObject*>Message)
    try:
        while served < most:
            found = look(decoder, &head)
            if found != WHOLE:
                if found < 0 and served == 0:
                    decoder._refuse(found, &head)
                break
            if head.type != TYPE_PING_REQUEST:
                break
            text = head.payload
            text_size = 0
            end = after = head.payload + head.payload_size
            timed = False
            if head.payload_size:
                try:
                    # A message or none: tag, length, text.
                    after = text
                    if text[0] == TAG_PING_REQUEST_MESSAGE:
                        text = read_size(&location, 0, text + 1, end, &text_size)
                        after = text + text_size
                    # What follows it is `timed` or nothing.
                    timed = end - after == TIMED_SIZE and memcmp(after, timed_field, TIMED_SIZE) == 0
                    if after != end and not timed:
                        break
                    if not octets_ascii(text, text_size):
                        text_of(&location, 0, text, text_size)
                except DecodeError:
                    break
            prefix = 6 if text_size else 4
            # What goes out is what came in, and at most so much more.
            need = head.size + agent_size + 16 + (TIMES_SIZE if timed else 0)
            if room - used < need:
                # One allocation where the pings behind this one are like it.
                rounds = min((decoder.tail - decoder.head) // head.size + 1, <size_t>ROUNDS_AT_ONCE)
                room = max(room * 2, used + need * rounds)
                PyByteArray_Resize(out, <Py_ssize_t>room)
            p = <uint8_t*>PyByteArray_AS_STRING(out) + used + 8
            if head.version == 2:
                p = append_block(p, head.trace - 2, head.trace_size + 2)
            p[0] = TAG_PING_RESPONSE_MESSAGE
            p = append_varint(p + 1, text_size + prefix)
            p = append_block(p, b"pong: ", prefix)
            p = append_block(p, text, text_size)
            if agent_size:
                p[0] = TAG_PING_RESPONSE_VERSION
                p[1] = <uint8_t>agent_size
                p = append_block(p + 2, PyBytes_AS_STRING(<PyObject*>agent), agent_size)
            if timed:
                p = append_varint(append_varint(p, TAG_PING_RESPONSE_TIME_NS), nanoseconds(CLOCK_REALTIME))
                p = append_varint(append_varint(p, TAG_PING_RESPONSE_MONOTONIC_NS), nanoseconds(CLOCK_MONOTONIC))
            size = <size_t>(p - <uint8_t*>PyByteArray_AS_STRING(out)) - used
            # Downwards, as everywhere in this module: length and type stand before `p`.
            p = prepend_u32(p - size + 8, TYPE_PING_RESPONSE)
            prepend_u32(p, <uint32_t>(size - 4))
            used += size
            take(decoder, head.size)
            served += 1
    finally:
        if used != room:
            PyByteArray_Resize(out, <Py_ssize_t>used)
    return served


cdef inline uint64_t nanoseconds(clockid_t clock) noexcept:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline bint octets_ascii(const uint8_t* p, size_t size) noexcept:
    cdef size_t i = 0
    cdef uint64_t word
    cdef uint8_t rest = 0
    while size - i >= 8:
        memcpy(&word, p + i, 8)
        if word & 0x8080808080808080ULL:
            return False
        i += 8
    while i < size:
        rest |= p[i]
        i += 1
    return rest < 0x80

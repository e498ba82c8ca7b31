# The inline half of the wire core: what the generated message classes are made of.
#
# Encoding runs backwards, from a message's last field to its first, into the end
# of a scratch buffer.  A sub-message is then already written when its length is
# needed, and a frame's header is put before the payload, all in one pass and
# without moving a byte.
#
# Decoding runs forwards over the caller's bytes; `p` is the place and `end` the
# first byte that does not belong to the message.  No helper reads at `end`.
#
# Neither side keeps a path while all goes well.  `refuse` makes it, when a value
# or a byte is refused, from the tag at hand and the numbers of the fields around.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<stdint.h>":
    const int64_t INT64_MIN
    const int64_t INT64_MAX
    const uint64_t UINT64_MAX

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    bint PyUnicode_CheckExact(object)
    void* PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    bint PyLong_Check(object)
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1
    object PyLong_FromLongLong(long long)
    object PyLong_FromUnsignedLongLong(unsigned long long)
    object PyBytes_FromStringAndSize(const char*, Py_ssize_t)
    bint PyFloat_CheckExact(object)
    double PyFloat_AS_DOUBLE(object)

# Messages of the schema nest less deep than this; the generator checks it.
cdef enum:
    MAX_NESTING = 8

# google.protobuf's limit for messages and groups inside each other.
cdef enum:
    MAX_DEPTH = 100

# Wire types.
cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    GROUP_START = 3
    GROUP_END = 4
    FIXED32 = 5


# The fields around the present one, for `refuse`: number and index of each, -1
# where the field is not repeated.
cdef struct Place:
    PyObject* root  # borrowed: the class of the outermost message
    int depth
    uint32_t numbers[MAX_NESTING]
    Py_ssize_t indexes[MAX_NESTING]


cdef struct Writer:
    Place place
    uint8_t* start  # owner: the writer (take_writer, give_writer)
    uint8_t* p      # the first byte written so far
    uint8_t* end


cdef class Message:
    cdef int _write(self, Writer* w) except -1
    cdef int _merge(self, Place* place, const uint8_t* p, const uint8_t* end) except -1
    cdef tuple _contents(self)


cdef int refuse_value(Place* place, uint32_t tag, object index, object reason) except -1
cdef int refuse_bytes(Place* place, uint32_t tag, object index, object reason) except -1
cdef int register_message(object cls, dict fields) except -1

# ------------------------------------------------------------------ encoding

cdef int grow(Writer* w, size_t size) except -1
cdef const char* utf8_of(Writer* w, uint32_t tag, object index, object value, Py_ssize_t* size) except NULL
cdef int write_buffer(Writer* w, uint32_t tag, object value) except -1
cdef uint64_t integer_of(
    Writer* w, uint32_t tag, object index, object value, int64_t low, uint64_t high) except? 1
cdef double double_of(Writer* w, uint32_t tag, object index, object value) except? -1
cdef int write_str_list(Writer* w, uint32_t tag, object value) except -1
cdef int write_double_list(Writer* w, uint32_t tag, object value) except -1
cdef int write_str_map(Writer* w, uint32_t tag, object value) except -1
cdef int write_uint64_map(Writer* w, uint32_t tag, object value) except -1
cdef int write_error_body(Writer* w, object code, object message) except -1
cdef Py_ssize_t list_size(Writer* w, uint32_t tag, object value) except -1
cdef int expect_message(Writer* w, uint32_t tag, Py_ssize_t index, object value, object cls) except -1


cdef inline int reserve(Writer* w, size_t size) except -1:
    """Make room for `size` more bytes."""
    if <size_t>(w.p - w.start) < size:
        grow(w, size)
    return 0


cdef inline void put_varint(Writer* w, uint64_t value) noexcept nogil:
    """At most ten bytes; the caller has reserved them."""
    cdef uint8_t* p
    cdef uint64_t rest
    if value < 0x80:
        w.p -= 1
        w.p[0] = <uint8_t>value
        return
    rest = value
    while rest:
        w.p -= 1
        rest >>= 7
    p = w.p
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value


cdef inline int write_varint(Writer* w, uint32_t tag, uint64_t value) except -1:
    reserve(w, 15)
    put_varint(w, value)
    put_varint(w, tag)
    return 0


cdef inline int write_str(Writer* w, uint32_t tag, object value) except -1:
    cdef const char* data
    cdef Py_ssize_t size
    if PyUnicode_CheckExact(value) and PyUnicode_IS_COMPACT_ASCII(value):
        data = <const char*>PyUnicode_DATA(value)
        size = PyUnicode_GET_LENGTH(value)
    else:
        data = utf8_of(w, tag, None, value, &size)
    if size == 0:
        return 0
    reserve(w, <size_t>size + 15)
    w.p -= size
    memcpy(w.p, data, <size_t>size)
    put_varint(w, <uint64_t>size)
    put_varint(w, tag)
    return 0


cdef inline int write_bytes(Writer* w, uint32_t tag, object value) except -1:
    cdef Py_ssize_t size
    if not PyBytes_CheckExact(value):
        return write_buffer(w, tag, value)
    size = PyBytes_GET_SIZE(value)
    if size == 0:
        return 0
    reserve(w, <size_t>size + 15)
    w.p -= size
    memcpy(w.p, PyBytes_AS_STRING(value), <size_t>size)
    put_varint(w, <uint64_t>size)
    put_varint(w, tag)
    return 0


cdef inline int write_bool(Writer* w, uint32_t tag, object value) except -1:
    if value is False:
        return 0
    if value is not True and integer_of(w, tag, None, value, 0, 1) == 0:
        return 0
    return write_varint(w, tag, 1)


cdef inline int write_integer(Writer* w, uint32_t tag, object value, int64_t low, uint64_t high) except -1:
    """An integer from `low` to `high`; a negative one is ten bytes of its two's complement."""
    cdef int overflow = 0
    cdef int64_t number
    cdef uint64_t bits
    if PyLong_Check(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and number >= low and (number < 0 or <uint64_t>number <= high):
            if number == 0:
                return 0
            return write_varint(w, tag, <uint64_t>number)
    bits = integer_of(w, tag, None, value, low, high)
    return write_varint(w, tag, bits)


cdef inline int write_int32(Writer* w, uint32_t tag, object value) except -1:
    return write_integer(w, tag, value, -0x80000000, 0x7FFFFFFF)


cdef inline int write_int64(Writer* w, uint32_t tag, object value) except -1:
    return write_integer(w, tag, value, INT64_MIN, <uint64_t>INT64_MAX)


cdef inline int write_uint32(Writer* w, uint32_t tag, object value) except -1:
    return write_integer(w, tag, value, 0, 0xFFFFFFFF)


cdef inline int write_uint64(Writer* w, uint32_t tag, object value) except -1:
    return write_integer(w, tag, value, 0, UINT64_MAX)


cdef inline int put_double(Writer* w, double value) noexcept nogil:
    """Eight bytes, little-endian; the caller has reserved them."""
    cdef uint64_t bits
    cdef int i
    memcpy(&bits, &value, 8)
    w.p -= 8
    for i in range(8):
        w.p[i] = <uint8_t>(bits >> (8 * i))
    return 0


cdef inline int write_double(Writer* w, uint32_t tag, object value) except -1:
    cdef double number
    cdef uint64_t bits
    if PyFloat_CheckExact(value):
        number = PyFloat_AS_DOUBLE(value)
    else:
        number = double_of(w, tag, None, value)
    # Only +0.0 is the default: -0.0 has its sign bit set and is written.
    memcpy(&bits, &number, 8)
    if bits == 0:
        return 0
    reserve(w, 13)
    put_double(w, number)
    put_varint(w, tag)
    return 0


cdef inline size_t open_message(Writer* w, uint32_t tag, Py_ssize_t index) noexcept:
    """Begin a sub-message; returns what `close_message` wants."""
    w.place.numbers[w.place.depth] = tag >> 3
    w.place.indexes[w.place.depth] = index
    w.place.depth += 1
    return <size_t>(w.end - w.p)


cdef inline int close_message(Writer* w, uint32_t tag, size_t before) except -1:
    w.place.depth -= 1
    reserve(w, 15)
    put_varint(w, <uint64_t>(<size_t>(w.end - w.p) - before))
    put_varint(w, tag)
    return 0

# ------------------------------------------------------------------ decoding

cdef const uint8_t* long_varint(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL
cdef const uint8_t* long_tag(
    Place* place, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL
cdef const uint8_t* long_size(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL
cdef const uint8_t* skip(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end) except NULL
cdef int skip_all(Place* place, const uint8_t* p, const uint8_t* end) except -1
cdef object text_of(Place* place, uint32_t tag, const uint8_t* p, size_t size)
cdef const uint8_t* read_double_list(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, list values) except NULL
cdef const uint8_t* read_str_map(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values) except NULL
cdef const uint8_t* read_uint64_map(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values) except NULL
cdef tuple read_error_body(Place* place, const uint8_t* p, const uint8_t* end)


cdef inline const uint8_t* read_tag(
    Place* place, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    """The caller knows that p < end."""
    # Field number 0 is illegal, so a one-byte tag is 0x08 or more.
    if 0x08 <= p[0] < 0x80:
        tag[0] = p[0]
        return p + 1
    return long_tag(place, p, end, tag)


cdef inline const uint8_t* read_varint(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    if p < end and p[0] < 0x80:
        value[0] = p[0]
        return p + 1
    return long_varint(place, tag, p, end, value)


cdef inline const uint8_t* read_size(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL:
    """A length, judged: that many bytes are there after the returned place."""
    if p < end and p[0] < 0x80 and p[0] < end - p:
        size[0] = p[0]
        return p + 1
    return long_size(place, tag, p, end, size)


cdef inline object read_str(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef size_t size = 0
    cdef const uint8_t* data = read_size(place, tag, p[0], end, &size)
    p[0] = data + size
    return text_of(place, tag, data, size)


cdef inline object read_bytes(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef size_t size = 0
    cdef const uint8_t* data = read_size(place, tag, p[0], end, &size)
    p[0] = data + size
    return PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>size)


cdef inline object read_bool(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(place, tag, p[0], end, &value)
    return True if value else False


cdef inline object read_int32(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(place, tag, p[0], end, &value)
    # Of a longer varint the low 32 bits count.
    return PyLong_FromLongLong(<int32_t><uint32_t>value)


cdef inline object read_int64(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(place, tag, p[0], end, &value)
    return PyLong_FromLongLong(<int64_t>value)


cdef inline object read_uint32(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(place, tag, p[0], end, &value)
    return PyLong_FromUnsignedLongLong(<uint32_t>value)


cdef inline object read_uint64(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(place, tag, p[0], end, &value)
    return PyLong_FromUnsignedLongLong(value)


cdef inline double double_at(const uint8_t* p) noexcept nogil:
    cdef uint64_t bits = 0
    cdef double value
    cdef int i
    for i in range(8):
        bits |= <uint64_t>p[i] << (8 * i)
    memcpy(&value, &bits, 8)
    return value


cdef inline object read_double(Place* place, uint32_t tag, const uint8_t** p, const uint8_t* end):
    if end - p[0] < 8:
        refuse_bytes(place, tag, None, "the message ends inside a double")
    p[0] += 8
    return double_at(p[0] - 8)


cdef inline void enter(Place* place, uint32_t tag, Py_ssize_t index) noexcept nogil:
    place.numbers[place.depth] = tag >> 3
    place.indexes[place.depth] = index
    place.depth += 1


cdef inline void leave(Place* place) noexcept nogil:
    place.depth -= 1

# The inline half of the wire's core: what the generated message classes are made of.
#
# Encoding runs backwards, from a message's last field to its first, into the end
# of a scratch buffer.  A sub-message is then already written when its length is
# needed, and a frame's header is put before the payload, all in one pass and
# without moving a byte.
#
# Decoding runs forwards over the caller's bytes; `p` is the place and `end` the
# first byte that does not belong to the message.  No helper reads at `end`.
#
# Neither side keeps a path while all goes well.  `refuse_...` makes it, when a value
# or a byte is refused, from the tag at hand and the numbers of the fields around.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<stdint.h>":
    const int64_t INT64_MIN
    const int64_t INT64_MAX
    const uint64_t UINT64_MAX

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

# Declared here with borrowed pointers: cpython's own declarations take references.
cdef extern from "Python.h":
    PyObject* Py_False
    PyObject* Py_True
    bint PyUnicode_CheckExact(PyObject*)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject*)
    void* PyUnicode_DATA(PyObject*)
    ctypedef struct PyASCIIObject:
        pass
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject*)
    bint PyBytes_CheckExact(PyObject*)
    char* PyBytes_AS_STRING(PyObject*)
    Py_ssize_t PyBytes_GET_SIZE(PyObject*)
    bint PyLong_Check(PyObject*)
    long long PyLong_AsLongLongAndOverflow(PyObject*, int*) except? -1
    bint PyFloat_CheckExact(PyObject*)
    double PyFloat_AS_DOUBLE(PyObject*)
    object PyLong_FromLongLong(long long)
    object PyLong_FromUnsignedLongLong(unsigned long long)
    object PyBytes_FromStringAndSize(const char*, Py_ssize_t)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    PyObject* PySequence_Fast_GET_ITEM(object, Py_ssize_t)

# Defaults that are one object each in CPython, so that most are known by their address
# and cost no call.  An equal value that is another object is found out by its helper.
cdef PyObject* zero         # 0
cdef PyObject* empty_str    # ""
cdef PyObject* empty_bytes  # b""
cdef PyObject* unset        # (): a list or a map that nobody has asked for yet

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


# The fields around the present one, for `refuse_...`: number and index of each, -1
# where the field is not repeated.
cdef struct Place:
    PyObject* root  # borrowed: the class of the outermost message
    int depth
    uint32_t numbers[MAX_NESTING]
    Py_ssize_t indexes[MAX_NESTING]


cdef struct Writer:
    Place place
    uint8_t* start  # owner: the writer (take_writer, give_writer)
    uint8_t* end


cdef int refuse_value(Place* place, uint32_t tag, object index, object reason) except -1
cdef int refuse_bytes(Place* place, uint32_t tag, object index, object reason) except -1
cdef int describe(object cls, dict fields) except -1
cdef object held(PyObject* value)
cdef str kind_of(object value)
cdef object sequence_of(Writer* w, uint32_t tag, PyObject* borrowed)

# ------------------------------------------------------------------ encoding
#
# Values are borrowed from the message that holds them (PyObject*, no reference is
# taken) on the short ways; the long ways (`..._of`, in _wire.pyx) take one.

cdef uint8_t* take_writer(Writer* w, PyObject* cls) except NULL
cdef void give_writer(Writer* w) noexcept
cdef uint8_t* grow(Writer* w, uint8_t* p, size_t size) except NULL
cdef const char* utf8_of(
    Writer* w, uint32_t tag, object index, PyObject* value, Py_ssize_t* size) except NULL
cdef uint8_t* write_other_str(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_buffer(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint64_t integer_of(
    Writer* w, uint32_t tag, object index, PyObject* value, int64_t low, uint64_t high) except? 1
cdef double double_of(Writer* w, uint32_t tag, object index, PyObject* value) except? -1
cdef uint8_t* write_str_list(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_double_list(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_str_map(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_uint64_map(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_error_body(Writer* w, uint8_t* p, PyObject* code, PyObject* message) except NULL


cdef inline uint8_t* reserve(Writer* w, uint8_t* p, size_t size) except NULL:
    """Make room for `size` more bytes before p."""
    if <size_t>(p - w.start) < size:
        return grow(w, p, size)
    return p


cdef inline uint8_t* put_varint(uint8_t* p, uint64_t value) noexcept nogil:
    """At most ten bytes; the caller has reserved them."""
    cdef uint8_t* start
    if value < 0x80:
        p -= 1
        p[0] = <uint8_t>value
        return p
    # Seven bits a byte: as many bytes as the bits need.
    p -= (70 - __builtin_clzll(value)) // 7
    start = p
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return start


cdef inline uint8_t* put_block(uint8_t* p, const void* data, size_t size) noexcept nogil:
    """`size` bytes, which the caller has reserved."""
    cdef uint64_t first, last
    cdef uint32_t first4, last4
    p -= size
    # Most texts are short, and a call of memcpy with an unknown size costs more than they do.
    # So its ends are copied, which meet or overlap.
    if size <= 64:
        if size >= 32:
            memcpy(p, data, 32)
            memcpy(p + size - 32, <const uint8_t*>data + size - 32, 32)
            return p
        if size >= 16:
            memcpy(p, data, 16)
            memcpy(p + size - 16, <const uint8_t*>data + size - 16, 16)
            return p
        if size >= 8:
            memcpy(&first, data, 8)
            memcpy(&last, <const uint8_t*>data + size - 8, 8)
            memcpy(p, &first, 8)
            memcpy(p + size - 8, &last, 8)
            return p
        if size >= 4:
            memcpy(&first4, data, 4)
            memcpy(&last4, <const uint8_t*>data + size - 4, 4)
            memcpy(p, &first4, 4)
            memcpy(p + size - 4, &last4, 4)
            return p
    memcpy(p, data, size)
    return p


cdef inline uint8_t* write_varint(Writer* w, uint8_t* p, uint32_t tag, uint64_t value) except NULL:
    p = reserve(w, p, 15)
    p = put_varint(p, value)
    return put_varint(p, tag)


cdef inline uint8_t* write_block(
    Writer* w, uint8_t* p, uint32_t tag, const void* data, size_t size) except NULL:
    """Tag, length, bytes."""
    p = reserve(w, p, size + 15)
    p = put_block(p, data, size)
    p = put_varint(p, size)
    return put_varint(p, tag)


cdef inline bint is_ascii(PyObject* value) noexcept:
    """Is it a str whose characters are its UTF-8 too?"""
    return value != NULL and PyUnicode_CheckExact(value) and PyUnicode_IS_COMPACT_ASCII(value)


cdef inline const void* ascii_of(PyObject* value) noexcept:
    """The bytes of such a str: right behind its head."""
    return <char*>value + sizeof(PyASCIIObject)


cdef inline uint8_t* write_str(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    cdef Py_ssize_t size
    if not is_ascii(value):
        return write_other_str(w, p, tag, value)
    size = PyUnicode_GET_LENGTH(value)
    if size == 0:
        return p
    return write_block(w, p, tag, ascii_of(value), <size_t>size)


cdef inline uint8_t* write_bytes(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    cdef Py_ssize_t size
    if value == NULL or not PyBytes_CheckExact(value):
        return write_buffer(w, p, tag, value)
    size = PyBytes_GET_SIZE(value)
    if size == 0:
        return p
    return write_block(w, p, tag, PyBytes_AS_STRING(value), <size_t>size)


cdef inline uint8_t* write_bool(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    if value != Py_True and integer_of(w, tag, None, value, 0, 1) == 0:
        return p
    return write_varint(w, p, tag, 1)


cdef inline uint8_t* write_integer(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, int64_t low, uint64_t high) except NULL:
    """An integer from `low` to `high`; a negative one is ten bytes of its two's complement."""
    cdef int overflow = 0
    cdef int64_t number
    cdef uint64_t bits
    if value != NULL and PyLong_Check(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and number >= low and (number < 0 or <uint64_t>number <= high):
            if number == 0:
                return p
            return write_varint(w, p, tag, <uint64_t>number)
    bits = integer_of(w, tag, None, value, low, high)
    return write_varint(w, p, tag, bits)


cdef inline uint8_t* write_int32(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return write_integer(w, p, tag, value, -0x80000000, 0x7FFFFFFF)


cdef inline uint8_t* write_int64(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return write_integer(w, p, tag, value, INT64_MIN, <uint64_t>INT64_MAX)


cdef inline uint8_t* write_uint32(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return write_integer(w, p, tag, value, 0, 0xFFFFFFFF)


cdef inline uint8_t* write_uint64(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return write_integer(w, p, tag, value, 0, UINT64_MAX)


cdef inline uint8_t* put_double(uint8_t* p, double value) noexcept nogil:
    """Eight bytes, little-endian; the caller has reserved them."""
    cdef uint64_t bits
    cdef int i
    memcpy(&bits, &value, 8)
    p -= 8
    for i in range(8):
        p[i] = <uint8_t>(bits >> (8 * i))
    return p


cdef inline uint8_t* write_double(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    cdef double number
    cdef uint64_t bits
    if value != NULL and PyFloat_CheckExact(value):
        number = PyFloat_AS_DOUBLE(value)
    else:
        number = double_of(w, tag, None, value)
    # Only +0.0 is the default: -0.0 has its sign bit set and is written.
    memcpy(&bits, &number, 8)
    if bits == 0:
        return p
    p = reserve(w, p, 13)
    p = put_double(p, number)
    return put_varint(p, tag)

cdef inline uint8_t* put_u32(uint8_t* p, uint32_t value) noexcept nogil:
    """Four bytes, big-endian; the caller has reserved them."""
    p -= 4
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value
    return p


cdef inline uint32_t u32_at(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]

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
cdef const uint8_t* read_str_item(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, list values) except NULL
cdef const uint8_t* read_double_item(
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

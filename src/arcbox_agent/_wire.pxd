# The inline half of the wire's core: what the generated message classes are made of.
#
# Encoding runs backwards, from a message's last field to its first, into the end
# of a scratch buffer.  A sub-message is then already written when its length is
# needed, and a frame's header is put before the payload, all in one pass and
# without moving a byte.
#
# Most values are short, and are written by `prepend_short_...`: in line, after one look at the room
# (`short_start`) and one at the object.  Whatever else a value may be, the helper behind it
# (`write_...`) finds out: longer, of a subclass, not ASCII, negative, wrong.
#
# Decoding runs forwards over the caller's bytes; `p` is the next byte and `end` the
# first byte that does not belong to the message.  No helper reads at `end`.
#
# Neither side keeps a path while all goes well.  `refuse_...` makes it, when a value
# or a byte is refused, from the tag at hand and the numbers of the fields around.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from arcbox_agent._bytes cimport *

cdef extern from "<stdint.h>":
    const int64_t INT64_MIN
    const int64_t INT64_MAX

cdef extern from "short_values.h":
    enum: SHORT_TEXT "ARCBOX_SHORT_TEXT"
    bint short_int "arcbox_short_int"(PyObject*, int64_t*) noexcept
    uint8_t* prepend_short_text "arcbox_prepend_short_text"(uint8_t*, const void*, size_t) noexcept nogil
    uint8_t* prepend_short_str "arcbox_prepend_short_str"(
        uint8_t*, const uint8_t*, uint32_t, PyObject*) noexcept

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
    bint PyList_CheckExact(PyObject*)
    Py_ssize_t list_size "PyList_GET_SIZE"(PyObject*)
    bint PyDict_CheckExact(PyObject*)
    Py_ssize_t dict_size "PyDict_GET_SIZE"(PyObject*)
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
cdef PyObject* unset        # (): a list or a map that was never asked for

# Messages of the schema nest less deep than this; the generator checks it.
cdef enum:
    MAX_NESTING = 8

# google.protobuf's limit for messages and groups inside each other.
cdef enum:
    MAX_DEPTH = 100

# A map's entry is a message of its own, with a key and a value: their tags.
cdef enum:
    TAG_ENTRY_KEY = 1 << 3 | 2
    TAG_ENTRY_STR = 2 << 3 | 2
    TAG_ENTRY_UINT64 = 2 << 3 | 0

# Wire types.
cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    GROUP_START = 3
    GROUP_END = 4
    FIXED32 = 5


# What one message may hold before its decoder refuses the rest, so that a frame costs time and
# memory in proportion to its bytes.  Each field on the wire counts as one value, unknown ones, those
# of sub-messages and the parts of a map's entry included.  A text that is not ASCII counts one more
# for each 64 bytes of it, as it takes time, and one for each 16 by which it is longer in memory: one
# wide character makes all of them wide.  It is also shorter than MAX_WIDE, or it could not be judged
# before it is made.
cdef enum:
    MAX_VALUES = 262144
    MAX_WIDE = 4194304


# The fields around the present one, for `refuse_...`: number and index of each, -1
# where the field is not repeated.
cdef struct Location:
    PyObject* root  # borrowed: the class of the outermost message
    Py_ssize_t left  # values that a decoder still takes
    int depth
    uint32_t numbers[MAX_NESTING]
    Py_ssize_t indexes[MAX_NESTING]


cdef enum:
    # Room for a tag and a length.
    FIELD_HEAD = 16
    SHORT_FIELD = FIELD_HEAD + SHORT_TEXT


cdef struct Writer:
    uint8_t* start  # owner: the writer (take_writer, give_writer)
    uint8_t* short_start  # start + SHORT_FIELD: at it and above is room for a short field
    uint8_t* end
    Location location


cdef int refuse_value(Location* location, uint32_t tag, object index, object reason) except -1
cdef int refuse_bytes(Location* location, uint32_t tag, object index, object reason) except -1
cdef int refuse_items(Location* location, uint32_t tag, Py_ssize_t most) except -1
cdef int refuse_values(Location* location, uint32_t tag) except -1
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
cdef uint8_t* write_str(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_buffer(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL
cdef uint8_t* write_integer(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, int64_t low, uint64_t high) except NULL
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


cdef inline uint8_t* reserve_short(Writer* w, uint8_t* p) except NULL:
    """Make room for a short field before p."""
    if p < w.short_start:
        return grow(w, p, SHORT_FIELD)
    return p


cdef inline uint8_t* write_varint(Writer* w, uint8_t* p, uint32_t tag, uint64_t value) except NULL:
    p = reserve_short(w, p)
    return prepend_tag(prepend_varint(p, value), tag)


cdef inline uint8_t* write_block(
    Writer* w, uint8_t* p, uint32_t tag, const void* data, size_t size) except NULL:
    """Tag, length, bytes."""
    p = reserve(w, p, size + FIELD_HEAD)
    p = prepend_block(p, data, size)
    p = prepend_varint(p, size)
    return prepend_tag(p, tag)


cdef inline bint is_ascii(PyObject* value) noexcept:
    """Is it a str whose characters are its UTF-8 too?"""
    return value != NULL and PyUnicode_CheckExact(value) and PyUnicode_IS_COMPACT_ASCII(value)


cdef inline bint is_empty_list(PyObject* value) noexcept:
    """Is it a list field with nothing in it?  Reading such a field has made a list of its own."""
    return value == unset or value != NULL and PyList_CheckExact(value) and list_size(value) == 0


cdef inline bint is_empty_map(PyObject* value) noexcept:
    return value == unset or value != NULL and PyDict_CheckExact(value) and dict_size(value) == 0


cdef inline const void* ascii_of(PyObject* value) noexcept:
    """The bytes of such a str: right behind its head."""
    return <char*>value + sizeof(PyASCIIObject)


cdef inline uint8_t* write_bytes(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    cdef size_t size
    if value == NULL or not PyBytes_CheckExact(value):
        return write_buffer(w, p, tag, value)
    size = <size_t>PyBytes_GET_SIZE(value)
    if size == 0:
        return p
    if size <= SHORT_TEXT and p >= w.short_start:
        return prepend_tag(prepend_short_text(p, PyBytes_AS_STRING(value), size), tag)
    return write_block(w, p, tag, PyBytes_AS_STRING(value), size)


cdef inline uint8_t* write_bool(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    if value != Py_True and integer_of(w, tag, None, value, 0, 1) == 0:
        return p
    return write_varint(w, p, tag, 1)


cdef inline uint8_t* prepend_short_int(
    uint8_t* p, const uint8_t* lowest, uint32_t tag, PyObject* value, uint64_t high) noexcept:
    """A field whose value is a plain int from 0 to `high`, before p, where that is not below `lowest`.

    NULL: it is another.
    """
    cdef int64_t number
    if value == NULL or p < lowest or not short_int(value, &number) or <uint64_t>number > high:
        return NULL
    if number == 0:
        return p
    return prepend_tag(prepend_varint(p, <uint64_t>number), tag)


cdef inline uint8_t* write_int32(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return (
        prepend_short_int(p, w.short_start, tag, value, 0x7FFFFFFF)
        or write_integer(w, p, tag, value, -0x80000000, 0x7FFFFFFF))


cdef inline uint8_t* write_int64(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return (
        prepend_short_int(p, w.short_start, tag, value, <uint64_t>INT64_MAX)
        or write_integer(w, p, tag, value, INT64_MIN, <uint64_t>INT64_MAX))


cdef inline uint8_t* write_uint32(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return (
        prepend_short_int(p, w.short_start, tag, value, 0xFFFFFFFF)
        or write_integer(w, p, tag, value, 0, 0xFFFFFFFF))


cdef inline uint8_t* write_uint64(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return (
        prepend_short_int(p, w.short_start, tag, value, UINT64_MAX)
        or write_integer(w, p, tag, value, 0, UINT64_MAX))


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
    p = reserve_short(w, p)
    return prepend_tag(prepend_double(p, number), tag)


# ------------------------------------------------------------------ decoding

cdef const uint8_t* long_varint(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL
cdef const uint8_t* long_tag(
    Location* location, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL
cdef const uint8_t* long_size(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL
cdef const uint8_t* skip(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end) except NULL
cdef int skip_all(Location* location, const uint8_t* p, const uint8_t* end) except -1
cdef object text_of(Location* location, uint32_t tag, const uint8_t* p, size_t size)
# `most`: items that the list or the map may hold.
cdef const uint8_t* read_str_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most) except NULL
cdef const uint8_t* read_double_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most) except NULL
cdef const uint8_t* read_str_map(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values, Py_ssize_t most) except NULL
cdef const uint8_t* read_uint64_map(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values, Py_ssize_t most) except NULL
cdef tuple read_error_body(Location* location, const uint8_t* p, const uint8_t* end)


cdef inline void begin_reading(Location* location, PyObject* root) noexcept nogil:
    """Before the outermost message is read."""
    location.root = root
    location.left = MAX_VALUES
    location.depth = 0


cdef inline const uint8_t* read_tag(
    Location* location, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    """The caller knows that p < end."""
    location.left -= 1
    if location.left < 0:
        refuse_values(location, 0)
    # Field number 0 is illegal, so a one-byte tag is 0x08 or more.
    if 0x08 <= p[0] < 0x80:
        tag[0] = p[0]
        return p + 1
    return long_tag(location, p, end, tag)


cdef inline const uint8_t* read_varint(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    if p < end and p[0] < 0x80:
        value[0] = p[0]
        return p + 1
    return long_varint(location, tag, p, end, value)


cdef inline const uint8_t* read_size(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL:
    """A length, judged: that many bytes follow the returned pointer."""
    if p < end and p[0] < 0x80 and p[0] < end - p:
        size[0] = p[0]
        return p + 1
    return long_size(location, tag, p, end, size)


cdef inline object read_str(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef size_t size = 0
    cdef const uint8_t* data = read_size(location, tag, p[0], end, &size)
    p[0] = data + size
    return text_of(location, tag, data, size)


cdef inline object read_bytes(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef size_t size = 0
    cdef const uint8_t* data = read_size(location, tag, p[0], end, &size)
    p[0] = data + size
    return PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>size)


cdef inline object read_bool(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(location, tag, p[0], end, &value)
    return True if value else False


cdef inline object read_int32(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(location, tag, p[0], end, &value)
    # Of a longer varint the low 32 bits count.
    return PyLong_FromLongLong(<int32_t><uint32_t>value)


cdef inline object read_int64(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(location, tag, p[0], end, &value)
    return PyLong_FromLongLong(<int64_t>value)


cdef inline object read_uint32(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(location, tag, p[0], end, &value)
    return PyLong_FromUnsignedLongLong(<uint32_t>value)


cdef inline object read_uint64(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    cdef uint64_t value = 0
    p[0] = read_varint(location, tag, p[0], end, &value)
    return PyLong_FromUnsignedLongLong(value)


cdef inline double double_at(const uint8_t* p) noexcept nogil:
    cdef uint64_t bits = 0
    cdef double value
    cdef int i
    for i in range(8):
        bits |= <uint64_t>p[i] << (8 * i)
    memcpy(&value, &bits, 8)
    return value


cdef inline object read_double(Location* location, uint32_t tag, const uint8_t** p, const uint8_t* end):
    if end - p[0] < 8:
        refuse_bytes(location, tag, None, "the message ends inside a double")
    p[0] += 8
    return double_at(p[0] - 8)


cdef inline void enter(Location* location, uint32_t tag, Py_ssize_t index) noexcept nogil:
    location.numbers[location.depth] = tag >> 3
    location.indexes[location.depth] = index
    location.depth += 1


cdef inline void leave(Location* location) noexcept nogil:
    location.depth -= 1

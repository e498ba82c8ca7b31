# cython: binding=False, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""The wire core: varints, messages' common part, frames.  Bytes in, values out:
no socket, no clock, no event loop.

`_messages.pyx`, generated, builds the message classes from the helpers here and
in `_wire.pxd`; `wire.py` is the public face of both.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport Py_TYPE, PyTypeObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memmove

from arcbox_agent.errors import (
    DecodeError,
    DecoderFailedError,
    EncodeError,
    FrameTooLargeError,
    FrameTooShortError,
    TraceLengthError,
    TruncatedFrameError,
)

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    PyObject* PySequence_Fast_GET_ITEM(object, Py_ssize_t)
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF
    double PyLong_AsDouble(object) except? -1
    void* PyObject_Malloc(size_t)
    void PyObject_Free(void*)
    object PyObject_Init(PyObject*, PyTypeObject*)
    void Py_INCREF(PyObject*)
    void Py_XDECREF(PyObject*)
    Py_ssize_t PyVectorcall_NARGS(size_t)
    void PyType_Modified(PyTypeObject*)
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t)
    Py_ssize_t PyTuple_GET_SIZE(PyObject*)
    object PyDescr_NewMember(PyTypeObject*, PyMemberDef*)
    object PyDescr_NewGetSet(PyTypeObject*, PyGetSetDef*)
    object PyDescr_NewMethod(PyTypeObject*, PyMethodDef*)

    int METH_VARARGS
    int METH_KEYWORDS
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*)

    ctypedef struct PyMethodDef:
        const char* ml_name
        PyCFunction ml_meth
        int ml_flags
        const char* ml_doc

    ctypedef object (*getter)(PyObject*, void*)
    ctypedef int (*setter)(PyObject*, PyObject*, void*) except -1
    ctypedef object (*vectorcallfunc)(PyObject*, PyObject* const*, size_t, PyObject*)

    ctypedef struct PyMemberDef:
        const char* name
        int type
        Py_ssize_t offset
        int flags
        const char* doc

    ctypedef struct PyGetSetDef:
        const char* name
        getter get
        setter set
        const char* doc
        void* closure

    # The slots that cpython.object leaves out.
    ctypedef struct TypeSlots "PyTypeObject":
        object (*tp_new)(PyTypeObject*, PyObject*, PyObject*)
        int (*tp_init)(PyObject*, PyObject*, PyObject*) except -1
        void (*tp_dealloc)(PyObject*) noexcept
        vectorcallfunc tp_vectorcall
        PyObject* tp_dict
        Py_ssize_t tp_basicsize

cdef extern from "structmember.h":
    int T_OBJECT_EX

# -------------------------------------------------- where something was wrong

#: Class -> {field number: (name, class of the sub-message or None)}.
cdef dict _fields = {}


cdef str _path(Place* place, uint32_t tag, object index):
    """Names from the outermost class down, as in `CreateContainerRequest.mounts[1].target`."""
    cls = <object>place.root
    path = cls.__name__
    cdef int i
    for i in range(place.depth):
        name, cls = _fields[cls][place.numbers[i]]
        path += f".{name}"
        if place.indexes[i] >= 0:
            path += f"[{place.indexes[i]}]"
    number = tag >> 3
    if number:
        field = _fields.get(cls, {}).get(number)
        path += f".{field[0]}" if field else f".{number}"
    if index is not None:
        path += f"[{index!r}]"
    return path


cdef int refuse_value(Place* place, uint32_t tag, object index, object reason) except -1:
    raise EncodeError(_path(place, tag, index), reason)


cdef int refuse_bytes(Place* place, uint32_t tag, object index, object reason) except -1:
    raise DecodeError(_path(place, tag, index), reason)


# ------------------------------------------------------------------- writing

cdef enum:
    SCRATCH_SIZE = 64 * 1024
    SCRATCH_KEPT = 1024 * 1024  # a larger one is given back to the system after use
    MESSAGE_LIMIT = 0x7FFFFFFF  # as google.protobuf

# The scratch buffer that nobody writes to at the moment, or NULL.
cdef uint8_t* _scratch = NULL
cdef size_t _scratch_size = 0

_zero = 0
_empty_str = ""
_empty_bytes = b""
cdef PyObject* zero = <PyObject*>_zero
cdef PyObject* empty_str = <PyObject*>_empty_str
cdef PyObject* empty_bytes = <PyObject*>_empty_bytes


cdef uint8_t* take_writer(Writer* w, PyObject* cls) except NULL:
    """The caller gives it back (`give_writer`) whatever happens."""
    global _scratch
    w.place.root = cls
    w.place.depth = 0
    if _scratch != NULL:
        # Taken, not shared: encoding may run a buffer's own code, which may encode.
        w.start = _scratch
        w.end = w.start + _scratch_size
        _scratch = NULL
    else:
        w.start = <uint8_t*>malloc(SCRATCH_SIZE)
        if w.start == NULL:
            raise MemoryError
        w.end = w.start + SCRATCH_SIZE
    return w.end


cdef void give_writer(Writer* w) noexcept:
    global _scratch, _scratch_size
    if _scratch == NULL and <size_t>(w.end - w.start) <= SCRATCH_KEPT:
        _scratch = w.start
        _scratch_size = <size_t>(w.end - w.start)
    else:
        free(w.start)


cdef uint8_t* grow(Writer* w, uint8_t* p, size_t size) except NULL:
    cdef size_t written = <size_t>(w.end - p)
    cdef size_t capacity = <size_t>(w.end - w.start)
    cdef uint8_t* start
    if size > MESSAGE_LIMIT or written + size > MESSAGE_LIMIT:
        refuse_value(&w.place, 0, None, "the message is longer than 2 GiB")
    capacity = max(capacity * 2, written + size)
    start = <uint8_t*>malloc(capacity)
    if start == NULL:
        raise MemoryError
    memcpy(start + capacity - written, p, written)
    free(w.start)
    w.start = start
    w.end = start + capacity
    return w.end - written


cdef object _held(PyObject* value):
    """A field's value; None where it was deleted by way of its descriptor."""
    return None if value == NULL else <object>value


cdef str _kind(object value):
    return type(value).__name__


cdef const char* utf8_of(
    Writer* w, uint32_t tag, object index, PyObject* borrowed, Py_ssize_t* size) except NULL:
    """UTF-8 of a str; it belongs to the str."""
    value = _held(borrowed)
    if not isinstance(value, str):
        refuse_value(&w.place, tag, index, f"expected str, not {_kind(value)}")
    try:
        return PyUnicode_AsUTF8AndSize(value, size)
    except UnicodeEncodeError as error:
        place = error.start
    refuse_value(&w.place, tag, index, f"character {place} has no UTF-8: a lone surrogate")
    return NULL


cdef uint8_t* write_other_str(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    cdef Py_ssize_t size = 0
    cdef const char* data = utf8_of(w, tag, None, value, &size)
    return write_block(w, p, tag, data, <size_t>size) if size else p


cdef uint8_t* write_buffer(Writer* w, uint8_t* p, uint32_t tag, PyObject* borrowed) except NULL:
    cdef Py_buffer buffer
    value = _held(borrowed)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        refuse_value(&w.place, tag, None, f"expected bytes, not {_kind(value)}")
    try:
        PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
    except (BufferError, ValueError) as error:
        reason = str(error)
    else:
        try:
            if buffer.len:
                p = write_block(w, p, tag, buffer.buf, <size_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)
        return p
    refuse_value(&w.place, tag, None, reason)
    return NULL


cdef uint64_t integer_of(
    Writer* w, uint32_t tag, object index, PyObject* borrowed, int64_t low, uint64_t high) except? 1:
    """Bits of an int that was not taken on the short way.

    Only CPython's own conversions are used: a subclass's methods would run in the middle
    of the encoding, and could change what is being encoded.
    """
    cdef int overflow = 0
    cdef int64_t number
    value = _held(borrowed)
    if not isinstance(value, int):
        refuse_value(&w.place, tag, index, f"expected int, not {_kind(value)}")
    number = PyLong_AsLongLongAndOverflow(borrowed, &overflow)
    if overflow == 0 and number >= low and (number < 0 or <uint64_t>number <= high):
        return <uint64_t>number
    if overflow > 0 and high > <uint64_t>INT64_MAX:
        try:
            return PyLong_AsUnsignedLongLong(value)
        except OverflowError:
            pass
    refuse_value(
        &w.place, tag, index, f"{int.__repr__(value)} is not in the range {low} to {high}")
    return 1


cdef double double_of(Writer* w, uint32_t tag, object index, PyObject* borrowed) except? -1:
    value = _held(borrowed)
    if isinstance(value, float):
        return PyFloat_AS_DOUBLE(borrowed)
    if not isinstance(value, int):
        refuse_value(&w.place, tag, index, f"expected float, not {_kind(value)}")
    try:
        return PyLong_AsDouble(value)
    except OverflowError:
        pass
    refuse_value(&w.place, tag, index, "the int is too large for a double")
    return 0


cdef object _sequence(Writer* w, uint32_t tag, PyObject* borrowed):
    value = _held(borrowed)
    if not isinstance(value, (list, tuple)):
        refuse_value(&w.place, tag, None, f"expected list, not {_kind(value)}")
    return value


cdef uint8_t* write_str_list(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    """An empty item is written too: only a whole field can be left out."""
    cdef Py_ssize_t i, size = 0
    cdef PyObject* item
    cdef const void* data
    items = _sequence(w, tag, value)
    i = PySequence_Fast_GET_SIZE(items)
    while i > 0:
        i -= 1
        item = PySequence_Fast_GET_ITEM(items, i)
        if is_ascii(item):
            data = ascii_of(item)
            size = PyUnicode_GET_LENGTH(item)
        else:
            data = utf8_of(w, tag, i, item, &size)
        p = write_block(w, p, tag, data, <size_t>size)
    return p


cdef uint8_t* write_double_list(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    """Packed: tag, length in bytes, the doubles."""
    cdef Py_ssize_t size, i
    cdef double number
    items = _sequence(w, tag, value)
    size = i = PySequence_Fast_GET_SIZE(items)
    if size == 0:
        return p
    p = reserve(w, p, <size_t>size * 8 + 15)
    while i > 0:
        i -= 1
        number = double_of(w, tag, i, PySequence_Fast_GET_ITEM(items, i))
        p = put_double(p, number)
    p = put_varint(p, <uint64_t>size * 8)
    return put_varint(p, tag)


cdef enum:
    ENTRIES_ON_STACK = 32


# A map's entry is a message of its own: the key is field 1, the value field 2.  Both are
# written even when empty, as google.protobuf does.

cdef uint8_t* write_str_map(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return _write_map(w, p, tag, value, True)


cdef uint8_t* write_uint64_map(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    return _write_map(w, p, tag, value, False)


cdef uint8_t* _write_map(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* borrowed, bint of_str) except NULL:
    cdef PyObject* on_stack[2 * ENTRIES_ON_STACK]
    cdef PyObject** entries = on_stack
    cdef PyObject* key
    cdef PyObject* item
    cdef Py_ssize_t position = 0, count = 0
    value = _held(borrowed)
    if not isinstance(value, dict):
        if value == ():
            return p  # nobody has asked for it yet
        refuse_value(&w.place, tag, None, f"expected dict, not {_kind(value)}")
    # A dict is walked from its first entry only, and the last is to be written first.
    if PyDict_Size(value) > ENTRIES_ON_STACK:
        entries = <PyObject**>malloc(2 * sizeof(PyObject*) * <size_t>PyDict_Size(value))
        if entries == NULL:
            raise MemoryError
    try:
        while PyDict_Next(value, &position, &key, &item):
            entries[2 * count] = key
            entries[2 * count + 1] = item
            count += 1
        while count > 0:
            count -= 1
            p = _write_entry(w, p, tag, entries[2 * count], entries[2 * count + 1], of_str)
    finally:
        if entries != on_stack:
            free(entries)
    return p


cdef uint8_t* _write_entry(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* key, PyObject* item, bint of_str) except NULL:
    cdef size_t before = <size_t>(w.end - p)
    if of_str:
        p = _write_entry_str(w, p, tag, 0x12, key, item)
    else:
        p = write_varint(w, p, 0x10, integer_of(w, tag, _held(key), item, 0, UINT64_MAX))
    p = _write_entry_str(w, p, tag, 0x0A, key, key)
    return write_varint(w, p, tag, <size_t>(w.end - p) - before)


cdef inline uint8_t* _write_entry_str(
    Writer* w, uint8_t* p, uint32_t tag, uint32_t part, PyObject* key, PyObject* text) except NULL:
    cdef const void* data
    cdef Py_ssize_t size = 0
    if is_ascii(text):
        data = ascii_of(text)
        size = PyUnicode_GET_LENGTH(text)
    else:
        data = utf8_of(w, tag, _held(key), text, &size)
    return write_block(w, p, part, data, <size_t>size)


cdef uint8_t* write_message(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL:
    if value == <PyObject*>None:
        return p
    return _write_inner(w, p, tag, -1, value, known)


cdef uint8_t* write_message_list(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL:
    cdef Py_ssize_t i
    items = _sequence(w, tag, value)
    i = PySequence_Fast_GET_SIZE(items)
    while i > 0:
        i -= 1
        if i >= PySequence_Fast_GET_SIZE(items):
            continue  # a buffer's own code, run by an item's field, has made the list shorter
        p = _write_inner(w, p, tag, i, PySequence_Fast_GET_ITEM(items, i), known)
    return p


cdef inline uint8_t* _write_inner(
    Writer* w, uint8_t* p, uint32_t tag, Py_ssize_t index, PyObject* value, MessageClass* known
) except NULL:
    cdef size_t before = <size_t>(w.end - p)
    if value == NULL or <PyObject*>Py_TYPE(<object>value) != known.type:
        refuse_value(
            &w.place, tag, index if index >= 0 else None,
            f"expected {(<object>known.type).__name__}, not {_kind(_held(value))}")
    enter(&w.place, tag, index)
    p = (<Message>value)._write(w, p)
    leave(&w.place)
    return write_varint(w, p, tag, <size_t>(w.end - p) - before)


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


cdef uint8_t* write_error_body(Writer* w, uint8_t* p, PyObject* code, PyObject* message) except NULL:
    """`i32 code, u32 message_length, message`."""
    cdef Py_ssize_t size = 0
    cdef const char* data = utf8_of(w, 2 << 3, None, message, &size)
    cdef uint64_t bits = integer_of(w, 1 << 3, None, code, -0x80000000, 0x7FFFFFFF)
    p = reserve(w, p, <size_t>size + 8)
    p = put_block(p, data, <size_t>size)
    p = put_u32(p, <uint32_t>size)
    return put_u32(p, <uint32_t>bits)


# ------------------------------------------------------------------- reading

cdef const uint8_t* long_varint(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    cdef int shift = 0
    cdef uint64_t result = 0
    while shift < 70:
        if p >= end:
            refuse_bytes(place, tag, None, "the message ends inside a varint")
        result |= <uint64_t>(p[0] & 0x7F) << shift
        if p[0] < 0x80:
            value[0] = result
            return p + 1
        p += 1
        shift += 7
    refuse_bytes(place, tag, None, "a varint is longer than ten bytes")
    return NULL


cdef const uint8_t* long_tag(
    Place* place, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    p = any_tag(place, p, end, tag)
    if tag[0] >> 3 == 0:
        refuse_bytes(place, 0, None, "field number 0")
    return p


cdef const uint8_t* any_tag(
    Place* place, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    """A tag among fields of which none is known: number 0 passes, as in google.protobuf."""
    cdef uint64_t value = 0
    cdef const uint8_t* start = p
    p = long_varint(place, 0, p, end, &value)
    if p - start > 5:
        refuse_bytes(place, 0, None, "a tag is longer than five bytes")
    if value >> 32:
        refuse_bytes(place, 0, None, f"field number {value >> 3} is above 536870911")
    tag[0] = <uint32_t>value
    return p


cdef const uint8_t* long_size(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL:
    cdef uint64_t value = 0
    cdef const uint8_t* start = p
    p = long_varint(place, tag, p, end, &value)
    if p - start > 5:
        refuse_bytes(place, tag, None, "a length is longer than five bytes")
    if value > <uint64_t>(end - p):
        refuse_bytes(place, tag, None, f"length {value} is more than the {end - p} bytes left")
    size[0] = <size_t>value
    return p


cdef const uint8_t* skip(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end) except NULL:
    """Past the value of an unknown field."""
    return _skip(place, tag, p, end, place.depth)


cdef int skip_all(Place* place, const uint8_t* p, const uint8_t* end) except -1:
    """All of a message that has no fields."""
    cdef uint32_t tag = 0
    while p < end:
        p = any_tag(place, p, end, &tag)
        p = skip(place, tag, p, end)
    return 0


cdef const uint8_t* _skip(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, int depth) except NULL:
    cdef uint32_t kind = tag & 7
    cdef uint64_t value = 0
    cdef size_t size = 0
    cdef uint32_t inner = 0
    if kind == VARINT:
        return read_varint(place, tag, p, end, &value)
    if kind == BYTES:
        p = read_size(place, tag, p, end, &size)
        return p + size
    if kind == FIXED64 or kind == FIXED32:
        size = 8 if kind == FIXED64 else 4
        if <size_t>(end - p) < size:
            refuse_bytes(place, tag, None, "the message ends inside a fixed-width value")
        return p + size
    if kind != GROUP_START:
        refuse_bytes(
            place, tag, None,
            "a group ends that did not begin" if kind == GROUP_END else f"wire type {kind}")
    if depth + 1 > MAX_DEPTH:
        refuse_bytes(place, tag, None, f"groups nest deeper than {MAX_DEPTH}")
    while p < end:
        p = any_tag(place, p, end, &inner)
        if inner & 7 == GROUP_END:
            if inner >> 3 != tag >> 3:
                refuse_bytes(place, tag, None, f"group {inner >> 3} ends inside it")
            return p
        p = _skip(place, inner, p, end, depth + 1)
    refuse_bytes(place, tag, None, "the message ends inside a group")
    return NULL


# Short texts come again and again - `stdout`, `running`, the names of variables - and
# making a str costs more than finding one.  So the last ones are kept, each in the one
# place that its bytes point to; whatever a peer sends, it is never more than these.
cdef enum:
    SHORT_TEXT = 16
    SHORT_TEXTS = 512

cdef struct ShortText:
    uint64_t first
    uint64_t last
    size_t size
    PyObject* text  # owned, or NULL

cdef ShortText _short_texts[SHORT_TEXTS]


cdef object text_of(Place* place, uint32_t tag, const uint8_t* p, size_t size):
    """A str of UTF-8, which is checked."""
    cdef uint64_t first = 0, last = 0
    cdef uint32_t first4, last4
    cdef size_t i
    cdef ShortText* short
    if size == 0:
        return ""
    if size > SHORT_TEXT:
        i = 0
        while size - i >= 8:
            memcpy(&first, p + i, 8)
            last |= first
            i += 8
        # The rest, with some bytes of the last round once more.
        memcpy(&first, p + size - 8, 8)
        if (first | last) & 0x8080808080808080ULL:
            return _other_text(place, tag, p, size)
        return _ascii(p, size)
    if size >= 8:
        memcpy(&first, p, 8)
        memcpy(&last, p + size - 8, 8)
    elif size >= 4:
        memcpy(&first4, p, 4)
        memcpy(&last4, p + size - 4, 4)
        first = first4
        last = last4
    else:
        first = p[0]
        last = <uint64_t>p[size // 2] << 8 | p[size - 1]
    if (first | last) & 0x8080808080808080ULL:
        return _other_text(place, tag, p, size)
    i = (first * 0x9E3779B97F4A7C15ULL + last * 0xC2B2AE3D27D4EB4FULL + size) >> 55  # 9 bits
    short = &_short_texts[i]
    if short.first != first or short.last != last or short.size != size:
        text = _ascii(p, size)
        Py_XDECREF(short.text)
        Py_INCREF(<PyObject*>text)
        short.first = first
        short.last = last
        short.size = size
        short.text = <PyObject*>text
        return text
    return <object>short.text


cdef inline object _ascii(const uint8_t* p, size_t size):
    text = PyUnicode_New(<Py_ssize_t>size, 0x7F)
    memcpy(PyUnicode_DATA(<PyObject*>text), p, size)
    return text


cdef object _other_text(Place* place, uint32_t tag, const uint8_t* p, size_t size):
    try:
        return PyUnicode_DecodeUTF8(<const char*>p, <Py_ssize_t>size, NULL)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    refuse_bytes(place, tag, None, reason)


cdef const uint8_t* read_str_item(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, list values) except NULL:
    values.append(read_str(place, tag, &p, end))
    return p


cdef const uint8_t* read_message(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, Message message) except NULL:
    cdef size_t size = 0
    p = read_size(place, tag, p, end, &size)
    enter(place, tag, -1)
    message._merge(place, p, p + size)
    leave(place)
    return p + size


cdef const uint8_t* read_message_item(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, MessageClass* known
) except NULL:
    cdef size_t size = 0
    cdef Message message = new_message(known)
    p = read_size(place, tag, p, end, &size)
    enter(place, tag, PyList_GET_SIZE(values))
    message._merge(place, p, p + size)
    leave(place)
    values.append(message)
    return p + size


cdef const uint8_t* read_double_item(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, list values) except NULL:
    """Packed or one by one: a reader takes both."""
    cdef size_t size = 0
    cdef const uint8_t* stop
    if tag & 7 == FIXED64:
        values.append(read_double(place, tag, &p, end))
        return p
    p = read_size(place, tag, p, end, &size)
    if size % 8:
        refuse_bytes(place, tag, None, f"{size} bytes are no whole number of doubles")
    stop = p + size
    while p < stop:
        values.append(double_at(p))
        p += 8
    return p


cdef const uint8_t* read_str_map(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values) except NULL:
    """One entry: a message with the key as field 1 and the value as field 2.

    An entry that holds anything else is unknown as a whole, as google.protobuf has it.
    """
    cdef size_t size = 0
    cdef bint known = True
    cdef uint32_t part = 0
    cdef const uint8_t* stop
    p = read_size(place, tag, p, end, &size)
    stop = p + size
    key = value = ""
    enter(place, tag, -1)
    while p < stop:
        p = read_tag(place, p, stop, &part)
        if part == 0x0A:
            key = read_str(place, 0, &p, stop)
        elif part == 0x12:
            value = read_str(place, 0, &p, stop)
        else:
            p = skip(place, part, p, stop)
            known = False
    leave(place)
    if known:
        values[key] = value
    return p


cdef const uint8_t* read_uint64_map(
    Place* place, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values) except NULL:
    cdef size_t size = 0
    cdef bint known = True
    cdef uint32_t part = 0
    cdef const uint8_t* stop
    p = read_size(place, tag, p, end, &size)
    stop = p + size
    key = ""
    value = 0
    enter(place, tag, -1)
    while p < stop:
        p = read_tag(place, p, stop, &part)
        if part == 0x0A:
            key = read_str(place, 0, &p, stop)
        elif part == 0x10:
            value = read_uint64(place, 0, &p, stop)
        else:
            p = skip(place, part, p, stop)
            known = False
    leave(place)
    if known:
        values[key] = value
    return p


cdef tuple read_error_body(Place* place, const uint8_t* p, const uint8_t* end):
    cdef uint32_t size
    if end - p < 4:
        refuse_bytes(place, 1 << 3, None, "the message ends inside the code")
    code = <int32_t>u32_at(p)
    if end - p < 8:
        refuse_bytes(place, 2 << 3, None, "the message ends inside the length of the text")
    size = u32_at(p + 4)
    if size > <size_t>(end - p - 8):
        refuse_bytes(place, 2 << 3, None, f"length {size} is more than the {end - p - 8} bytes left")
    return code, text_of(place, 2 << 3, p + 8, size)


# ------------------------------------------------------------------- classes
#
# A message object is the head of Message followed by one pointer for each field, in
# the order of the fields:
#
#     | refcount | type | methods | field 0 | field 1 | ... |
#
# All that does not depend on the wire type of a field - making, reading, comparing,
# showing - walks these pointers here, once for all classes.  The fields are plain
# members to CPython, which reads them at the speed of a `__slots__` attribute.

cdef enum:
    # What a frame's type number means, by frame version.
    TYPE_LIMIT = 0x2000
    # More than twice the number of classes, and a power of two.
    CLASS_SLOTS = 256
    # Objects of a class that wait to be used again, at most.
    FREE_MESSAGES = 256

cdef MessageClass* _by_type[2][TYPE_LIMIT]
cdef MessageClass* _by_class[CLASS_SLOTS]
cdef int _class_count = 0
#: (version, type number) -> class.
cdef dict _numbered = {}
cdef MessageClass* _error_class = NULL

_nothing = ()
cdef PyObject* unset = <PyObject*>_nothing


cdef inline size_t _slot_of(PyObject* cls) noexcept:
    return (<size_t>cls >> 4) % CLASS_SLOTS


cdef inline MessageClass* _find(PyObject* cls) noexcept:
    cdef size_t slot = _slot_of(cls)
    while _by_class[slot] != NULL:
        if _by_class[slot].type == cls:
            return _by_class[slot]
        slot = (slot + 1) % CLASS_SLOTS
    return NULL


cdef MessageClass* class_of(PyObject* cls) except NULL:
    """What is known of a class."""
    cdef MessageClass* known = _find(cls)
    if known == NULL:
        raise TypeError(f"{(<object>cls).__name__} is no class of the schema")
    return known


cdef inline PyObject** fields_of(PyObject* message) noexcept:
    return <PyObject**>(<char*>message + sizeof(MessageHead))


cdef struct MessageHead:
    Py_ssize_t refcount
    PyObject* type
    void* methods


# An object that waits to be used again: its reference count means nothing now.
cdef struct FreeMessage:
    PyObject* next


cdef MessageClass* register_message(object cls, tuple defaults, dict fields) except NULL:
    """Called by `_messages` for each class, when it is imported.

    `defaults`: of the fields, in their order; a list or a dict stands for an empty one.
    `fields`: number -> (name, class of the sub-message or None), in the order of the class.
    """
    global _class_count, _error_class
    cdef MessageClass* known
    cdef PyObject** held
    cdef Py_ssize_t i
    cdef int version
    cdef size_t slot
    cdef Py_ssize_t count = len(defaults)
    cdef TypeSlots* slots = <TypeSlots*>cls
    if slots.tp_basicsize != <Py_ssize_t>(sizeof(MessageHead) + count * sizeof(PyObject*)):
        raise SystemError(f"{cls.__name__} is not laid out as expected")
    if 2 * (_class_count + 1) > CLASS_SLOTS:
        raise SystemError("CLASS_SLOTS is too small for the schema")
    known = <MessageClass*>malloc(sizeof(MessageClass))
    if known == NULL:
        raise MemoryError
    prototype = slots.tp_new(<PyTypeObject*>cls, unset, NULL)
    held = fields_of(<PyObject*>prototype)
    for i in range(count):
        # In the place of the None that tp_new has put there.
        _put(held + i, _nothing if _is_lazy(defaults[i]) else defaults[i])
    names = cls.__match_args__
    known.type = <PyObject*>cls
    known.prototype = <PyObject*>prototype
    known.names = <PyObject*>names
    known.count = count
    known.free = NULL
    known.free_count = 0
    Py_INCREF(known.prototype)
    Py_INCREF(known.names)
    slot = _slot_of(known.type)
    while _by_class[slot] != NULL:
        slot = (slot + 1) % CLASS_SLOTS
    _by_class[slot] = known
    _class_count += 1
    _fields[cls] = fields
    _add_members(known, names, defaults)
    _add_init(known, names, defaults)
    slots.tp_new = _new
    slots.tp_init = _initialise
    slots.tp_dealloc = _dealloc
    slots.tp_vectorcall = _call
    PyType_Modified(<PyTypeObject*>cls)
    if cls.TYPE is None:
        return known
    if cls.TYPE == 0xFFFF:
        _error_class = known
    for version in (1, 2):
        if cls.FRAME_VERSION is None or cls.FRAME_VERSION == version:
            _numbered[version, cls.TYPE] = cls
            if cls.TYPE < TYPE_LIMIT:
                _by_type[version - 1][<uint32_t>cls.TYPE] = known
    return known


cdef int _add_members(MessageClass* known, tuple names, tuple defaults) except -1:
    cdef PyMemberDef* member
    cdef PyGetSetDef* lazy
    cdef TypeSlots* slots = <TypeSlots*>known.type
    cdef dict members = <dict>slots.tp_dict
    cdef Py_ssize_t i
    for i in range(known.count):
        # The name belongs to the tuple of names, which is never freed; nor are these.
        name = names[i]
        if _is_lazy(defaults[i]):
            lazy = <PyGetSetDef*>malloc(sizeof(PyGetSetDef))
            if lazy == NULL:
                raise MemoryError
            lazy.name = PyUnicode_AsUTF8AndSize(name, NULL)
            lazy.get = _get_map if type(defaults[i]) is dict else _get_list
            lazy.set = _set_lazy
            lazy.doc = NULL
            lazy.closure = <void*>i
            members[name] = PyDescr_NewGetSet(<PyTypeObject*>known.type, lazy)
        else:
            member = <PyMemberDef*>malloc(sizeof(PyMemberDef))
            if member == NULL:
                raise MemoryError
            member.name = PyUnicode_AsUTF8AndSize(name, NULL)
            member.type = T_OBJECT_EX
            member.offset = <Py_ssize_t>(sizeof(MessageHead) + i * sizeof(PyObject*))
            member.flags = 0
            member.doc = NULL
            members[name] = PyDescr_NewMember(<PyTypeObject*>known.type, member)
    return 0


cdef int _add_init(MessageClass* known, tuple names, tuple defaults) except -1:
    """`__init__`, for who calls it or wants to see what a class takes: `_call` makes objects."""
    cdef PyMethodDef* method = <PyMethodDef*>malloc(sizeof(PyMethodDef))
    cdef TypeSlots* slots = <TypeSlots*>known.type
    cdef dict members = <dict>slots.tp_dict
    if method == NULL:
        raise MemoryError
    parameters = "".join([f", {name}={value!r}" for name, value in zip(names, defaults)])
    # The form in which CPython keeps a signature in a docstring.
    doc = f"__init__($self, /, *{parameters})\n--\n\n" if names else "__init__($self, /)\n--\n\n"
    Py_INCREF(<PyObject*>doc)  # as long as the class
    method.ml_name = b"__init__"
    method.ml_meth = <PyCFunction><void*>_init
    method.ml_flags = METH_VARARGS | METH_KEYWORDS
    method.ml_doc = PyUnicode_AsUTF8AndSize(doc, NULL)
    members["__init__"] = PyDescr_NewMethod(<PyTypeObject*>known.type, method)
    return 0


cdef object _init(PyObject* message, PyObject* arguments, PyObject* named):
    _initialise(message, arguments, named)


cdef int _initialise(PyObject* message, PyObject* arguments, PyObject* named) except -1:
    """tp_init: for callers that do not know the vectorcall protocol, and for `_init`."""
    cls = <object>(<MessageHead*>message).type
    if PyTuple_GET_SIZE(arguments):
        raise TypeError(f"{cls.__name__}() takes keyword arguments only")
    if named != NULL:
        for name, value in (<dict>named).items():
            if name not in cls.__match_args__:
                raise TypeError(f"{cls.__name__} has no field {name!r}")
            setattr(<object>message, name, value)
    return 0


cdef bint _is_lazy(object default):
    return type(default) is list or type(default) is dict


cdef object _get_list(PyObject* message, void* closure):
    """A list that nobody has asked for yet is made when it is."""
    cdef PyObject** field = fields_of(message) + <Py_ssize_t>closure
    if field[0] == unset:
        _put(field, [])
    return _held(field[0])


cdef object _get_map(PyObject* message, void* closure):
    cdef PyObject** field = fields_of(message) + <Py_ssize_t>closure
    if field[0] == unset:
        _put(field, {})
    return _held(field[0])


cdef int _set_lazy(PyObject* message, PyObject* value, void* closure) except -1:
    if value == NULL:
        raise AttributeError("a message's field cannot be deleted")
    _put_lazy(fields_of(message) + <Py_ssize_t>closure, <object>value)
    return 0


cdef int _put_lazy(PyObject** field, object value) except -1:
    # A tuple would not be equal to the list that decoding it gives.
    _put(field, list(value) if type(value) is tuple and value else value)
    return 0


cdef inline void _put(PyObject** field, object value) noexcept:
    cdef PyObject* old = field[0]
    Py_INCREF(<PyObject*>value)
    field[0] = <PyObject*>value
    Py_XDECREF(old)


cdef Message new_message(MessageClass* known):
    """A message with all defaults: a copy of the prototype."""
    cdef TypeSlots* slots = <TypeSlots*>known.type
    cdef PyObject* raw = known.free
    cdef PyObject** source = fields_of(known.prototype)
    cdef PyObject** target
    cdef Py_ssize_t i
    if raw != NULL:
        known.free = (<FreeMessage*>raw).next
        known.free_count -= 1
    else:
        raw = <PyObject*>PyObject_Malloc(<size_t>slots.tp_basicsize)
        if raw == NULL:
            raise MemoryError
        (<MessageHead*>raw).methods = (<MessageHead*>known.prototype).methods
    target = fields_of(raw)
    for i in range(known.count):
        Py_INCREF(source[i])
        target[i] = source[i]
    return <Message>PyObject_Init(raw, <PyTypeObject*>known.type)


cdef void _dealloc(PyObject* message) noexcept:
    """tp_dealloc: some objects are kept for the next ones."""
    cdef MessageClass* known = _find((<MessageHead*>message).type)
    cdef PyObject** held = fields_of(message)
    cdef Py_ssize_t i
    for i in range(known.count):
        Py_XDECREF(held[i])
    if known.free_count < FREE_MESSAGES:
        (<FreeMessage*>message).next = known.free
        known.free = message
        known.free_count += 1
    else:
        PyObject_Free(message)


cdef object _new(PyTypeObject* cls, PyObject* args, PyObject* kwargs):
    """tp_new: what `cls.__new__(cls)`, copy and pickle call."""
    return new_message(class_of(<PyObject*>cls))


cdef object _call(PyObject* cls, PyObject* const* args, size_t flags, PyObject* names):
    """`cls(name=value, ...)`, without a dict of the arguments."""
    cdef MessageClass* known = class_of(cls)
    cdef Message message
    cdef Py_ssize_t i, at, next_at = 0
    if PyVectorcall_NARGS(flags):
        raise TypeError(f"{(<object>cls).__name__}() takes keyword arguments only")
    message = new_message(known)
    if names != NULL:
        for i in range(PyTuple_GET_SIZE(names)):
            # Mostly they come in the order of the fields.
            at = _position(known, PyTuple_GET_ITEM(names, i), next_at)
            next_at = at + 1
            if fields_of(known.prototype)[at] == unset:
                _put_lazy(fields_of(<PyObject*>message) + at, <object>args[i])
            else:
                _put(fields_of(<PyObject*>message) + at, <object>args[i])
    return message


cdef Py_ssize_t _position(MessageClass* known, PyObject* name, Py_ssize_t first) except -1:
    """Where a field stands, by its name."""
    cdef Py_ssize_t i
    for i in range(first, known.count):
        if PyTuple_GET_ITEM(known.names, i) == name:
            return i
    for i in range(known.count):
        if PyTuple_GET_ITEM(known.names, i) == name:
            return i
    # Not the same object, so slowly.
    wanted = <object>name
    for i in range(known.count):
        if <object>PyTuple_GET_ITEM(known.names, i) == wanted:
            return i
    raise TypeError(f"{(<object>known.type).__name__} has no field {wanted!r}")


def message_class(type, version=1):
    """The class of a frame's payload, or None where the type number is unknown."""
    return _numbered.get((version, type))


cdef class Message:
    """What all messages have in common.  The fields are in the generated classes."""

    #: The type number of its frame; None: it travels in no frame of its own.
    TYPE = None
    #: The only frame version with this layout; None: every version.
    FRAME_VERSION = None
    #: The names of the fields.
    __match_args__ = ()
    __hash__ = None  # it can be changed

    cdef uint8_t* _write(self, Writer* w, uint8_t* p) except NULL:
        raise NotImplementedError

    cdef int _merge(self, Place* place, const uint8_t* p, const uint8_t* end) except -1:
        raise NotImplementedError

    def __delattr__(self, name):
        raise AttributeError(f"a message's field cannot be deleted: {name!r}")

    def encode(self):
        """The message's bytes.  EncodeError: a field's value is not of its type or range."""
        cdef Writer w
        cdef uint8_t* p = take_writer(&w, <PyObject*>Py_TYPE(self))
        try:
            p = self._write(&w, p)
            return PyBytes_FromStringAndSize(<const char*>p, w.end - p)
        finally:
            give_writer(&w)

    @classmethod
    def decode(cls, buffer):
        """A message from bytes, bytearray or memoryview.  DecodeError: broken bytes."""
        cdef Place place
        cdef Py_buffer view
        cdef const uint8_t* p
        cdef Message message = new_message(class_of(<PyObject*>cls))
        place.root = <PyObject*>cls
        place.depth = 0
        if PyBytes_CheckExact(<PyObject*>buffer):
            p = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>buffer)
            message._merge(&place, p, p + PyBytes_GET_SIZE(<PyObject*>buffer))
            return message
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            p = <const uint8_t*>view.buf
            message._merge(&place, p, p + view.len)
        finally:
            PyBuffer_Release(&view)
        return message

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return _contents(self) == _contents(other)

    def __repr__(self):
        # Defaults are left out, as on the wire.
        cls = type(self)
        defaults = _contents(new_message(class_of(<PyObject*>cls)))
        fields = ", ".join([
            f"{name}={value!r}"
            for name, value, default in zip(self.__match_args__, _contents(self), defaults)
            if value != default or type(value) is not type(default)
        ])
        return f"{cls.__name__}({fields})"

    def __reduce__(self):
        # By name, so that a field added later does no harm.
        return _rebuild, (type(self), dict(zip(self.__match_args__, _contents(self))))

    def __copy__(self):
        return type(self)(**dict(zip(self.__match_args__, _contents(self))))


def _rebuild(cls, fields):
    """What a pickled message calls."""
    return cls(**fields)


cdef list _contents(Message message):
    """The values of all fields, in their order."""
    return [getattr(message, name) for name in message.__match_args__]


# -------------------------------------------------------------------- frames

#: The default limit of a frame's length, judged before any memory is taken for it.
MAX_FRAME_SIZE = 16 * 1024 * 1024

cdef enum:
    TRACE_LIMIT = 0xFFFF


cdef uint8_t* put_frame_header(
    Writer* w, uint8_t* p, uint32_t type, object trace_id) except NULL:
    """Before the payload, which is already written:

    V1  u32 length, u32 type, payload
    V2  u32 length, u32 type, u16 trace_length, trace id, payload

    `length` counts all that follows it.
    """
    cdef bytes trace
    cdef size_t size
    if trace_id is not None:
        # surrogateescape: a trace id that is not UTF-8 is echoed as it came.
        trace = trace_id.encode("utf-8", "surrogateescape")
        size = <size_t>len(trace)
        if size > TRACE_LIMIT:
            raise TraceLengthError(size, TRACE_LIMIT)
        p = reserve(w, p, size + 2)
        p = put_block(p, PyBytes_AS_STRING(<PyObject*>trace), size)
        p -= 2
        p[0] = <uint8_t>(size >> 8)
        p[1] = <uint8_t>size
    p = reserve(w, p, 8)
    size = <size_t>(w.end - p) + 4
    p = put_u32(p, type)
    return put_u32(p, <uint32_t>size)


def encode_frame(type, payload, trace_id=None):
    """A frame: V1 without a trace id, V2 with one, the empty one included."""
    cdef Writer w
    cdef Py_buffer view
    cdef uint8_t* p
    cdef uint32_t number = type
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        p = take_writer(&w, <PyObject*>Message)
        try:
            p = reserve(&w, p, <size_t>view.len)
            p = put_block(p, view.buf, <size_t>view.len)
            p = put_frame_header(&w, p, number, trace_id)
            return PyBytes_FromStringAndSize(<const char*>p, w.end - p)
        finally:
            give_writer(&w)
    finally:
        PyBuffer_Release(&view)


def encode_message(Message message not None, trace_id=None):
    """The frame of a message, in one pass."""
    cdef Writer w
    cdef uint8_t* p
    cls = type(message)
    if cls.TYPE is None:
        raise EncodeError(cls.__name__, "has no message type, so it travels in no frame of its own")
    cdef uint32_t number = cls.TYPE
    p = take_writer(&w, <PyObject*>cls)
    try:
        p = message._write(&w, p)
        p = put_frame_header(&w, p, number, trace_id)
        return PyBytes_FromStringAndSize(<const char*>p, w.end - p)
    finally:
        give_writer(&w)


def encode_error(code, message, trace_id=None):
    """The frame of an Error."""
    return encode_message(message_class(0xFFFF)(code=code, message=message), trace_id)


def decode_error(payload):
    """An Error from whatever a peer sent as one: what cannot be read is made up for.

    A missing code is 500, a text that is cut or not UTF-8 is shown as far as it goes.
    """
    body = bytes(payload)
    code = int.from_bytes(body[:4], "big", signed=True) if len(body) >= 4 else 500
    size = int.from_bytes(body[4:8], "big")
    text = body[8:8 + size].decode("utf-8", "replace")
    return message_class(0xFFFF)(code=code, message=text)


@cython.final
cdef class Frame:
    """One frame.  `trace_id` is None in V1."""

    cdef readonly uint32_t type
    cdef readonly int version
    cdef readonly bytes payload
    cdef readonly str trace_id

    def __repr__(self):
        trace = "" if self.trace_id is None else f", trace_id={self.trace_id!r}"
        return f"Frame(type={self.type:#06x}, payload={self.payload!r}{trace})"


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
    """Frames out of a stream of bytes.

    `feed` never parses and `next_frame` never reads: the caller owns the socket.
    After an error the stream cannot be picked up again and the decoder stays failed.

    version: None tells V1 and V2 apart frame by frame, as an agent must; a client
    knows which version it sent, and so which it gets.
    """

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

    def __init__(self, max_frame_size=MAX_FRAME_SIZE, version=None):
        self.limit = max_frame_size
        self.version = 0 if version is None else version
        if version is not None and not 1 <= self.version <= 2:
            raise ValueError(f"version: expected None, 1 or 2, not {version!r}")

    def __dealloc__(self):
        free(self.copy)

    def __sizeof__(self):
        return Py_TYPE(self).tp_basicsize + <Py_ssize_t>self.capacity

    @property
    def buffered(self):
        """Bytes fed and not yet taken."""
        return self.tail - self.head

    def feed(self, data):
        """More of the stream, as it came from the socket."""
        cdef Py_buffer view
        if self.failure is not None:
            self._raise_failed()
        if self.ended:
            raise ValueError("fed after eof()")
        if self.head == self.tail:
            self.head = self.tail = 0
            self.owner = None
            if PyBytes_CheckExact(<PyObject*>data):
                # Nothing is left over: read straight from the caller's bytes.
                self.owner = data
                self.base = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>data)
                self.tail = <size_t>PyBytes_GET_SIZE(<PyObject*>data)
                return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._append(<const uint8_t*>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int _append(self, const uint8_t* data, size_t size) except -1:
        cdef size_t left = self.tail - self.head
        cdef size_t capacity
        cdef uint8_t* copy
        if self.owner is not None or self.capacity - self.tail < size:
            if self.owner is None and self.head > left and self.capacity - left >= size:
                # More than half is taken: moving the rest costs less than was read.
                memmove(self.copy, self.copy + self.head, left)
            else:
                capacity = max(left + size, left + left // 2, <size_t>4096)
                copy = <uint8_t*>malloc(capacity)
                if copy == NULL:
                    raise MemoryError
                memcpy(copy, self.base + self.head, left)
                free(self.copy)
                self.copy = copy
                self.capacity = capacity
            self.owner = None
            self.head = 0
            self.tail = left
        self.base = self.copy
        memcpy(self.copy + self.tail, data, size)
        self.tail += size
        return 0

    cdef int _raise_failed(self) except -1:
        raise DecoderFailedError("the stream failed before") from self.failure

    cdef int _fail(self, object error) except -1:
        self.failure = error
        raise error

    cdef int _peek(self, Head* frame, bint quiet) except -1:
        """Where the next frame is: 1, or 0 while it is not whole.

        A broken one raises, or where `quiet` is 0 too: what came before it is given out first.
        """
        cdef size_t left = self.tail - self.head
        cdef const uint8_t* p = self.base + self.head
        cdef uint32_t length
        cdef int version = self.version
        if left < 4:
            return 0
        length = u32_at(p)
        # Judged as soon as it is there, and never a reason to take memory.
        if length > self.limit:
            return 0 if quiet else self._fail(FrameTooLargeError(length, self.limit))
        if length < 4 or (version == 2 and length < 6):
            return 0 if quiet else self._fail(FrameTooShortError(length, 6 if version == 2 else 4))
        if version == 0:
            # A protobuf message never begins with a byte below 8: field number 0 is illegal.
            if length == 4:
                version = 1
            elif left < 9:
                return 0
            else:
                version = 2 if p[8] < 8 else 1
                if version == 2 and length < 6:
                    return 0 if quiet else self._fail(FrameTooShortError(length, 6))
        frame.trace = NULL
        frame.trace_size = 0
        if version == 2:
            if left >= 10:
                frame.trace_size = <size_t>p[8] << 8 | p[9]
                if frame.trace_size > length - 6:
                    return 0 if quiet else self._fail(TraceLengthError(frame.trace_size, length - 6))
        if left - 4 < length:
            return 0
        frame.type = u32_at(p + 4)
        frame.version = version
        frame.size = <size_t>length + 4
        if version == 2:
            frame.trace = p + 10
            frame.payload = p + 10 + frame.trace_size
            frame.payload_size = length - 6 - frame.trace_size
        else:
            frame.payload = p + 8
            frame.payload_size = length - 4
        return 1

    cdef void _take(self, size_t size) noexcept:
        self.head += size
        if self.head == self.tail:
            self.owner = None
            self.head = self.tail = 0
            if self.capacity > SCRATCH_SIZE:
                # A large frame has gone: so does its memory.
                free(self.copy)
                self.copy = NULL
                self.capacity = 0

    def next_frame(self):
        """The next whole frame, or None: more must be fed first."""
        cdef Head head
        cdef Frame frame
        if self.failure is not None:
            self._raise_failed()
        if not self._peek(&head, False):
            if self.ended and self.head != self.tail:
                self._fail_truncated()
            return None
        frame = Frame.__new__(Frame)
        frame.type = head.type
        frame.version = head.version
        frame.payload = PyBytes_FromStringAndSize(<const char*>head.payload, <Py_ssize_t>head.payload_size)
        if head.version == 2:
            frame.trace_id = trace_of(&head)
        self._take(head.size)
        return frame

    def next_messages(self, limit=256):
        """Messages of the run of whole frames of one version and trace id: at most `limit`.

        Returns (messages, version, trace_id); version 0 where there are none.  The run stops
        before a frame of an unknown type, or one whose payload does not parse: `next_frame`
        gives that one.
        """
        cdef Head head
        cdef Py_ssize_t most = limit, count = 0
        cdef list messages = []
        cdef Message message
        cdef int version = 0
        cdef const uint8_t* trace = NULL
        cdef size_t trace_size = 0
        cdef bytes owner = self.owner  # what `trace` points into is kept until the end
        trace_id = None
        if self.failure is not None:
            self._raise_failed()
        while count < most:
            if not self._peek(&head, count > 0):
                if self.ended and self.head != self.tail and count == 0:
                    self._fail_truncated()
                break
            if version == 0:
                version = head.version
                trace = head.trace
                trace_size = head.trace_size
                if version == 2:
                    trace_id = trace_of(&head)
            elif (
                head.version != version
                or head.trace_size != trace_size
                # Never with size 0: memcmp of no address at all is slow on some processors.
                or (trace_size and memcmp(head.trace, trace, trace_size) != 0)
            ):
                break
            message = message_of(&head)
            if message is None:
                break
            messages.append(message)
            count += 1
            self.head += head.size
        if count == 0:
            return messages, 0, None
        self._take(0)
        return messages, version, trace_id

    def eof(self):
        """The stream has ended.  TruncatedFrameError: inside a frame."""
        cdef Head head
        if self.failure is not None:
            self._raise_failed()
        self.ended = True
        if self.head != self.tail and not self._peek(&head, False):
            self._fail_truncated()

    cdef int _fail_truncated(self) except -1:
        cdef size_t left = self.tail - self.head
        expected = 4
        if left >= 4:
            expected += u32_at(self.base + self.head)
        self._fail(TruncatedFrameError(left, expected))


cdef Message message_of(Head* head):
    """The message of a frame; None where its type is unknown or its payload broken."""
    cdef Place place
    cdef MessageClass* known = NULL
    cdef Message message
    if head.type < TYPE_LIMIT:
        known = _by_type[head.version - 1][head.type]
    elif head.type == 0xFFFF:
        known = _error_class
    if known == NULL:
        return None
    message = new_message(known)
    place.root = known.type
    place.depth = 0
    try:
        message._merge(&place, head.payload, head.payload + head.payload_size)
    except DecodeError:
        return None
    return message


cdef str trace_of(Head* head):
    return (<const char*>head.trace)[:head.trace_size].decode("utf-8", "surrogateescape")


# --------------------------------------------------------------------- pings

def serve_pings(FrameDecoder decoder not None, bytearray out not None, version, limit=1024):
    """Answer the run of plain pings at the decoder's head; returns how many there were.

    At most `limit` replies are appended to `out`.  The run stops before the first frame that
    is not whole, is no PingRequest, or has more in it than a message: a clock
    (`timestamp_secs`), an unknown field, anything broken.  `next_frame` gives that one.
    """
    cdef Head head
    cdef bytes agent = version if isinstance(version, bytes) else version.encode()
    cdef size_t agent_size = <size_t>len(agent)
    cdef Py_ssize_t most = limit, served = 0
    cdef const uint8_t* text
    cdef size_t text_size, prefix, size, need
    cdef size_t used = <size_t>PyByteArray_GET_SIZE(out), room = used
    cdef uint8_t* p
    cdef Place place
    if agent_size > 0x7F:
        raise ValueError("the version is longer than 127 bytes")
    if decoder.failure is not None:
        decoder._raise_failed()
    place.root = <PyObject*>Message
    place.depth = 0
    try:
        while served < most:
            if not decoder._peek(&head, served > 0):
                break
            if head.type != 0x0001:
                break
            text = head.payload
            text_size = 0
            if head.payload_size:
                # One field, and it fills the payload: 0x0A, length, text.
                if text[0] != 0x0A:
                    break
                try:
                    text = read_size(&place, 0, text + 1, head.payload + head.payload_size, &text_size)
                    if text + text_size != head.payload + head.payload_size:
                        break
                    if not octets_ascii(text, text_size):
                        text_of(&place, 0, text, text_size)
                except DecodeError:
                    break
            prefix = 6 if text_size else 4
            # What goes out is what came in, and at most so much more.
            need = head.size + agent_size + 16
            if room - used < need:
                # One allocation where the pings behind this one are like it.
                room = max(room * 2, used + need * min((decoder.tail - decoder.head) // head.size + 1, <size_t>4096))
                PyByteArray_Resize(out, <Py_ssize_t>room)
            p = <uint8_t*>PyByteArray_AS_STRING(out) + used + 8
            if head.version == 2:
                p = append(p, head.trace - 2, head.trace_size + 2)
            p[0] = 0x0A
            p = append_varint(p + 1, text_size + prefix)
            p = append(p, b"pong: ", prefix)
            p = append(p, text, text_size)
            if agent_size:
                p[0] = 0x12
                p[1] = <uint8_t>agent_size
                p = append(p + 2, PyBytes_AS_STRING(<PyObject*>agent), agent_size)
            size = <size_t>(p - <uint8_t*>PyByteArray_AS_STRING(out)) - used
            # Downwards, as everywhere in this module: length and type stand before `p`.
            p = put_u32(p - size + 8, 0x1001)
            put_u32(p, <uint32_t>(size - 4))
            used += size
            decoder._take(head.size)
            served += 1
    finally:
        if used != room:
            PyByteArray_Resize(out, <Py_ssize_t>used)
    return served


cdef inline uint8_t* append(uint8_t* p, const void* data, size_t size) noexcept:
    memcpy(p, data, size)
    return p + size


cdef inline uint8_t* append_varint(uint8_t* p, size_t value) noexcept:
    while value > 0x7F:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return p + 1


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

# cython: binding=False, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""The wire's core: the bytes of single fields, written and read.  No Python name is public.

`_wire.pxd` has the inline half, and says how both work.  Above stand `_classes.pyx`
(message objects), `_messages.pyx` (generated from the schema) and `_frames.pyx`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc

from arcbox_agent._tags cimport TAG_ERROR_CODE, TAG_ERROR_MESSAGE

from arcbox_agent.errors import DecodeError, EncodeError, TooManyItemsError

cdef extern from "Python.h":
    int PyUnicode_KIND(object)
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF
    double PyLong_AsDouble(object) except? -1
    void Py_INCREF(PyObject*)
    void Py_XDECREF(PyObject*)

# -------------------------------------------------- where something was wrong

#: Class -> {field number: (name, class of the sub-message or None)}.
cdef dict _fields = {}


cdef int describe(object cls, dict fields) except -1:
    """Called for each class, so that errors can name its fields."""
    _fields[cls] = fields
    return 0


cdef str _path(Location* location, uint32_t tag, object index):
    """Names from the outermost class down, as in `CreateContainerRequest.mounts[1].target`."""
    cls = <object>location.root
    path = cls.__name__
    cdef int i
    for i in range(location.depth):
        name, cls = _fields[cls][location.numbers[i]]
        path += f".{name}"
        if location.indexes[i] >= 0:
            path += f"[{location.indexes[i]}]"
    number = tag >> 3
    if number:
        field = _fields.get(cls, {}).get(number)
        path += f".{field[0]}" if field else f".{number}"
    if index is not None:
        path += f"[{index!r}]"
    return path


cdef int refuse_value(Location* location, uint32_t tag, object index, object reason) except -1:
    raise EncodeError(_path(location, tag, index), reason)


cdef int refuse_bytes(Location* location, uint32_t tag, object index, object reason) except -1:
    raise DecodeError(_path(location, tag, index), reason)


cdef int refuse_items(Location* location, uint32_t tag, Py_ssize_t most) except -1:
    raise TooManyItemsError(_path(location, tag, None), most, "items")


cdef int refuse_values(Location* location, uint32_t tag) except -1:
    cls = <object>location.root
    raise TooManyItemsError(cls.__name__, MAX_VALUES, f"values, the last in {_path(location, tag, None)}")


# ------------------------------------------------------------------- writing

cdef enum:
    SCRATCH_SIZE = 64 * 1024
    SCRATCH_KEPT = 1024 * 1024  # a larger one is given back to the system after use
    MESSAGE_LIMIT = 0x7FFFFFFF  # as google.protobuf

# The scratch buffer while no writer uses it, else NULL.
cdef uint8_t* _scratch = NULL
cdef size_t _scratch_size = 0

_nothing = ()
_zero = 0
_empty_str = ""
_empty_bytes = b""
cdef PyObject* unset = <PyObject*>_nothing
cdef PyObject* zero = <PyObject*>_zero
cdef PyObject* empty_str = <PyObject*>_empty_str
cdef PyObject* empty_bytes = <PyObject*>_empty_bytes


cdef uint8_t* take_writer(Writer* w, PyObject* cls) except NULL:
    """The caller gives it back (`give_writer`) whatever happens."""
    global _scratch
    w.location.root = cls
    w.location.depth = 0
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
    w.short_start = w.start + SHORT_FIELD
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
        refuse_value(&w.location, 0, None, "the message is longer than 2 GiB")
    capacity = max(capacity * 2, written + size)
    start = <uint8_t*>malloc(capacity)
    if start == NULL:
        raise MemoryError
    memcpy(start + capacity - written, p, written)
    free(w.start)
    w.start = start
    w.short_start = start + SHORT_FIELD
    w.end = start + capacity
    return w.end - written


cdef object held(PyObject* value):
    """A field's value; None where it was deleted by way of its descriptor."""
    return None if value == NULL else <object>value


cdef str kind_of(object value):
    return type(value).__name__


cdef const char* utf8_of(
    Writer* w, uint32_t tag, object index, PyObject* borrowed, Py_ssize_t* size) except NULL:
    """UTF-8 of a str; it belongs to the str."""
    value = held(borrowed)
    if not isinstance(value, str):
        refuse_value(&w.location, tag, index, f"expected str, not {kind_of(value)}")
    try:
        return PyUnicode_AsUTF8AndSize(value, size)
    except UnicodeEncodeError as error:
        position = error.start
    refuse_value(&w.location, tag, index, f"character {position} has no UTF-8: a lone surrogate")
    return NULL


cdef uint8_t* write_str(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    """What `prepend_short_str` does not take."""
    cdef Py_ssize_t size = 0
    cdef const char* data
    if is_ascii(value):
        size = PyUnicode_GET_LENGTH(value)
        return write_block(w, p, tag, ascii_of(value), <size_t>size) if size else p
    data = utf8_of(w, tag, None, value, &size)
    return write_block(w, p, tag, data, <size_t>size) if size else p


cdef uint8_t* write_buffer(Writer* w, uint8_t* p, uint32_t tag, PyObject* borrowed) except NULL:
    cdef Py_buffer buffer
    value = held(borrowed)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        refuse_value(&w.location, tag, None, f"expected bytes, not {kind_of(value)}")
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
    refuse_value(&w.location, tag, None, reason)
    return NULL


cdef uint8_t* write_integer(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, int64_t low, uint64_t high) except NULL:
    """What `prepend_short_int` does not take; a negative one is ten bytes of its two's complement."""
    cdef uint64_t bits = integer_of(w, tag, None, value, low, high)
    return write_varint(w, p, tag, bits) if bits else p


cdef uint64_t integer_of(
    Writer* w, uint32_t tag, object index, PyObject* borrowed, int64_t low, uint64_t high) except? 1:
    """Bits of an int that was not taken on the short way.

    Only CPython's own conversions are used: a subclass's methods would run in the middle
    of the encoding, and could change what is being encoded.
    """
    cdef int overflow = 0
    cdef int64_t number
    value = held(borrowed)
    if not isinstance(value, int):
        refuse_value(&w.location, tag, index, f"expected int, not {kind_of(value)}")
    number = PyLong_AsLongLongAndOverflow(borrowed, &overflow)
    if overflow == 0 and number >= low and (number < 0 or <uint64_t>number <= high):
        return <uint64_t>number
    if overflow > 0 and high > <uint64_t>INT64_MAX:
        try:
            return PyLong_AsUnsignedLongLong(value)
        except OverflowError:
            pass
    try:
        shown = int.__repr__(value)
    except ValueError:  # more digits than Python writes
        shown = f"an int of {int.bit_length(value)} bits"
    refuse_value(&w.location, tag, index, f"{shown} is not in the range {low} to {high}")
    return 1


cdef double double_of(Writer* w, uint32_t tag, object index, PyObject* borrowed) except? -1:
    value = held(borrowed)
    if isinstance(value, float):
        return PyFloat_AS_DOUBLE(borrowed)
    if not isinstance(value, int):
        refuse_value(&w.location, tag, index, f"expected float, not {kind_of(value)}")
    try:
        return PyLong_AsDouble(value)
    except OverflowError:
        pass
    refuse_value(&w.location, tag, index, "the int is too large for a double")
    return 0


cdef object sequence_of(Writer* w, uint32_t tag, PyObject* borrowed):
    value = held(borrowed)
    if not isinstance(value, (list, tuple)):
        refuse_value(&w.location, tag, None, f"expected list, not {kind_of(value)}")
    return value


cdef uint8_t* write_str_list(Writer* w, uint8_t* p, uint32_t tag, PyObject* value) except NULL:
    """An empty item is written too: only a whole field can be left out."""
    cdef Py_ssize_t i, size = 0
    cdef PyObject* item
    cdef uint8_t* short_one
    cdef const void* data
    items = sequence_of(w, tag, value)
    i = PySequence_Fast_GET_SIZE(items)
    while i > 0:
        i -= 1
        item = PySequence_Fast_GET_ITEM(items, i)
        short_one = prepend_short_str(p, w.short_start, tag, item)
        if short_one != NULL:
            p = short_one
            continue
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
    items = sequence_of(w, tag, value)
    size = i = PySequence_Fast_GET_SIZE(items)
    if size == 0:
        return p
    p = reserve(w, p, <size_t>size * 8 + FIELD_HEAD)
    while i > 0:
        i -= 1
        number = double_of(w, tag, i, PySequence_Fast_GET_ITEM(items, i))
        p = prepend_double(p, number)
    p = prepend_varint(p, <uint64_t>size * 8)
    return prepend_varint(p, tag)


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
    cdef Py_ssize_t position = 0, count = 0, size
    value = held(borrowed)
    if not isinstance(value, dict):
        if value == ():
            return p  # `unset`: it was never asked for
        refuse_value(&w.location, tag, None, f"expected dict, not {kind_of(value)}")
    # A dict is walked from its first entry only, and the last is to be written first.
    size = PyDict_Size(value)
    if size > ENTRIES_ON_STACK:
        entries = <PyObject**>malloc(2 * sizeof(PyObject*) * <size_t>size)
        if entries == NULL:
            raise MemoryError
    try:
        while count < size and PyDict_Next(value, &position, &key, &item):
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
    cdef size_t before
    cdef uint8_t* short_one
    if of_str:
        # Most entries are short on both sides.
        short_one = prepend_short_str(p, w.short_start, TAG_ENTRY_STR, item)
        if short_one != NULL:
            short_one = prepend_short_str(short_one, w.short_start, TAG_ENTRY_KEY, key)
        if short_one != NULL and short_one >= w.short_start:
            return prepend_tag(prepend_varint(short_one, <size_t>(p - short_one)), tag)
    before = <size_t>(w.end - p)
    if of_str:
        p = _write_entry_str(w, p, tag, TAG_ENTRY_STR, key, item)
    else:
        p = write_varint(w, p, TAG_ENTRY_UINT64, integer_of(w, tag, held(key), item, 0, UINT64_MAX))
    p = _write_entry_str(w, p, tag, TAG_ENTRY_KEY, key, key)
    return write_varint(w, p, tag, <size_t>(w.end - p) - before)


cdef uint8_t* _write_entry_str(
    Writer* w, uint8_t* p, uint32_t tag, uint32_t part, PyObject* key, PyObject* text) except NULL:
    cdef const void* data
    cdef Py_ssize_t size = 0
    if is_ascii(text):
        data = ascii_of(text)
        size = PyUnicode_GET_LENGTH(text)
    else:
        data = utf8_of(w, tag, held(key), text, &size)
    return write_block(w, p, part, data, <size_t>size)


cdef uint8_t* write_error_body(Writer* w, uint8_t* p, PyObject* code, PyObject* message) except NULL:
    """`i32 code, u32 message_length, message`."""
    cdef Py_ssize_t size = 0
    cdef const char* data = utf8_of(w, TAG_ERROR_MESSAGE, None, message, &size)
    cdef uint64_t bits = integer_of(w, TAG_ERROR_CODE, None, code, -0x80000000, 0x7FFFFFFF)
    p = reserve(w, p, <size_t>size + 8)
    p = prepend_block(p, data, <size_t>size)
    p = prepend_u32(p, <uint32_t>size)
    return prepend_u32(p, <uint32_t>bits)


# ------------------------------------------------------------------- reading

cdef const uint8_t* long_varint(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    cdef int shift = 0
    cdef uint64_t result = 0
    while shift < 70:
        if p >= end:
            refuse_bytes(location, tag, None, "the message ends inside a varint")
        result |= <uint64_t>(p[0] & 0x7F) << shift
        if p[0] < 0x80:
            value[0] = result
            return p + 1
        p += 1
        shift += 7
    refuse_bytes(location, tag, None, "a varint is longer than ten bytes")
    return NULL


cdef const uint8_t* long_tag(
    Location* location, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    p = any_tag(location, p, end, tag)
    if tag[0] >> 3 == 0:
        refuse_bytes(location, 0, None, "field number 0")
    return p


cdef const uint8_t* any_tag(
    Location* location, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    """A tag among fields of which none is known: number 0 passes, as in google.protobuf."""
    cdef uint64_t value = 0
    cdef const uint8_t* start = p
    p = long_varint(location, 0, p, end, &value)
    if p - start > 5:
        refuse_bytes(location, 0, None, "a tag is longer than five bytes")
    if value >> 32:
        refuse_bytes(location, 0, None, f"field number {value >> 3} is above 536870911")
    tag[0] = <uint32_t>value
    return p


cdef const uint8_t* long_size(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, size_t* size) except NULL:
    cdef uint64_t value = 0
    cdef const uint8_t* start = p
    p = long_varint(location, tag, p, end, &value)
    if p - start > 5:
        refuse_bytes(location, tag, None, "a length is longer than five bytes")
    if value > <uint64_t>(end - p):
        refuse_bytes(location, tag, None, f"length {value} is more than the {end - p} bytes left")
    size[0] = <size_t>value
    return p


cdef const uint8_t* skip(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end) except NULL:
    """Past the value of an unknown field."""
    return _skip(location, tag, p, end, location.depth)


cdef int skip_all(Location* location, const uint8_t* p, const uint8_t* end) except -1:
    """All of a message that has no fields."""
    cdef uint32_t tag = 0
    while p < end:
        p = _counted_tag(location, p, end, &tag)
        p = skip(location, tag, p, end)
    return 0


cdef const uint8_t* _counted_tag(
    Location* location, const uint8_t* p, const uint8_t* end, uint32_t* tag) except NULL:
    location.left -= 1
    if location.left < 0:
        refuse_values(location, 0)
    return any_tag(location, p, end, tag)


cdef const uint8_t* _skip(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, int depth) except NULL:
    cdef uint32_t kind = tag & 7
    cdef uint64_t value = 0
    cdef size_t size = 0
    cdef uint32_t inner = 0
    if kind == VARINT:
        return read_varint(location, tag, p, end, &value)
    if kind == BYTES:
        p = read_size(location, tag, p, end, &size)
        return p + size
    if kind == FIXED64 or kind == FIXED32:
        size = 8 if kind == FIXED64 else 4
        if <size_t>(end - p) < size:
            refuse_bytes(location, tag, None, "the message ends inside a fixed-width value")
        return p + size
    if kind != GROUP_START:
        refuse_bytes(
            location, tag, None,
            "a group ends that did not begin" if kind == GROUP_END else f"wire type {kind}")
    if depth + 1 > MAX_DEPTH:
        refuse_bytes(location, tag, None, f"groups nest deeper than {MAX_DEPTH}")
    while p < end:
        p = _counted_tag(location, p, end, &inner)
        if inner & 7 == GROUP_END:
            if inner >> 3 != tag >> 3:
                refuse_bytes(location, tag, None, f"group {inner >> 3} ends inside it")
            return p
        p = _skip(location, inner, p, end, depth + 1)
    refuse_bytes(location, tag, None, "the message ends inside a group")
    return NULL


# Short texts come again and again - `stdout`, `running`, the names of variables - and
# making a str costs more than finding one.  So the last ones are kept, each in the one
# slot that its bytes point to; whatever a peer sends, it is never more than these.
cdef enum:
    KEPT_TEXT = 16
    KEPT_TEXTS = 512

cdef struct KeptText:
    uint64_t first
    uint64_t last
    size_t size
    PyObject* text  # owned, or NULL

cdef KeptText _kept_texts[KEPT_TEXTS]


cdef object text_of(Location* location, uint32_t tag, const uint8_t* p, size_t size):
    """A str of UTF-8, which is checked."""
    cdef uint64_t first = 0, last = 0
    cdef uint32_t first4, last4
    cdef size_t i
    cdef KeptText* kept
    if size == 0:
        return ""
    if size > KEPT_TEXT:
        i = 0
        while size - i >= 8:
            memcpy(&first, p + i, 8)
            last |= first
            i += 8
        # The rest, with some bytes of the last round once more.
        memcpy(&first, p + size - 8, 8)
        if (first | last) & 0x8080808080808080ULL:
            return _other_text(location, tag, p, size)
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
        return _other_text(location, tag, p, size)
    i = (first * 0x9E3779B97F4A7C15ULL + last * 0xC2B2AE3D27D4EB4FULL + size) >> 55  # 9 bits
    kept = &_kept_texts[i]
    if kept.first != first or kept.last != last or kept.size != size:
        text = _ascii(p, size)
        Py_XDECREF(kept.text)
        Py_INCREF(<PyObject*>text)
        kept.first = first
        kept.last = last
        kept.size = size
        kept.text = <PyObject*>text
        return text
    return <object>kept.text


cdef inline object _ascii(const uint8_t* p, size_t size):
    text = PyUnicode_New(<Py_ssize_t>size, 0x7F)
    memcpy(PyUnicode_DATA(<PyObject*>text), p, size)
    return text


cdef object _other_text(Location* location, uint32_t tag, const uint8_t* p, size_t size):
    cdef Py_ssize_t longer
    location.left -= <Py_ssize_t>(size >> 6)
    if location.left < 0:
        refuse_values(location, tag)
    if size > MAX_WIDE:
        raise TooManyItemsError(_path(location, tag, None), MAX_WIDE, "bytes that are not ASCII")
    try:
        text = PyUnicode_DecodeUTF8(<const char*>p, <Py_ssize_t>size, NULL)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    else:
        longer = PyUnicode_GET_LENGTH(<PyObject*>text) * PyUnicode_KIND(text) - <Py_ssize_t>size
        if longer > 0:
            location.left -= longer >> 4
            if location.left < 0:
                refuse_values(location, tag)
        return text
    refuse_bytes(location, tag, None, reason)


cdef const uint8_t* read_str_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most) except NULL:
    if list_size(<PyObject*>values) >= most:
        refuse_items(location, tag, most)
    values.append(read_str(location, tag, &p, end))
    return p


cdef const uint8_t* read_double_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most) except NULL:
    """Packed or one by one: a reader takes both."""
    cdef size_t size = 0
    cdef const uint8_t* stop
    if tag & 7 == FIXED64:
        if list_size(<PyObject*>values) >= most:
            refuse_items(location, tag, most)
        values.append(read_double(location, tag, &p, end))
        return p
    p = read_size(location, tag, p, end, &size)
    if size % 8:
        refuse_bytes(location, tag, None, f"{size} bytes are no whole number of doubles")
    if list_size(<PyObject*>values) + <Py_ssize_t>(size // 8) > most:
        refuse_items(location, tag, most)
    stop = p + size
    while p < stop:
        values.append(double_at(p))
        p += 8
    return p


cdef const uint8_t* read_str_map(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values, Py_ssize_t most) except NULL:
    return _read_entry(location, tag, p, end, values, most, True)


cdef const uint8_t* read_uint64_map(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values, Py_ssize_t most) except NULL:
    return _read_entry(location, tag, p, end, values, most, False)


cdef inline const uint8_t* _read_entry(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, dict values, Py_ssize_t most, bint of_str
) except NULL:
    """One entry: a message with the key as field 1 and the value as field 2.

    An entry that holds anything else is unknown as a whole, as google.protobuf has it.
    """
    cdef size_t size = 0
    cdef bint known = True
    cdef uint32_t part = 0
    cdef const uint8_t* stop
    if dict_size(<PyObject*>values) >= most:
        refuse_items(location, tag, most)
    p = read_size(location, tag, p, end, &size)
    stop = p + size
    key = ""
    value = "" if of_str else 0
    enter(location, tag, -1)
    while p < stop:
        p = read_tag(location, p, stop, &part)
        if part == TAG_ENTRY_KEY:
            key = read_str(location, 0, &p, stop)
        elif of_str and part == TAG_ENTRY_STR:
            value = read_str(location, 0, &p, stop)
        elif not of_str and part == TAG_ENTRY_UINT64:
            value = read_uint64(location, 0, &p, stop)
        else:
            p = skip(location, part, p, stop)
            known = False
    leave(location)
    if known:
        values[key] = value
    return p


cdef tuple read_error_body(Location* location, const uint8_t* p, const uint8_t* end):
    cdef uint32_t size
    if end - p < 4:
        refuse_bytes(location, TAG_ERROR_CODE, None, "the message ends inside the code")
    code = <int32_t>u32_at(p)
    if end - p < 8:
        refuse_bytes(location, TAG_ERROR_MESSAGE, None, "the message ends inside the length of the text")
    size = u32_at(p + 4)
    if size > <size_t>(end - p - 8):
        refuse_bytes(location, TAG_ERROR_MESSAGE, None, f"length {size} is more than the {end - p - 8} bytes left")
    return code, text_of(location, TAG_ERROR_MESSAGE, p + 8, size)

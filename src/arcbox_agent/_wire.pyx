"""The wire core: varints, messages' common part, frames.  Bytes in, values out:
no socket, no clock, no event loop.

`_messages.pyx`, generated, builds the message classes from the helpers here and
in `_wire.pxd`; `wire.py` is the public face of both.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.object cimport PyTypeObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memmove

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

# -------------------------------------------------- where something was wrong

#: Class -> {field number: (name, class of the sub-message or None)}.
cdef dict _fields = {}

cdef tuple _no_arguments = ()

# What a frame's type number means, by frame version; registered classes live for ever.
cdef enum:
    TYPE_LIMIT = 0x2000

cdef PyObject* _classes[2][TYPE_LIMIT]
_other_classes = {}


cdef int register_message(object cls, dict fields) except -1:
    """Called by `_messages` for each class, when it is imported."""
    _fields[cls] = fields
    cdef int version
    if cls.TYPE is None:
        return 0
    for version in (1, 2):
        if cls.FRAME_VERSION is None or cls.FRAME_VERSION == version:
            _other_classes[version, cls.TYPE] = cls
            if cls.TYPE < TYPE_LIMIT:
                _classes[version - 1][<uint32_t>cls.TYPE] = <PyObject*>cls
    return 0


def message_class(type, version=1):
    """The class of a frame's payload, or None where the type number is unknown."""
    return _other_classes.get((version, type))


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


cdef int take_writer(Writer* w, object cls) except -1:
    """The caller gives it back (`give_writer`) whatever happens."""
    global _scratch
    w.place.root = <PyObject*>cls
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
    w.p = w.end
    return 0


cdef void give_writer(Writer* w) noexcept:
    global _scratch, _scratch_size
    if _scratch == NULL and <size_t>(w.end - w.start) <= SCRATCH_KEPT:
        _scratch = w.start
        _scratch_size = <size_t>(w.end - w.start)
    else:
        free(w.start)


cdef int grow(Writer* w, size_t size) except -1:
    cdef size_t written = <size_t>(w.end - w.p)
    cdef size_t capacity = <size_t>(w.end - w.start)
    cdef uint8_t* start
    if size > MESSAGE_LIMIT or written + size > MESSAGE_LIMIT:
        refuse_value(&w.place, 0, None, "the message is longer than 2 GiB")
    capacity = max(capacity * 2, written + size)
    start = <uint8_t*>malloc(capacity)
    if start == NULL:
        raise MemoryError
    memcpy(start + capacity - written, w.p, written)
    free(w.start)
    w.start = start
    w.end = start + capacity
    w.p = w.end - written
    return 0


cdef str _kind(object value):
    return type(value).__name__


cdef const char* utf8_of(
    Writer* w, uint32_t tag, object index, object value, Py_ssize_t* size) except NULL:
    """UTF-8 of a str; it belongs to the str."""
    if not isinstance(value, str):
        refuse_value(&w.place, tag, index, f"expected str, not {_kind(value)}")
    try:
        return PyUnicode_AsUTF8AndSize(value, size)
    except UnicodeEncodeError as error:
        place = error.start
    refuse_value(&w.place, tag, index, f"character {place} has no UTF-8: a lone surrogate")
    return NULL


cdef int write_buffer(Writer* w, uint32_t tag, object value) except -1:
    cdef Py_buffer buffer
    if not isinstance(value, (bytes, bytearray, memoryview)):
        refuse_value(&w.place, tag, None, f"expected bytes, not {_kind(value)}")
    try:
        PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
    except (BufferError, ValueError) as error:
        reason = str(error)
    else:
        try:
            if buffer.len:
                reserve(w, <size_t>buffer.len + 15)
                w.p -= buffer.len
                memcpy(w.p, buffer.buf, <size_t>buffer.len)
                put_varint(w, <uint64_t>buffer.len)
                put_varint(w, tag)
        finally:
            PyBuffer_Release(&buffer)
        return 0
    return refuse_value(&w.place, tag, None, reason)


cdef uint64_t integer_of(
    Writer* w, uint32_t tag, object index, object value, int64_t low, uint64_t high) except? 1:
    """Bits of an int that was not taken on the short way."""
    if not isinstance(value, int):
        refuse_value(&w.place, tag, index, f"expected int, not {_kind(value)}")
    if not low <= value <= high:
        refuse_value(&w.place, tag, index, f"{value} is not in the range {low} to {high}")
    return <uint64_t>(value & 0xFFFFFFFFFFFFFFFF)


cdef double double_of(Writer* w, uint32_t tag, object index, object value) except? -1:
    if not isinstance(value, (int, float)):
        refuse_value(&w.place, tag, index, f"expected float, not {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        pass
    refuse_value(&w.place, tag, index, "the int is too large for a double")
    return 0


cdef Py_ssize_t list_size(Writer* w, uint32_t tag, object value) except -1:
    if not isinstance(value, (list, tuple)):
        refuse_value(&w.place, tag, None, f"expected list, not {_kind(value)}")
    return len(value)


cdef int expect_message(
    Writer* w, uint32_t tag, Py_ssize_t index, object value, object cls) except -1:
    if type(value) is not cls:
        refuse_value(
            &w.place, tag, index if index >= 0 else None,
            f"expected {cls.__name__}, not {_kind(value)}")
    return 0


cdef int write_str_list(Writer* w, uint32_t tag, object value) except -1:
    cdef Py_ssize_t i = list_size(w, tag, value), size = 0
    cdef const char* data
    while i > 0:
        i -= 1
        item = value[i]
        if PyUnicode_CheckExact(item) and PyUnicode_IS_COMPACT_ASCII(item):
            data = <const char*>PyUnicode_DATA(item)
            size = PyUnicode_GET_LENGTH(item)
        else:
            data = utf8_of(w, tag, i, item, &size)
        # An empty item is written: only a whole field can be left out.
        reserve(w, <size_t>size + 15)
        w.p -= size
        memcpy(w.p, data, <size_t>size)
        put_varint(w, <uint64_t>size)
        put_varint(w, tag)
    return 0


cdef int write_double_list(Writer* w, uint32_t tag, object value) except -1:
    """Packed: tag, length in bytes, the doubles."""
    cdef Py_ssize_t size = list_size(w, tag, value), i = size
    cdef double number
    if size == 0:
        return 0
    reserve(w, <size_t>size * 8 + 15)
    while i > 0:
        i -= 1
        number = double_of(w, tag, i, value[i])
        put_double(w, number)
    put_varint(w, <uint64_t>size * 8)
    put_varint(w, tag)
    return 0


cdef int expect_map(Writer* w, uint32_t tag, object value) except -1:
    if not isinstance(value, dict):
        refuse_value(&w.place, tag, None, f"expected dict, not {_kind(value)}")
    return 0


cdef int write_entry_part(Writer* w, uint32_t tag, uint32_t part, object key, object text) except -1:
    """A key or a value of a map's entry: there even when empty, as google.protobuf writes it."""
    cdef const char* data
    cdef Py_ssize_t size = 0
    if PyUnicode_CheckExact(text) and PyUnicode_IS_COMPACT_ASCII(text):
        data = <const char*>PyUnicode_DATA(text)
        size = PyUnicode_GET_LENGTH(text)
    else:
        data = utf8_of(w, tag, key, text, &size)
    reserve(w, <size_t>size + 15)
    w.p -= size
    memcpy(w.p, data, <size_t>size)
    put_varint(w, <uint64_t>size)
    put_varint(w, part)
    return 0


cdef int write_str_map(Writer* w, uint32_t tag, object value) except -1:
    cdef size_t before
    expect_map(w, tag, value)
    for key in reversed(value):
        before = <size_t>(w.end - w.p)
        write_entry_part(w, tag, 0x12, key, value[key])
        write_entry_part(w, tag, 0x0A, key, key)
        reserve(w, 15)
        put_varint(w, <uint64_t>(<size_t>(w.end - w.p) - before))
        put_varint(w, tag)
    return 0


cdef int write_uint64_map(Writer* w, uint32_t tag, object value) except -1:
    cdef size_t before
    cdef uint64_t number
    expect_map(w, tag, value)
    for key in reversed(value):
        before = <size_t>(w.end - w.p)
        number = integer_of(w, tag, key, value[key], 0, 0xFFFFFFFFFFFFFFFFULL)
        reserve(w, 11)
        put_varint(w, number)
        put_varint(w, 0x10)
        write_entry_part(w, tag, 0x0A, key, key)
        reserve(w, 15)
        put_varint(w, <uint64_t>(<size_t>(w.end - w.p) - before))
        put_varint(w, tag)
    return 0


cdef inline void put_u32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value


cdef inline uint32_t u32_at(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef int write_error_body(Writer* w, object code, object message) except -1:
    """`i32 code, u32 message_length, message`."""
    cdef Py_ssize_t size = 0
    cdef const char* data = utf8_of(w, 2 << 3, None, message, &size)
    cdef uint64_t bits = integer_of(w, 1 << 3, None, code, -0x80000000, 0x7FFFFFFF)
    reserve(w, <size_t>size + 8)
    w.p -= size
    memcpy(w.p, data, <size_t>size)
    w.p -= 8
    put_u32(w.p, <uint32_t>bits)
    put_u32(w.p + 4, <uint32_t>size)
    return 0


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


cdef object text_of(Place* place, uint32_t tag, const uint8_t* p, size_t size):
    cdef size_t i = 0
    cdef uint64_t word
    cdef uint8_t rest = 0
    if size == 0:
        return ""
    while size - i >= 8:
        memcpy(&word, p + i, 8)
        if word & 0x8080808080808080ULL:
            break
        i += 8
    else:
        while i < size:
            rest |= p[i]
            i += 1
        if rest < 0x80:
            text = PyUnicode_New(<Py_ssize_t>size, 0x7F)
            memcpy(PyUnicode_DATA(text), p, size)
            return text
    try:
        return PyUnicode_DecodeUTF8(<const char*>p, <Py_ssize_t>size, NULL)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    refuse_bytes(place, tag, None, reason)


cdef const uint8_t* read_double_list(
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


# ------------------------------------------------------------------ messages

cdef class Message:
    """What all messages have in common.  The fields are in the generated classes."""

    TYPE = None
    FRAME_VERSION = None
    __match_args__ = ()

    cdef int _write(self, Writer* w) except -1:
        raise NotImplementedError

    cdef int _merge(self, Place* place, const uint8_t* p, const uint8_t* end) except -1:
        raise NotImplementedError

    cdef tuple _contents(self):
        raise NotImplementedError

    def encode(self):
        """The message's bytes.  EncodeError: a field's value is not of its type or range."""
        cdef Writer w
        take_writer(&w, type(self))
        try:
            self._write(&w)
            return PyBytes_FromStringAndSize(<const char*>w.p, w.end - w.p)
        finally:
            give_writer(&w)

    @classmethod
    def decode(cls, buffer):
        """A message from bytes, bytearray or memoryview.  DecodeError: broken bytes."""
        cdef Place place
        cdef Py_buffer view
        cdef const uint8_t* p
        cdef Message message = (<PyTypeObject*>cls).tp_new(<type>cls, <PyObject*>_no_arguments, NULL)
        place.root = <PyObject*>cls
        place.depth = 0
        if PyBytes_CheckExact(buffer):
            p = <const uint8_t*>PyBytes_AS_STRING(buffer)
            message._merge(&place, p, p + PyBytes_GET_SIZE(buffer))
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
        return (<Message>self)._contents() == (<Message>other)._contents()

    def __repr__(self):
        # Defaults are left out, as on the wire.
        fresh = (<Message>type(self)())._contents()
        fields = ", ".join([
            f"{name}={value!r}"
            for name, value, default in zip(self.__match_args__, self._contents(), fresh)
            if value != default or type(value) is not type(default)
        ])
        return f"{type(self).__name__}({fields})"

    def __reduce__(self):
        return _rebuild, (type(self), dict(zip(self.__match_args__, self._contents())))

    def __copy__(self):
        return type(self)(**dict(zip(self.__match_args__, self._contents())))


def _rebuild(cls, fields):
    """For pickle: by name, so that a field added later does no harm."""
    return cls(**fields)




# -------------------------------------------------------------------- frames

#: The default limit of a frame's length, judged before any memory is taken for it.
MAX_FRAME_SIZE = 16 * 1024 * 1024

cdef enum:
    TRACE_LIMIT = 0xFFFF


cdef int put_frame_header(Writer* w, uint32_t type, object trace_id) except -1:
    """
    V1  u32 length, u32 type, payload
    V2  u32 length, u32 type, u16 trace_length, trace id, payload

    `length` counts all that follows it.  The payload is already written.
    """
    cdef bytes trace
    cdef size_t size
    if trace_id is not None:
        # surrogateescape: a trace id that is not UTF-8 is echoed as it came.
        trace = trace_id.encode("utf-8", "surrogateescape")
        size = <size_t>len(trace)
        if size > TRACE_LIMIT:
            raise TraceLengthError(size, TRACE_LIMIT)
        reserve(w, size + 2)
        w.p -= size
        memcpy(w.p, PyBytes_AS_STRING(trace), size)
        w.p -= 2
        w.p[0] = <uint8_t>(size >> 8)
        w.p[1] = <uint8_t>size
    size = <size_t>(w.end - w.p) + 4
    reserve(w, 8)
    w.p -= 8
    put_u32(w.p, <uint32_t>size)
    put_u32(w.p + 4, type)
    return 0


def encode_frame(type, payload, trace_id=None):
    """A frame: V1 without a trace id, V2 with one, the empty one included."""
    cdef Writer w
    cdef Py_buffer view
    cdef uint32_t number = type
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        take_writer(&w, Message)
        try:
            reserve(&w, <size_t>view.len)
            w.p -= view.len
            memcpy(w.p, view.buf, <size_t>view.len)
            put_frame_header(&w, number, trace_id)
            return PyBytes_FromStringAndSize(<const char*>w.p, w.end - w.p)
        finally:
            give_writer(&w)
    finally:
        PyBuffer_Release(&view)


def encode_message(Message message not None, trace_id=None):
    """The frame of a message, in one pass."""
    cdef Writer w
    cls = type(message)
    if cls.TYPE is None:
        raise EncodeError(cls.__name__, "has no message type, so it travels in no frame of its own")
    cdef uint32_t number = cls.TYPE
    take_writer(&w, cls)
    try:
        message._write(&w)
        put_frame_header(&w, number, trace_id)
        return PyBytes_FromStringAndSize(<const char*>w.p, w.end - w.p)
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

    def __cinit__(self, max_frame_size=MAX_FRAME_SIZE, version=None):
        self.limit = max_frame_size
        self.version = 0 if version is None else version
        if version is not None and not 1 <= self.version <= 2:
            raise ValueError(f"version: expected None, 1 or 2, not {version!r}")

    def __dealloc__(self):
        free(self.copy)

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
            if PyBytes_CheckExact(data):
                # Nothing is left over: read straight from the caller's bytes.
                self.owner = data
                self.base = <const uint8_t*>PyBytes_AS_STRING(data)
                self.tail = <size_t>PyBytes_GET_SIZE(data)
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

    cdef int _peek(self, Head* frame) except -1:
        """Where the next frame is: 1, or 0 while it is not whole."""
        cdef size_t left = self.tail - self.head
        cdef const uint8_t* p = self.base + self.head
        cdef uint32_t length
        cdef int version = self.version
        if left < 4:
            return 0
        length = u32_at(p)
        # Judged as soon as it is there, and never a reason to take memory.
        if length > self.limit:
            self._fail(FrameTooLargeError(length, self.limit))
        if length < 4 or (version == 2 and length < 6):
            self._fail(FrameTooShortError(length, 6 if version == 2 else 4))
        if version == 0:
            # A protobuf message never begins with a byte below 8: field number 0 is illegal.
            if length == 4:
                version = 1
            elif left < 9:
                return 0
            else:
                version = 2 if p[8] < 8 else 1
                if version == 2 and length < 6:
                    self._fail(FrameTooShortError(length, 6))
        frame.trace = NULL
        frame.trace_size = 0
        if version == 2:
            if left >= 10:
                frame.trace_size = <size_t>p[8] << 8 | p[9]
                if frame.trace_size > length - 6:
                    self._fail(TraceLengthError(frame.trace_size, length - 6))
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
        if not self._peek(&head):
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

    def next_messages(self, limit=1024):
        """Messages of the run of whole frames of one version and trace id: at most `limit`.

        Returns (messages, version, trace_id).  The run stops before a frame of an unknown
        type, or one whose payload does not parse: `next_frame` gives that one.
        """
        cdef Head head
        cdef Place place
        cdef Message message
        cdef Py_ssize_t most = limit
        cdef list messages = []
        cdef int version = 0
        cdef PyObject* cls
        cdef const uint8_t* trace = NULL
        cdef size_t trace_size = 0
        cdef size_t consumed = 0
        trace_id = None
        if self.failure is not None:
            self._raise_failed()
        while len(messages) < most:
            if not self._peek(&head):
                if self.ended and self.head != self.tail and not messages:
                    self._fail_truncated()
                break
            text = trace_of(&head) if head.version == 2 else None
            if version == 0:
                version = head.version
                trace_id = text
            elif head.version != version or text != trace_id:
                break
            if head.type < TYPE_LIMIT:
                cls = _classes[version - 1][head.type]
            else:
                found = message_class(head.type, version)
                cls = NULL if found is None else <PyObject*>found
            if cls == NULL:
                break
            message = (<PyTypeObject*>cls).tp_new(<type>cls, <PyObject*>_no_arguments, NULL)
            place.root = cls
            place.depth = 0
            try:
                message._merge(&place, head.payload, head.payload + head.payload_size)
            except DecodeError:
                break
            messages.append(message)
            self._take(head.size)
        return messages, version, trace_id

    def eof(self):
        """The stream has ended.  TruncatedFrameError: inside a frame."""
        cdef Head head
        if self.failure is not None:
            self._raise_failed()
        self.ended = True
        if self.head != self.tail and not self._peek(&head):
            self._fail_truncated()

    cdef int _fail_truncated(self) except -1:
        cdef size_t left = self.tail - self.head
        expected = 4
        if left >= 4:
            expected += u32_at(self.base + self.head)
        self._fail(TruncatedFrameError(left, expected))


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
    cdef Py_ssize_t most = limit, served = 0, before
    cdef const uint8_t* text
    cdef size_t text_size, inner, prefix, size
    cdef Writer w
    cdef Place place
    if agent_size > 0x7F:
        raise ValueError("the version is longer than 127 bytes")
    if decoder.failure is not None:
        decoder._raise_failed()
    place.root = <PyObject*>Message
    place.depth = 0
    while served < most:
        if not decoder._peek(&head):
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
                text_of(&place, 0, text, text_size)
            except DecodeError:
                break
        take_writer(&w, Message)
        try:
            reserve(&w, agent_size + text_size + 32)
            if agent_size:
                w.p -= agent_size
                memcpy(w.p, PyBytes_AS_STRING(agent), agent_size)
                put_varint(&w, agent_size)
                put_varint(&w, 0x12)
            w.p -= text_size
            memcpy(w.p, text, text_size)
            prefix = 6 if text_size else 4
            w.p -= prefix
            memcpy(w.p, b"pong: ", prefix)
            put_varint(&w, text_size + prefix)
            put_varint(&w, 0x0A)
            if head.version == 2:
                reserve(&w, head.trace_size + 10)
                w.p -= head.trace_size + 2
                memcpy(w.p, head.trace - 2, head.trace_size + 2)
            reserve(&w, 8)
            size = <size_t>(w.end - w.p) + 4
            w.p -= 8
            put_u32(w.p, <uint32_t>size)
            put_u32(w.p + 4, 0x1001)
            before = PyByteArray_GET_SIZE(out)
            PyByteArray_Resize(out, before + (w.end - w.p))
            memcpy(PyByteArray_AS_STRING(out) + before, w.p, <size_t>(w.end - w.p))
        finally:
            give_writer(&w)
        decoder._take(head.size)
        served += 1
    return served

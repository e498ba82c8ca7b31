# cython: binding=False, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""Message objects: how they are laid out, made, shown, compared and kept."""

# A message object is the head of Message followed by one pointer for each field, in
# the order of the fields:
#
#     | refcount | type | methods | field 0 | field 1 | ... |
#
# All that does not depend on the wire type of a field - making, reading, comparing,
# showing - walks these pointers here, once for all classes.  The fields are plain
# members to CPython, which reads them at the speed of a `__slots__` attribute.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport Py_TYPE, PyTypeObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport malloc

from arcbox_agent._tags cimport TYPE_ERROR
from arcbox_agent._wire cimport *

cdef extern from "Python.h":
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


cdef enum:
    # All type numbers are below it, but for one.
    TYPE_LIMIT = 0x2000
    # More than twice the number of classes, and a power of two.
    CLASS_SLOTS = 256
    # Objects of a class that wait to be used again, at most.
    FREE_MESSAGES = 256

# By frame version, less one, and type number.
cdef MessageClass* _by_type[2][TYPE_LIMIT]
cdef MessageClass* _by_class[CLASS_SLOTS]
cdef int _class_count = 0
#: (version, type number) -> class.
cdef dict _numbered = {}
cdef MessageClass* _error_class = NULL


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
        # Instead of the None that tp_new has put there.
        _put(held + i, <object>unset if _is_lazy(defaults[i]) else defaults[i])
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
    describe(cls, fields)
    _add_members(known, names, defaults)
    _add_init(known, names, defaults)
    slots.tp_new = _new
    slots.tp_init = _initialise
    slots.tp_dealloc = _dealloc
    slots.tp_vectorcall = _call
    PyType_Modified(<PyTypeObject*>cls)
    if cls.TYPE is None:
        return known
    if cls.TYPE == TYPE_ERROR:
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
    """`__init__`, for introspection and explicit calls; objects are made by `_call`."""
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
    """A list is made when it is first asked for."""
    cdef PyObject** field = fields_of(message) + <Py_ssize_t>closure
    if field[0] == unset:
        _put(field, [])
    return held(field[0])


cdef object _get_map(PyObject* message, void* closure):
    cdef PyObject** field = fields_of(message) + <Py_ssize_t>closure
    if field[0] == unset:
        _put(field, {})
    return held(field[0])


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


cdef MessageClass* class_for(uint32_t type, int version) noexcept:
    """The class of a frame's payload, or NULL where the type number is unknown."""
    if type < TYPE_LIMIT:
        return _by_type[version - 1][type]
    return _error_class if type == TYPE_ERROR else NULL


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

    cdef int _merge(self, Location* location, const uint8_t* p, const uint8_t* end) except -1:
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
        cdef Location location
        cdef Py_buffer view
        cdef const uint8_t* p
        cdef Message message = new_message(class_of(<PyObject*>cls))
        begin_reading(&location, <PyObject*>cls)
        if PyBytes_CheckExact(<PyObject*>buffer):
            p = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>buffer)
            message._merge(&location, p, p + PyBytes_GET_SIZE(<PyObject*>buffer))
            return message
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            p = <const uint8_t*>view.buf
            message._merge(&location, p, p + view.len)
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

# ------------------------------------------------------------- sub-messages

cdef uint8_t* write_message(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL:
    if value == <PyObject*>None:
        return p
    enter(&w.location, tag, -1)
    p = _write_inner(w, p, tag, value, known)
    leave(&w.location)
    return p


cdef uint8_t* write_message_list(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL:
    cdef int depth = w.location.depth
    cdef Py_ssize_t i
    items = sequence_of(w, tag, value)
    i = PySequence_Fast_GET_SIZE(items)
    enter(&w.location, tag, 0)
    while i > 0:
        i -= 1
        if i >= PySequence_Fast_GET_SIZE(items):
            continue  # a buffer's own code, run by an item's field, has made the list shorter
        w.location.indexes[depth] = i
        p = _write_inner(w, p, tag, PySequence_Fast_GET_ITEM(items, i), known)
    leave(&w.location)
    return p


cdef inline uint8_t* _write_inner(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL:
    """A message, at the location that has been entered for it."""
    cdef size_t before = <size_t>(w.end - p)
    if value == NULL or <PyObject*>Py_TYPE(<object>value) != known.type:
        _refuse_kind(w, value, known)
    # Held: a buffer's own code, run by one of its fields, may take it out of the message it is in.
    cdef Message inner = <Message>value
    p = inner._write(w, p)
    return write_varint(w, p, tag, <size_t>(w.end - p) - before)


cdef int _refuse_kind(Writer* w, PyObject* value, MessageClass* known) except -1:
    return refuse_value(
        &w.location, 0, None, f"expected {(<object>known.type).__name__}, not {kind_of(held(value))}")


cdef const uint8_t* read_message(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, Message message) except NULL:
    cdef size_t size = 0
    p = read_size(location, tag, p, end, &size)
    enter(location, tag, -1)
    message._merge(location, p, p + size)
    leave(location)
    return p + size


cdef const uint8_t* read_message_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most,
    MessageClass* known
) except NULL:
    cdef size_t size = 0
    cdef Message message
    if PyList_GET_SIZE(values) >= most:
        refuse_items(location, tag, most)
    message = new_message(known)
    p = read_size(location, tag, p, end, &size)
    enter(location, tag, PyList_GET_SIZE(values))
    message._merge(location, p, p + size)
    leave(location)
    values.append(message)
    return p + size

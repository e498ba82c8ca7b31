# Message classes: what the generated ones in `_messages.pyx` are built on.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t

from arcbox_agent._wire cimport Location, Writer


# What is known of a message class; made once (`register_message`), never freed.
cdef struct MessageClass:
    PyObject* type       # borrowed: classes live for ever
    PyObject* prototype  # owned: an instance with all defaults, of which new ones are copies
    PyObject* names      # owned: the fields' names, a tuple
    Py_ssize_t count     # of fields
    PyObject* free       # owned: objects without references, to be used again
    int free_count


cdef class Message:
    # `p` is the first byte written so far; returns the new one.
    cdef uint8_t* _write(self, Writer* w, uint8_t* p) except NULL
    cdef int _merge(self, Location* location, const uint8_t* p, const uint8_t* end) except -1


cdef MessageClass* register_message(object cls, tuple defaults, dict fields) except NULL
cdef MessageClass* class_for(uint32_t type, int version) noexcept
cdef Message new_message(MessageClass* known)

cdef uint8_t* write_message(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL
cdef uint8_t* write_message_list(
    Writer* w, uint8_t* p, uint32_t tag, PyObject* value, MessageClass* known) except NULL

cdef const uint8_t* read_message(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, Message message) except NULL
cdef const uint8_t* read_message_item(
    Location* location, uint32_t tag, const uint8_t* p, const uint8_t* end, list values, Py_ssize_t most,
    MessageClass* known
) except NULL

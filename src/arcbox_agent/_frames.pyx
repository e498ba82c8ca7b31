# cython: binding=False, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""Frames: how a stream of bytes is cut.  Bytes in, values out: no socket, no clock.

    V1  u32 length, u32 type, payload
    V2  u32 length, u32 type, u16 trace_length, trace id, payload

`length` counts all that follows it.  docs/protocol.md draws both and says how they are
told apart.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport Py_TYPE
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memmove

from arcbox_agent._classes cimport *
from arcbox_agent._tags cimport TAG_EXEC_OUTPUT_DATA, TYPE_ERROR, TYPE_EXEC_OUTPUT
from arcbox_agent._wire cimport *

from arcbox_agent._classes import message_class
from arcbox_agent.errors import (
    DecodeError,
    DecoderFailedError,
    EncodeError,
    FrameTooLargeError,
    FrameTooShortError,
    TraceLengthError,
    TruncatedFrameError,
)

#: The default limit of a frame's length, judged before any memory is taken for it.
MAX_FRAME_SIZE = 16 * 1024 * 1024

cdef enum:
    TRACE_LIMIT = 0xFFFF
    LEAST_COPY = 4 * 1024    # what a decoder keeps of a stream, at first
    COPY_KEPT = 64 * 1024    # and after a large frame has been taken


cdef uint8_t* prepend_frame_header(
    Writer* w, uint8_t* p, uint32_t type, object trace_id, size_t behind=0) except NULL:
    """Before the payload, which is already written but for the `behind` bytes at its end."""
    cdef bytes trace
    cdef size_t size
    if trace_id is not None:
        # surrogateescape: a trace id that is not UTF-8 is echoed as it came.
        trace = trace_id.encode("utf-8", "surrogateescape")
        size = <size_t>len(trace)
        if size > TRACE_LIMIT:
            raise TraceLengthError(size, TRACE_LIMIT)
        p = reserve(w, p, size + 2)
        p = prepend_block(p, PyBytes_AS_STRING(<PyObject*>trace), size)
        p -= 2
        p[0] = <uint8_t>(size >> 8)
        p[1] = <uint8_t>size
    p = reserve(w, p, 8)
    size = <size_t>(w.end - p) + 4 + behind
    p = prepend_u32(p, type)
    return prepend_u32(p, <uint32_t>size)


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
            p = prepend_block(p, view.buf, <size_t>view.len)
            p = prepend_frame_header(&w, p, number, trace_id)
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
        p = prepend_frame_header(&w, p, number, trace_id)
        return PyBytes_FromStringAndSize(<const char*>p, w.end - p)
    finally:
        give_writer(&w)


def encode_exec_output_head(stream, size, trace_id=None):
    """The frame of an ExecOutput up to its `data`, whose `size` bytes the caller sends behind it.

    Data that goes from a pipe to a socket inside the kernel gets such a head.
    """
    cdef Writer w
    cdef uint8_t* p
    cdef uint32_t behind = size
    cls = message_class(TYPE_EXEC_OUTPUT)
    cdef Message message = cls(stream=stream)
    p = take_writer(&w, <PyObject*>cls)
    try:
        p = write_varint(&w, p, TAG_EXEC_OUTPUT_DATA, behind)
        p = message._write(&w, p)
        p = prepend_frame_header(&w, p, TYPE_EXEC_OUTPUT, trace_id, behind)
        return PyBytes_FromStringAndSize(<const char*>p, w.end - p)
    finally:
        give_writer(&w)


cdef object _error():
    """The class Error: `_messages`, which defines it, stands above this module."""
    return message_class(TYPE_ERROR)


def encode_error(code, message, trace_id=None):
    """The frame of an Error."""
    return encode_message(_error()(code=code, message=message), trace_id)


cdef enum:
    ERROR_TEXT = 64 * 1024  # nobody reads more, and what is not UTF-8 takes twice its bytes


def decode_error(payload):
    """An Error from whatever a peer sent as one: what cannot be read is made up for.

    A missing code is 500, a text that is cut or not UTF-8 is shown as far as it goes, and at
    most 64 KiB of it.
    """
    body = bytes(payload[:8 + ERROR_TEXT])
    code = int.from_bytes(body[:4], "big", signed=True) if len(body) >= 4 else 500
    size = int.from_bytes(body[4:8], "big")
    text = body[8:8 + size].decode("utf-8", "replace")
    return _error()(code=code, message=text)


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


@cython.final
cdef class FrameDecoder:
    """Frames out of a stream of bytes.

    `feed` never parses and `next_frame` never reads: the caller owns the socket.
    After an error the stream cannot be picked up again and the decoder stays failed.

    version: None tells V1 and V2 apart frame by frame, as an agent must; a client
    knows which version it sent, and so which it gets.
    """

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

    @property
    def held(self):
        """The same, or all that came with them where it is kept for them."""
        if self.owner is None or self.head == self.tail:
            return self.tail - self.head
        return PyBytes_GET_SIZE(<PyObject*>self.owner)

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
                capacity = max(left + size, left + left // 2, <size_t>LEAST_COPY)
                copy = <uint8_t*>malloc(capacity)
                if copy == NULL:
                    raise MemoryError
                append_block(copy, self.base + self.head, left)
                free(self.copy)
                self.copy = copy
                self.capacity = capacity
            self.owner = None
            self.head = 0
            self.tail = left
        self.base = self.copy
        append_block(self.copy + self.tail, data, size)
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
        cdef int found = look(self, frame)
        if found >= 0:
            return found
        return 0 if quiet else self._refuse(found, frame)

    cdef int _refuse(self, int found, Head* frame) except -1:
        length = frame.size - 4
        if found == TOO_LARGE:
            self._fail(FrameTooLargeError(length, self.limit))
        if found == TOO_SHORT:
            self._fail(FrameTooShortError(length, 6 if frame.version == 2 else 4))
        self._fail(TraceLengthError(frame.trace_size, length - 6))

    cdef void _release(self) noexcept:
        """All that was fed is taken."""
        self.owner = None
        self.head = self.tail = 0
        if self.capacity > COPY_KEPT:
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
        take(self, head.size)
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
        cdef bytes _owner = self.owner  # what `trace` points into is kept until the end
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
        take(self, 0)
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
    cdef Location location
    cdef MessageClass* known = class_for(head.type, head.version)
    cdef Message message
    if known == NULL:
        return None
    message = new_message(known)
    begin_reading(&location, known.type)
    try:
        message._merge(&location, head.payload, head.payload + head.payload_size)
    except DecodeError:
        return None
    return message


cdef str trace_of(Head* head):
    return (<const char*>head.trace)[:head.trace_size].decode("utf-8", "surrogateescape")

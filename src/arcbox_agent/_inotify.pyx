"""The three system calls of inotify, and its events.  Linux only.

The standard library has none of them, and ctypes costs more to import than the
whole agent's own code.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

import os

cdef extern from "string.h":
    size_t strnlen(const char* text, size_t most)

cdef extern from "sys/inotify.h":
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char* path, uint32_t mask)
    int inotify_rm_watch(int fd, int wd)
    enum:
        IN_NONBLOCK, IN_CLOEXEC
        _MODIFY "IN_MODIFY"
        _ATTRIB "IN_ATTRIB"
        _MOVE_SELF "IN_MOVE_SELF"
        _DELETE_SELF "IN_DELETE_SELF"
        _CREATE "IN_CREATE"
        _MOVED_TO "IN_MOVED_TO"
        _DELETE "IN_DELETE"
        _ONLYDIR "IN_ONLYDIR"
        _Q_OVERFLOW "IN_Q_OVERFLOW"
        _IGNORED "IN_IGNORED"

MODIFY = _MODIFY
ATTRIB = _ATTRIB
MOVE_SELF = _MOVE_SELF
DELETE_SELF = _DELETE_SELF
CREATE = _CREATE
MOVED_TO = _MOVED_TO
DELETE = _DELETE
ONLYDIR = _ONLYDIR
Q_OVERFLOW = <unsigned int> _Q_OVERFLOW
IGNORED = <unsigned int> _IGNORED


def init():
    """A new instance's descriptor; non-blocking, closed on exec."""
    cdef int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


def add_watch(int fd, path, uint32_t mask):
    cdef bytes raw = os.fsencode(path)
    cdef int wd = inotify_add_watch(fd, raw, mask)
    if wd < 0:
        raise OSError(errno, os.strerror(errno), path)
    return wd


def remove_watch(int fd, int wd):
    """No error where the watch is gone already."""
    inotify_rm_watch(fd, wd)


def parse(bytes buffer):
    """What a read gave: the masks of each watch, and `(watch, mask, name)` where an event has a name."""
    # i32 wd, u32 mask, u32 cookie, u32 length, name padded with NUL to length
    cdef const char* p = buffer
    cdef Py_ssize_t at = 0, size = len(buffer)
    cdef int wd, last = -2
    cdef uint32_t mask, length, masks = 0
    cdef dict plain = {}
    cdef list named = []
    while size - at >= 16:
        memcpy(&wd, p + at, 4)
        memcpy(&mask, p + at + 4, 4)
        memcpy(&length, p + at + 12, 4)
        if length > size - at - 16:
            break
        if length:
            named.append((wd, mask, p[at + 16:at + 16 + strnlen(p + at + 16, length)]))
        elif wd == last and masks | mask == masks:
            pass  # a busy file brings the same event over and over
        else:
            last = wd
            masks = plain[wd] = plain.get(wd, 0) | mask
        at += 16 + length
    return plain, named

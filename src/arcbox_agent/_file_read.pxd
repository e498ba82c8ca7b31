# Reading files for the line engine (file_read.h).

from libc.stdint cimport int64_t

cdef extern from "file_read.h":
    ssize_t read_at "arcbox_read_at" (int fd, void* to, size_t n, int64_t at, bint nowait) nogil
    int open_cached_fd "arcbox_open_cached" (const char* path) nogil
    int open_file_fd "arcbox_open_file" (const char* path, bint no_links) nogil
    void* last_byte "arcbox_last_byte" (const void* start, int byte, size_t n) nogil

# How a read ended.
cdef enum:
    _MORE = 0
    _END = 1
    _BLOCKED = 2
    _CHANGED = 3

cdef enum:
    READ_SIZE = 131072

# What one container's log has held, file by file (_log_history.pyx).

from libc.stdint cimport int64_t, uint64_t

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    HISTORY_LIMIT = 1024  # files


# A file of the log, and what each stream had written before it.
cdef struct Began:
    uint64_t inode
    int64_t bytes[2]
    int64_t lines[2]
    bint known


cdef struct Past:
    pthread_mutex_t mutex
    Began* files  # the newest ones, oldest first
    int count
    int capacity
    int64_t newest  # the number of the last of them; the first file of the log has number 0
    int64_t held  # files from this number on stay; INT64_MAX: none is held
    int64_t bytes[2]  # written, by stream
    int64_t lines[2]


cdef class LogHistory:
    cdef Past past
    cdef dict holds

    cdef void begin(self, uint64_t inode, bint known) noexcept
    cdef count_holds(self)


cdef void file_begins(Past* past, uint64_t inode, bint known) noexcept nogil
cdef bint is_held(Past* past, int max_files) noexcept nogil

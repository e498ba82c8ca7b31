# One container's log in the CRI format: opened, appended to, rotated (_log_file.pyx).

from libc.stdint cimport int64_t, uint64_t
from arcbox_agent._log_history cimport LogHistory, Past


# `moved` is called with each of `spools` when the log goes on in another file or at another
# offset: their marks name both.
cdef struct Log:
    int fd
    char path[512]
    uint64_t inode
    int64_t size
    int64_t max_size
    int max_files
    int error  # errno of the last write, 0: it went well
    int64_t retry_at  # monotonic ns, as the two below
    int64_t check_at
    int64_t rotate_at
    int64_t last_stamp  # of the lines; the next one is later
    Past* past  # owner: the CaptureLog's history
    bint last  # nothing waits for a reader any more
    void (*moved)(void* spool) noexcept nogil
    void* spools[2]  # of stdout and stderr; NULL: the stream is not captured


cdef class CaptureLog:
    cdef Log log
    cdef readonly str path
    cdef LogHistory history

    cdef int output_since(
        self, uint64_t inode, int64_t offset, int stream, int64_t* content, bint* open_, bint* gap) except -1
    cdef tuple files_since(self, uint64_t inode, int64_t offset)


cdef enum:
    HELD = 1  # of `prepare_log`: a reader needs the file that a rotation would remove


cdef int prepare_log(Log* log, size_t n, int64_t now, int64_t* rotations) noexcept nogil
cdef int append_lines(Log* log, const char* data, size_t n, size_t* kept) noexcept nogil

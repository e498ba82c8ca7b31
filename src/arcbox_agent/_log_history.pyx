# cython: cdivision=True
"""What one container's log has held, file by file: how much is lost where a reader finds files missing.

Rotation removes the oldest file.  A reader that is behind by then learns here what was in the
files that it has not seen, and one that must not lose anything holds them: while the oldest file
is held, the log is not rotated, and the container waits in its pipe.

The capture's thread writes it without the interpreter's lock; all else has both that lock and the mutex.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef extern from "pthread.h" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)


cdef void file_begins(Past* past, uint64_t inode, bint known) noexcept nogil:
    """The log goes on in this file.  known: all that was written before it was counted."""
    cdef Began* files
    cdef Began* began
    cdef int i, capacity
    pthread_mutex_lock(&past.mutex)
    if past.count and past.files[past.count - 1].inode == inode:
        pthread_mutex_unlock(&past.mutex)
        return
    if past.count == past.capacity and past.capacity < HISTORY_LIMIT:
        capacity = past.capacity * 2 if past.capacity else 8
        files = <Began*> realloc(past.files, capacity * sizeof(Began))
        if files is not NULL:
            past.files = files
            past.capacity = capacity
    past.newest += 1
    if past.count and past.count == past.capacity:
        past.count -= 1
        memmove(past.files, past.files + 1, past.count * sizeof(Began))
    if past.count < past.capacity:
        began = &past.files[past.count]
        began.inode = inode
        began.known = known
        for i in range(2):
            began.bytes[i] = past.bytes[i]
            began.lines[i] = past.lines[i]
        past.count += 1
    pthread_mutex_unlock(&past.mutex)


cdef bint is_held(Past* past, int max_files) noexcept nogil:
    """Whether a rotation would remove a file that a reader still needs."""
    return past.held <= past.newest - max_files


cdef int find(const Past* past, uint64_t inode) noexcept nogil:
    """The newest file with this inode; -1: it is none of the last ones."""
    cdef int i = past.count - 1
    while i >= 0 and past.files[i].inode != inode:
        i -= 1
    return i


cdef class LogHistory:
    """See the module."""

    def __cinit__(self):
        pthread_mutex_init(&self.past.mutex, NULL)
        self.past.newest = -1
        self.past.held = INT64_MAX
        self.holds = {}

    def __dealloc__(self):
        pthread_mutex_destroy(&self.past.mutex)
        free(self.past.files)

    cdef void begin(self, uint64_t inode, bint known) noexcept:
        file_begins(&self.past, inode, known)

    def lost_between(self, uint64_t left, uint64_t entered):
        """What was written behind the end of the file that a reader has left and before the one that it enters.

        Both by inode.  Returns whether that is all, the bytes (newlines included) of stdout and stderr, and the lines.
        """
        cdef int from_, to, i
        cdef bint exact
        cdef int64_t[2] lost_bytes
        cdef int64_t[2] lost_lines
        pthread_mutex_lock(&self.past.mutex)
        to = find(&self.past, entered)
        from_ = find(&self.past, left) + 1
        exact = from_ > 0 and to >= 0
        for i in range(2):
            lost_bytes[i] = lost_lines[i] = 0
        if to > from_:
            exact = exact and self.past.files[from_].known
            for i in range(2):
                lost_bytes[i] = self.past.files[to].bytes[i] - self.past.files[from_].bytes[i]
                lost_lines[i] = self.past.files[to].lines[i] - self.past.files[from_].lines[i]
        pthread_mutex_unlock(&self.past.mutex)
        return bool(exact), (lost_bytes[0], lost_bytes[1]), (lost_lines[0], lost_lines[1])

    def hold(self, key):
        """Hold the newest file and all later ones, until `release`."""
        self.holds[key] = self.past.newest if self.past.newest > 0 else 0
        self.count_holds()

    def hold_from(self, key, uint64_t inode):
        """The reader has come to this file: the older ones are no longer held for it.  Whether that freed any."""
        cdef int i
        cdef int64_t before = self.past.held
        pthread_mutex_lock(&self.past.mutex)
        i = find(&self.past, inode)
        if i >= 0:
            i = self.past.count - 1 - i
        pthread_mutex_unlock(&self.past.mutex)
        if i >= 0 and key in self.holds and self.past.newest - i > self.holds[key]:
            self.holds[key] = self.past.newest - i
            self.count_holds()
        return self.past.held > before

    def release(self, key):
        """The reader has gone."""
        self.holds.pop(key, None)
        self.count_holds()

    cdef count_holds(self):
        self.past.held = min(self.holds.values(), default=INT64_MAX)

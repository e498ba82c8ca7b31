"""The bounded scan of passwd and group files.  See _entries.pyi.

Such a file belongs to a container, which may have filled it with anything.  The scan takes
one step a byte, makes no object for a line that is not asked for, and runs without the GIL.
"""

cdef extern from *:
    """
    #include <sys/stat.h>

    enum { ENTRIES_STATE = 7 };

    /* What changes with a file.  All 0: there is none. */
    static void entries_state_of(const char *path, long long state[ENTRIES_STATE]) {
        struct stat file = {0};
        if (stat(path, &file) < 0) {
            struct stat none = {0};
            file = none;
        }
        state[0] = (long long)file.st_dev;
        state[1] = (long long)file.st_ino;
        state[2] = (long long)file.st_size;
        state[3] = (long long)file.st_mtim.tv_sec;
        state[4] = (long long)file.st_mtim.tv_nsec;
        state[5] = (long long)file.st_ctim.tv_sec;
        state[6] = (long long)file.st_ctim.tv_nsec;
    }
    """
    int ENTRIES_STATE
    void entries_state_of(const char *path, long long *state) nogil

from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

cdef enum:
    MOST_COLUMNS = 7


# -1 means "leave as it is" to the kernel.
cdef unsigned long long NO_GROUP = 4294967295


cdef struct Line:
    const char *start
    Py_ssize_t size
    const char *fields[MOST_COLUMNS]
    Py_ssize_t sizes[MOST_COLUMNS]
    int count


cdef const char *next_line(const char *at, const char *end, Line *line) noexcept nogil:
    """Splits the line at `at`; returns where the next one begins.  Further colons belong to the last field."""
    cdef const char *stop = <const char *>memchr(at, 10, end - at)
    cdef const char *colon
    if stop == NULL:
        stop = end
    line.start, line.size, line.count = at, stop - at, 0
    while line.count < MOST_COLUMNS:
        colon = <const char *>memchr(at, 58, stop - at) if line.count < MOST_COLUMNS - 1 else NULL
        if colon == NULL:
            colon = stop
        line.fields[line.count], line.sizes[line.count] = at, colon - at
        line.count += 1
        if colon == stop:
            break
        at = colon + 1
    return stop + 1


cdef inline bint is_field(Line *line, int column, const char *text, Py_ssize_t size) noexcept nogil:
    return line.sizes[column] == size and memcmp(line.fields[column], text, size) == 0


cdef bint is_member(const char *at, Py_ssize_t size, const char *name, Py_ssize_t name_size) noexcept nogil:
    """Whether the comma separated list at `at` has that name."""
    cdef const char *end = at + size
    cdef const char *comma
    while True:
        comma = <const char *>memchr(at, 44, end - at)
        if comma == NULL:
            comma = end
        if comma - at == name_size and memcmp(at, name, name_size) == 0:
            return True
        if comma == end:
            return False
        at = comma + 1


def find(bytes data, bytes name, int columns, bint by_number):
    cdef const char *at = PyBytes_AS_STRING(data)
    cdef const char *end = at + PyBytes_GET_SIZE(data)
    cdef const char *wanted = PyBytes_AS_STRING(name)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Line line, found
    if not 3 <= columns <= MOST_COLUMNS:
        raise ValueError("an entry has 3 to 7 columns")
    found.count = 0
    with nogil:
        while at < end:
            at = next_line(at, end, &line)
            if line.count < columns:
                continue
            if is_field(&line, 0, wanted, size):
                found = line
                break
            if by_number and not found.count and is_field(&line, 2, wanted, size):
                found = line
    if not found.count:
        return None
    return [PyBytes_FromStringAndSize(found.fields[i], found.sizes[i]) for i in range(found.count)]


def groups_of(bytes data, bytes name, int most):
    cdef const char *at = PyBytes_AS_STRING(data)
    cdef const char *end = at + PyBytes_GET_SIZE(data)
    cdef const char *wanted = PyBytes_AS_STRING(name)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t i
    cdef int count = 0
    cdef unsigned long long number
    cdef Line line
    cdef unsigned int *numbers
    if not 1 <= most <= 65536:
        raise ValueError("1 to 65536 groups")
    numbers = <unsigned int *>malloc(most * sizeof(unsigned int))
    if numbers == NULL:
        raise MemoryError
    try:
        with nogil:
            while at < end and count < most:
                at = next_line(at, end, &line)
                if line.count < 4 or not 1 <= line.sizes[2] <= 10:
                    continue
                number = 0
                for i in range(line.sizes[2]):
                    if not 48 <= line.fields[2][i] <= 57:
                        number = NO_GROUP
                        break
                    number = number * 10 + <unsigned int>(line.fields[2][i] - 48)
                if number < NO_GROUP and is_member(line.fields[3], line.sizes[3], wanted, size):
                    numbers[count] = <unsigned int>number
                    count += 1
        return tuple(dict.fromkeys([numbers[i] for i in range(count)]))
    finally:
        free(numbers)


def state_of(bytes first, bytes second):
    cdef long long state[14]
    cdef const char *one = PyBytes_AS_STRING(first)
    cdef const char *two = PyBytes_AS_STRING(second)
    with nogil:
        entries_state_of(one, state)
        entries_state_of(two, state + ENTRIES_STATE)
    return PyBytes_FromStringAndSize(<const char *>state, sizeof(state))

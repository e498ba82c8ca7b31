"""The system calls of an init that the standard library lacks.  See _guest.pyi."""

from libc.errno cimport errno

cdef extern from "<sys/mount.h>" nogil:
    int c_mount "mount" (const char *source, const char *target, const char *type,
                         unsigned long flags, const void *data)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec
    int c_adjtime "adjtime" (const timeval *delta, timeval *former)

cdef extern from "<sys/reboot.h>" nogil:
    int c_reboot "reboot" (int command)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_finit_module

cdef extern from "<unistd.h>" nogil:
    long c_syscall "syscall" (long number, ...)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <stdint.h>
    static int arcbox_punch(int fd, int64_t offset, int64_t size) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);
    }
    """
    int arcbox_punch(int fd, long long offset, long long size) nogil


cdef extern from *:
    """
    #include <features.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void arcbox_give_back(void) { malloc_trim(0); }
    #else
    static void arcbox_give_back(void) { }  /* musl's heap does so by itself */
    #endif
    """
    void arcbox_give_back() nogil


def give_back_memory():
    # With the GIL: a thread that takes it meanwhile would wait for the heap all the same.
    arcbox_give_back()


cdef object _failed(str path):
    cdef int number = errno
    import os
    return OSError(number, os.strerror(number), path)


def mount(str source, str target, str type, unsigned long flags, str data):
    # surrogateescape: a path need not be UTF-8.
    cdef bytes c_source = source.encode("utf-8", "surrogateescape")
    cdef bytes c_target = target.encode("utf-8", "surrogateescape")
    cdef bytes c_type = type.encode()
    cdef bytes c_data = data.encode()
    cdef const char *source_ = c_source
    cdef const char *target_ = c_target
    cdef const char *type_ = c_type
    cdef const char *data_ = c_data
    cdef int result
    with nogil:
        result = c_mount(source_, target_, type_, flags, data_)
    if result < 0:
        raise _failed(target)


def reboot(int command):
    cdef int result
    with nogil:
        result = c_reboot(command)
    if result < 0:
        raise _failed("reboot")


def slew_clock(long microseconds):
    cdef timeval delta
    delta.tv_sec = 0
    delta.tv_usec = microseconds
    if c_adjtime(&delta, NULL) < 0:
        raise _failed("adjtime")


def load_module(int fd, int flags):
    cdef const char *no_parameters = b""
    cdef long result
    with nogil:
        result = c_syscall(SYS_finit_module, fd, no_parameters, flags)
    if result < 0:
        raise _failed("finit_module")


def punch(int fd, long long offset, long long size):
    cdef int result
    with nogil:
        result = arcbox_punch(fd, offset, size)
    if result != 0:
        raise _failed(None)

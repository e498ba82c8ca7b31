/* The values that most fields have, without a call: a short str, an int of no great size. */
#ifndef ARCBOX_SHORT_VALUES_H
#define ARCBOX_SHORT_VALUES_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* At each field, or the call would cost as much as the work. */
#define ARCBOX_ALWAYS_INLINE __attribute__((always_inline)) static inline

#define ARCBOX_HALF_TEXT 32
#define ARCBOX_SHORT_TEXT (2 * ARCBOX_HALF_TEXT)

/* Length and bytes of a text of at most ARCBOX_SHORT_TEXT bytes inside an object; before `p`
   are ARCBOX_SHORT_TEXT + 1 bytes that may be written.

   Copies of a size that is known here are a few loads and stores, and no call: of the last
   ARCBOX_HALF_TEXT bytes, and where there are more, of the first.  Of a shorter text the copy begins
   in the object's head, which is as long or longer; what it writes before the text is written over
   by what comes before the text. */
ARCBOX_ALWAYS_INLINE uint8_t *arcbox_prepend_short_text(uint8_t *p, const char *data, size_t size) {
    memcpy(p - ARCBOX_HALF_TEXT, data + size - ARCBOX_HALF_TEXT, ARCBOX_HALF_TEXT);
    if (size > ARCBOX_HALF_TEXT)
        memcpy(p - size, data, ARCBOX_HALF_TEXT);
    p -= size + 1;
    p[0] = (uint8_t)size;
    return p;
}

_Static_assert(sizeof(PyASCIIObject) >= ARCBOX_HALF_TEXT, "a str's head is too short");
_Static_assert(offsetof(PyBytesObject, ob_sval) >= ARCBOX_HALF_TEXT, "the head of bytes is too short");

/* A field whose value is an ASCII str of 1 to ARCBOX_SHORT_TEXT characters; returns the new place.
   NULL: the value is another, the tag is longer than two bytes, or `p` is below `lowest`. */
ARCBOX_ALWAYS_INLINE uint8_t *arcbox_prepend_short_str(
    uint8_t *p, const uint8_t *lowest, uint32_t tag, PyObject *value) {
    size_t size;
    if (p < lowest || value == NULL || !PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value))
        return NULL;
    size = (size_t)PyUnicode_GET_LENGTH(value);
    if (size - 1 >= ARCBOX_SHORT_TEXT || tag >= 0x4000)
        return NULL;
    p = arcbox_prepend_short_text(p, (const char *)((PyASCIIObject *)value + 1), size);
    if (tag < 0x80) {
        *--p = (uint8_t)tag;
    } else {
        *--p = (uint8_t)(tag >> 7);
        *--p = (uint8_t)(tag | 0x80);
    }
    return p;
}

/* 1 and the value, where `value` is an int of CPython's own class from 0 to INT64_MAX.
   0: ask CPython, as for every value in a version whose layout is not known here. */
static inline int arcbox_short_int(PyObject *value, int64_t *number) {
#if PyLong_SHIFT == 30 && PY_VERSION_HEX < 0x030F0000
    const digit *digits;
    Py_ssize_t size;
    if (!PyLong_CheckExact(value))
        return 0;
#if PY_VERSION_HEX < 0x030C0000
    digits = ((PyLongObject *)value)->ob_digit;
    size = Py_SIZE(value); /* below 0 for a negative number */
#else
    digits = ((PyLongObject *)value)->long_value.ob_digit;
    /* Below the size stand three bits, of which the second is set for a negative number. */
    size = (Py_ssize_t)(((PyLongObject *)value)->long_value.lv_tag >> 3);
    if (((PyLongObject *)value)->long_value.lv_tag & 2)
        return 0;
#endif
    if (size == 1) {
        *number = digits[0];
    } else if (size == 2) {
        *number = (int64_t)digits[0] | (int64_t)digits[1] << 30;
    } else if (size == 3 && digits[2] < 8) {
        *number = (int64_t)digits[0] | (int64_t)digits[1] << 30 | (int64_t)digits[2] << 60;
    } else if (size == 0) {
        *number = 0;
    } else {
        return 0;
    }
    return 1;
#else
    (void)value;
    (void)number;
    return 0;
#endif
}

#endif

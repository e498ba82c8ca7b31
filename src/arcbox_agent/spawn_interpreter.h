/* Which interpreter is at fault where execve refuses a program that is there: "No such file
 * or directory" of a script, or of a program with a dynamic loader, is about that interpreter.
 *
 * It runs in the child of a spawn, after its last execve, so what it sees is what the program
 * would have seen: root, mounts, directory, user.  Like all of the child it does nothing but
 * system calls and arithmetic on its own stack.
 */
#ifndef ARCBOX_SPAWN_INTERPRETER_H
#define ARCBOX_SPAWN_INTERPRETER_H

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPAWN_INTERPRETER 256  /* bytes of its path, with the NUL; the kernel takes as many of a #! line */
#define SPAWN_INTERPRETERS 5   /* of a chain: the kernel follows no more */
#define SPAWN_MAX_SEGMENTS 128 /* program headers that are looked at */

/* The path behind `#!`, as the kernel cuts it: to the first blank, newline or NUL. */
static int spawn_script_interpreter(const char *head, size_t size, char out[SPAWN_INTERPRETER]) {
    size_t at = 2, n = 0;
    while (at < size && (head[at] == ' ' || head[at] == '\t')) at++;
    for (; at < size && n < SPAWN_INTERPRETER - 1; at++) {
        char c = head[at];
        if (c == ' ' || c == '\t' || c == '\n' || c == 0) break;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

/* The path in the segment PT_INTERP.  Files of the other byte order are no programs here. */
static int spawn_elf_interpreter(int fd, const char *head, size_t size, char out[SPAWN_INTERPRETER]) {
    uint64_t at, offset = 0, length = 0;
    unsigned count, step, wide = head[EI_CLASS] == ELFCLASS64;
    if (size < (wide ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr))) return 0;
    if (wide) {
        Elf64_Ehdr file;
        memcpy(&file, head, sizeof file);
        at = file.e_phoff, count = file.e_phnum, step = sizeof(Elf64_Phdr);
    } else {
        Elf32_Ehdr file;
        memcpy(&file, head, sizeof file);
        at = file.e_phoff, count = file.e_phnum, step = sizeof(Elf32_Phdr);
    }
    if (count > SPAWN_MAX_SEGMENTS || at > INT32_MAX) return 0;
    for (unsigned i = 0; i < count && !length; i++) {
        union {
            Elf64_Phdr wide;
            Elf32_Phdr narrow;
        } segment;
        if (pread(fd, &segment, step, (off_t)(at + i * step)) != (ssize_t)step) return 0;
        if (wide && segment.wide.p_type == PT_INTERP) {
            offset = segment.wide.p_offset, length = segment.wide.p_filesz;
        } else if (!wide && segment.narrow.p_type == PT_INTERP) {
            offset = segment.narrow.p_offset, length = segment.narrow.p_filesz;
        }
    }
    if (length < 2 || length > SPAWN_INTERPRETER || offset > INT32_MAX) return 0;
    if (pread(fd, out, length, (off_t)offset) != (ssize_t)length) return 0;
    out[length - 1] = 0;
    return out[0] != 0;
}

/* The interpreter that `program` names; 0: none, or it cannot be read. */
static int spawn_interpreter_of(const char *program, char out[SPAWN_INTERPRETER]) {
    char head[SPAWN_INTERPRETER];
    /* Not waiting: the file may have become a FIFO. */
    int found = 0, fd = open(program, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return 0;
    ssize_t size = read(fd, head, sizeof head);
    if (size > 2 && head[0] == '#' && head[1] == '!')
        found = spawn_script_interpreter(head, (size_t)size, out);
    else if (size > EI_CLASS && memcmp(head, ELFMAG, SELFMAG) == 0)
        found = spawn_elf_interpreter(fd, head, (size_t)size, out);
    close(fd);
    return found;
}

/* Whether this process may execute `path`.  -1: it may not, and errno says why. */
static int spawn_executable(const char *path) {
    struct stat file;
    if (access(path, X_OK) < 0 || stat(path, &file) < 0) return -1;
    if (S_ISREG(file.st_mode)) return 0;
    errno = EACCES;
    return -1;
}

/* The interpreter at fault where execve refused `program`; 0: it is not an interpreter's. */
static int spawn_bad_interpreter(const char *program, char out[SPAWN_INTERPRETER]) {
    char path[SPAWN_INTERPRETER];
    for (int i = 0; i < SPAWN_INTERPRETERS; i++) {
        if (spawn_executable(i ? path : program) < 0) return 0;
        if (!spawn_interpreter_of(i ? path : program, out)) return 0;
        if (spawn_executable(out) < 0) return 1;
        memcpy(path, out, sizeof path);
    }
    return 0;
}

#endif

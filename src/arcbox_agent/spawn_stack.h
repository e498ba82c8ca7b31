/* Stacks for the children of spawns.
 *
 * A child needs its stack until its execve, or its end, for which its spawn waits.  To map one with a
 * guard page below it, and to unmap it, costs more than all that the child does on it, so a few
 * are kept.
 */
#ifndef ARCBOX_SPAWN_STACK_H
#define ARCBOX_SPAWN_STACK_H

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define SPAWN_STACK (128 * 1024) /* the guard page included */
#define SPAWN_SPARE_STACKS 8     /* as many as spawn at once where none hangs */

static pthread_mutex_t spawn_stacks_lock = PTHREAD_MUTEX_INITIALIZER;
static char *spawn_stacks[SPAWN_SPARE_STACKS];
static int spawn_stack_count;

/* The lowest address of a stack; NULL and errno: there is none. */
static char *spawn_take_stack(void) {
    char *stack = NULL;
    pthread_mutex_lock(&spawn_stacks_lock);
    if (spawn_stack_count) stack = spawn_stacks[--spawn_stack_count];
    pthread_mutex_unlock(&spawn_stacks_lock);
    if (stack) return stack;
    stack = mmap(NULL, SPAWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return NULL;
    if (mprotect(stack, (size_t)sysconf(_SC_PAGESIZE), PROT_NONE) < 0) {
        int error = errno;
        munmap(stack, SPAWN_STACK);
        errno = error;
        return NULL;
    }
    return stack;
}

/* Nothing runs on it any more. */
static void spawn_give_stack(char *stack) {
    pthread_mutex_lock(&spawn_stacks_lock);
    if (spawn_stack_count < SPAWN_SPARE_STACKS) {
        spawn_stacks[spawn_stack_count++] = stack;
        stack = NULL;
    }
    pthread_mutex_unlock(&spawn_stacks_lock);
    if (stack) munmap(stack, SPAWN_STACK);
}

#endif

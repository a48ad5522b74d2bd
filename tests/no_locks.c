/* no_locks.c - a library to preload: the file system has no locks of open files (ENOLCK), as some network file systems.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

#define MAKE(name)                                                                                                     \
    int name(int fd, int command, ...) {                                                                               \
        va_list more;                                                                                                  \
        va_start(more, command);                                                                                       \
        void *argument = va_arg(more, void *);                                                                         \
        va_end(more);                                                                                                  \
        if (command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK) {                             \
            errno = ENOLCK;                                                                                            \
            return -1;                                                                                                 \
        }                                                                                                              \
        return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, #name))(fd, command, argument);                               \
    }
MAKE(fcntl)
MAKE(fcntl64)

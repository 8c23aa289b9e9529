/* Preloaded into a process, lets it die at, or have errors from, the n-th change of the files below a folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long chosen = -1, seen = 0;
static int error = 0; /* 0: die at the chosen change; else fail with this from there on */

void faults_arm(const char *path, long at, int with) {
    strncpy(folder, path, PATH_MAX - 1);
    seen = 0;
    error = with;
    chosen = at;
}

long faults_seen(void) { return seen; }

static int due(const char *path, int takes_space) {
    if (chosen < 0 || path == NULL || strncmp(path, folder, strlen(folder)) != 0) return 0;
    if (error == ENOSPC && !takes_space) return 0;
    long number = __sync_add_and_fetch(&seen, 1);
    if (chosen == 0) return 0;
    if (error == 0) {
        if (number == chosen) kill(getpid(), SIGKILL);
        return 0;
    }
    if (number < chosen) return 0;
    errno = error;
    return 1;
}

static int due_fd(int descriptor, int takes_space) {
    if (chosen < 0 || descriptor < 3) return 0;
    char link[64], path[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return due(path, takes_space);
}

static int due_at(int descriptor, const char *path, int takes_space) {
    if (path != NULL && path[0] == '/') return due(path, takes_space);
    return descriptor == AT_FDCWD ? 0 : due_fd(descriptor, takes_space);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        int mode = va_arg(rest, int);                                  \
        va_end(rest);                                                  \
        if (flags & (O_CREAT | O_TRUNC) && due(path, 1)) return -1;    \
        return REAL(name)(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                          \
    int name(int where, const char *path, int flags, ...) {                   \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        int mode = va_arg(rest, int);                                         \
        va_end(rest);                                                         \
        if (flags & (O_CREAT | O_TRUNC) && due_at(where, path, 1)) return -1; \
        return REAL(name)(where, path, flags, mode);                          \
    }
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    if (mode[0] != 'r' && due(path, 1)) return NULL;
    return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    if (mode[0] != 'r' && due(path, 1)) return NULL;
    return REAL(fopen64)(path, mode);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    if (due_fd(fileno(file), 1)) return 0;
    return REAL(fwrite)(data, size, count, file);
}
int fflush(FILE *file) {
    if (file != NULL && due_fd(fileno(file), 1)) return EOF;
    return REAL(fflush)(file);
}
ssize_t write(int file, const void *data, size_t size) {
    return due_fd(file, 1) ? -1 : REAL(write)(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    return due_fd(file, 1) ? -1 : REAL(pwrite)(file, data, size, offset);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    return due_fd(file, 1) ? -1 : REAL(pwrite64)(file, data, size, offset);
}
int ftruncate(int file, off_t size) { return due_fd(file, 1) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return due_fd(file, 1) ? -1 : REAL(ftruncate64)(file, size); }
int fsync(int file) { return due_fd(file, 1) ? -1 : REAL(fsync)(file); }
int rename(const char *from, const char *to) { return due(to, 0) ? -1 : REAL(rename)(from, to); }
int renameat(int from, const char *one, int to, const char *other) {
    return due_at(to, other, 0) ? -1 : REAL(renameat)(from, one, to, other);
}
int renameat2(int from, const char *one, int to, const char *other, unsigned int flags) {
    return due_at(to, other, 0) ? -1 : REAL(renameat2)(from, one, to, other, flags);
}
int mkdir(const char *path, mode_t mode) { return due(path, 1) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int where, const char *path, mode_t mode) {
    return due_at(where, path, 1) ? -1 : REAL(mkdirat)(where, path, mode);
}
int link(const char *from, const char *to) { return due(to, 1) ? -1 : REAL(link)(from, to); }
int linkat(int from, const char *one, int to, const char *other, int flags) {
    return due_at(to, other, 1) ? -1 : REAL(linkat)(from, one, to, other, flags);
}
int unlink(const char *path) { return due(path, 0) ? -1 : REAL(unlink)(path); }
int unlinkat(int where, const char *path, int flags) {
    return due_at(where, path, 0) ? -1 : REAL(unlinkat)(where, path, flags);
}
int rmdir(const char *path) { return due(path, 0) ? -1 : REAL(rmdir)(path); }

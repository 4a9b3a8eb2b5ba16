/* What the machine may do to spryd, put between it and the C library (LD_PRELOAD): the clock steps, the state folder becomes
 * read-only. The test says so in the file SPRY_SHIM, which holds two numbers: seconds to add to the wall clock, and whether
 * what lies below SPRY_SHIM_FOLDER can't be written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct fault {
    int64_t clock_s;
    int64_t read_only;
};

static const volatile struct fault *fault;
static char folder[4096];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SPRY_SHIM"), *below = getenv("SPRY_SHIM_FOLDER");
    if (path == NULL || below == NULL || strlen(below) >= sizeof folder)
        return;
    strcpy(folder, below);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    void *page = mmap(NULL, sizeof *fault, PROT_READ, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (page != MAP_FAILED)
        fault = page;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (failed == 0 && clock == CLOCK_REALTIME && fault != NULL)
        at->tv_sec += fault->clock_s;
    return failed;
}

static int is_below(const char *path) {
    return fault != NULL && fault->read_only && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_shut(int fd) {
    if (fault == NULL || !fault->read_only)
        return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

static int refuse(void) {
    errno = EROFS;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    return is_shut(fd) ? refuse() : syscall(SYS_write, fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return is_shut(fd) ? refuse() : syscall(SYS_pwrite64, fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return pwrite64(fd, bytes, count, at);
}

int ftruncate64(int fd, off64_t length) {
    return is_shut(fd) ? refuse() : (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) {
    return ftruncate64(fd, length);
}

static int opened(const char *path, int flags, va_list more) {
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    if (writes && is_below(path))
        return refuse();
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int fd = opened(path, flags, more);
    va_end(more);
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int fd = opened(path, flags, more);
    va_end(more);
    return fd;
}

int mkdir(const char *path, mode_t mode) {
    return is_below(path) ? refuse() : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int rename(const char *from, const char *to) {
    return is_below(to) ? refuse() : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) {
    return is_below(path) ? refuse() : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

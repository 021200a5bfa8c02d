/* A small library for LD_PRELOAD: one call of libc on a file fails, chosen by its number.
 *
 * SHIM_DIR    only calls on paths in these directories count, separated by colons; absolute, without symbolic links
 * SHIM_GROUP  open, read-open, list, read, write, allocate, truncate, sync, pace, rename, link, mkdir, unlink, or all
 * SHIM_N      the number of the call that fails, from 1; 0: none fails, each is logged
 * SHIM_FOR    how many fail from there on (1)
 * SHIM_ERRNO  the number of the error; 0: the call does half of its bytes instead
 * SHIM_LOG    what fired: "fired GROUP FUNCTION PATH" a line; beside it, in SHIM_LOG.count, how many calls there were
 *
 * Invariants: the count is shared with child processes; a call that fails has done nothing; without SHIM_LOG all pass.
 * Calls that do not go through libc's symbols (rustix and io_uring use raw system calls) are not seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NONE (-1) /* the call goes on as it is */
#define HALF 0    /* the call does half of its bytes */

static const char *directories, *wanted_group;
static long first, last;
static int log_fd = -1, error_number;
static atomic_uint *calls_count;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void start(void) {
    const char *log = getenv("SHIM_LOG");
    char path[PATH_MAX];
    if (!log || snprintf(path, sizeof path, "%s.count", log) >= (int)sizeof path) return;
    directories = getenv("SHIM_DIR") ? getenv("SHIM_DIR") : "";
    wanted_group = getenv("SHIM_GROUP") ? getenv("SHIM_GROUP") : "all";
    first = number("SHIM_N", 0);
    last = first + number("SHIM_FOR", 1) - 1;
    error_number = (int)number("SHIM_ERRNO", EIO);
    /* Raw system calls: this library's own open is not ready yet. The descriptor is out of the way of the program's. */
    int low = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    int counter = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (low < 0 || counter < 0 || syscall(SYS_ftruncate, counter, (off_t)sizeof *calls_count) != 0) abort();
    calls_count = mmap(NULL, sizeof *calls_count, PROT_READ | PROT_WRITE, MAP_SHARED, counter, 0);
    log_fd = fcntl(low, F_DUPFD_CLOEXEC, 500);
    if (calls_count == MAP_FAILED || log_fd < 0) abort();
    close(low);
    close(counter);
}

static int is_below(const char *path) {
    for (const char *at = directories; *at;) {
        size_t length = strcspn(at, ":");
        if (strncmp(path, at, length) == 0 && (path[length] == '/' || path[length] == 0)) return 1;
        at += length + (at[length] == ':');
    }
    return 0;
}

/* The path of `name` in the directory `fd`, or of `fd` itself where there is no name. */
static int resolve(char *path, size_t size, int fd, const char *name) {
    char link[64];
    if (name && name[0] == '/') return snprintf(path, size, "%s", name) < (int)size;
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !name || snprintf(path + length, size - (size_t)length, "/%s", name) < (int)(size - (size_t)length);
}

/* Counts a call; what to do with it: NONE, HALF or an error number. */
static int fate(const char *group, const char *function, int fd, const char *name) {
    char path[PATH_MAX], line[PATH_MAX + 64];
    int before = errno, result = NONE;
    if (log_fd < 0 || (strcmp(wanted_group, "all") != 0 && strcmp(wanted_group, group) != 0)) return NONE;
    if (resolve(path, sizeof path, fd, name) && is_below(path)) {
        long call = (long)atomic_fetch_add(calls_count, 1) + 1;
        int fires = first > 0 && call >= first && call <= last;
        if (fires || first == 0) {
            int length = snprintf(line, sizeof line, "%s %s %s %s\n", fires ? "fired" : "call", group, function, path);
            syscall(SYS_write, log_fd, line, (size_t)length);
        }
        if (fires) result = error_number;
    }
    errno = before;
    return result;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define STOP(group, function, fd, path, failed)               \
    do {                                                      \
        int stop_ = fate(group, function, fd, path);          \
        if (stop_ > 0) return errno = stop_, (failed);        \
    } while (0)
/* PLAIN: a call that passes on its arguments as they are. */
#define PLAIN(group, name, parameters, arguments, fd, path)                \
    int name parameters {                                                  \
        static __typeof__(&name) real;                                     \
        STOP(group, #name, fd, path, -1);                                  \
        if (!real) real = REAL(name);                                      \
        return real arguments;                                             \
    }

#define OPENING(flags) (((flags) & O_ACCMODE) == O_RDONLY && !((flags) & O_CREAT) ? "read-open" : "open")
#define MODE(flags)                                                        \
    mode_t mode = 0;                                                       \
    if (__OPEN_NEEDS_MODE(flags)) {                                        \
        va_list rest;                                                      \
        va_start(rest, flags);                                             \
        mode = va_arg(rest, mode_t);                                       \
        va_end(rest);                                                      \
    }
#define OPEN(name)                                                         \
    int name(const char *path, int flags, ...) {                           \
        MODE(flags)                                                        \
        STOP(OPENING(flags), #name, AT_FDCWD, path, -1);                   \
        return REAL(name)(path, flags, mode);                              \
    }
#define OPENAT(name)                                                       \
    int name(int fd, const char *path, int flags, ...) {                   \
        MODE(flags)                                                        \
        STOP(OPENING(flags), #name, fd, path, -1);                         \
        return REAL(name)(fd, path, flags, mode);                          \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
DIR *opendir(const char *path) { STOP("read-open", "opendir", AT_FDCWD, path, NULL); return REAL(opendir)(path); }
struct dirent *readdir(DIR *d) { STOP("list", "readdir", dirfd(d), NULL, NULL); return REAL(readdir)(d); }
struct dirent64 *readdir64(DIR *d) { STOP("list", "readdir64", dirfd(d), NULL, NULL); return REAL(readdir64)(d); }
#define OPEN_STREAM(name)                                                                          \
    FILE *name(const char *path, const char *mode) {                                               \
        STOP(mode[0] == 'r' && !strchr(mode, '+') ? "read-open" : "open", #name, AT_FDCWD, path, NULL); \
        return REAL(name)(path, mode);                                                             \
    }
OPEN_STREAM(fopen) OPEN_STREAM(fopen64)

/* MOVE: a call that moves bytes. */
#define MOVE(group, name, parameters, arguments)                           \
    ssize_t name parameters {                                              \
        static __typeof__(&name) real;                                     \
        int stop = fate(group, #name, fd, NULL);                           \
        if (stop > 0) return errno = stop, -1;                             \
        if (stop == HALF && count > 1) count /= 2;                         \
        if (!real) real = REAL(name);                                      \
        return real arguments;                                             \
    }
MOVE("write", write, (int fd, const void *bytes, size_t count), (fd, bytes, count))
MOVE("write", pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at))
MOVE("write", pwrite64, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
MOVE("write", writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
MOVE("read", read, (int fd, void *bytes, size_t count), (fd, bytes, count))
MOVE("read", pread, (int fd, void *bytes, size_t count, off_t at), (fd, bytes, count, at))
MOVE("read", pread64, (int fd, void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
#undef fread_unlocked
size_t fread_unlocked(void *bytes, size_t size, size_t count, FILE *file) {
    STOP("read", "fread_unlocked", fileno(file), NULL, 0);
    return REAL(fread_unlocked)(bytes, size, count, file);
}
MOVE("read", readv, (int fd, const struct iovec *parts, int count), (fd, parts, count))

PLAIN("sync", fsync, (int fd), (fd), fd, NULL)
PLAIN("sync", fdatasync, (int fd), (fd), fd, NULL)
PLAIN("pace", sync_file_range, (int fd, off64_t at, off64_t count, unsigned f), (fd, at, count, f), fd, NULL)
PLAIN("rename", rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PLAIN("rename", renameat, (int fa, const char *a, int fb, const char *b), (fa, a, fb, b), fb, b)
PLAIN("rename", renameat2, (int fa, const char *a, int fb, const char *b, unsigned f), (fa, a, fb, b, f), fb, b)
PLAIN("link", link, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PLAIN("link", linkat, (int fa, const char *a, int fb, const char *b, int f), (fa, a, fb, b, f), fb, b)
PLAIN("mkdir", mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
PLAIN("mkdir", mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode), fd, path)
PLAIN("unlink", unlink, (const char *path), (path), AT_FDCWD, path)
PLAIN("unlink", unlinkat, (int fd, const char *path, int f), (fd, path, f), fd, path)
PLAIN("unlink", rmdir, (const char *path), (path), AT_FDCWD, path)
PLAIN("truncate", ftruncate, (int fd, off_t size), (fd, size), fd, NULL)
PLAIN("truncate", ftruncate64, (int fd, off64_t size), (fd, size), fd, NULL)
PLAIN("allocate", fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), fd, NULL)
PLAIN("allocate", fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size), fd, NULL)
int posix_fallocate(int fd, off_t at, off_t size) {
    int stop = fate("allocate", "posix_fallocate", fd, NULL); /* returns its error */
    return stop > 0 ? stop : REAL(posix_fallocate)(fd, at, size);
}

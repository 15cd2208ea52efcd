/* Make the nth write or sync of a program fail.  Loaded with LD_PRELOAD; `shim.py` is the manual.
 *
 * FAULT_CONTROL names a file that holds a `struct control`, mapped by all threads and processes of
 * the program: they count together, and the test may change the orders while they run.  Every call
 * of a name listed in `calls`, on a file whose path begins with `path`, counts by one.  Call `nth`,
 * and all after it if `sticky`, meets `action`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, FAIL, SHORT, TORN };
struct control {
    long count, nth, sticky;
    char action[40], calls[448], path[1024];
    char hit[1024]; /* the call that met the fault first */
};
static struct control *control;

static void __attribute__((constructor)) start(void)
{
    const char *name = getenv("FAULT_CONTROL");
    int fd = name ? open(name, O_RDWR) : -1;
    if (fd < 0) return;
    control = mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (control == MAP_FAILED) abort();
}

static int listed(const char *name) /* calls looks like " write pwrite " */
{
    char word[32];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(control->calls, word) != 0;
}

static int verdict(const char *name, int fd, const char *file)
{
    char link[32], here[PATH_MAX] = "", target[2 * PATH_MAX] = "";
    if (!control || !listed(name)) return PASS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (file)
        snprintf(target, sizeof target, "%s/%s",
                 file[0] == '/' || !getcwd(here, sizeof here) ? "" : here, file);
    else if (readlink(link, target, sizeof target - 1) < 0)
        return PASS;
    file = target + strspn(target, "/") - 1; /* one slash in front */
    if (strncmp(file, control->path, strlen(control->path))) return PASS;
    long now = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST), nth = control->nth;
    if (!nth || now < nth || (now > nth && !control->sticky)) return PASS;
    if (now == nth) snprintf(control->hit, sizeof control->hit, "%s %s", name, file);
    if (!strcmp(control->action, "kill")) raise(SIGKILL);
    if (!strcmp(control->action, "torn")) return TORN;
    if (!strcmp(control->action, "short")) return SHORT;
    errno = !strcmp(control->action, "enospc") ? ENOSPC : EIO;
    return FAIL;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static size_t half(int what, size_t all, off64_t offset) /* a tear lies between two sectors */
{
    if (what == PASS) return all;
    if (what == SHORT) return all / 2;
    off64_t end = (offset + (off64_t)all / 2) & ~511;
    return end > offset ? (size_t)(end - offset) : 0;
}

/* A call that moves `all` bytes to `offset`: REST does it with `part` of them. */
#define TRANSFER(name, kind, all, offset, rest) { \
    REAL(name); \
    int what = verdict(kind, fd, 0); \
    size_t part = half(what, all, offset); \
    if (what == FAIL) return -1; \
    ssize_t done = rest; \
    if (what == TORN) raise(SIGKILL); \
    return done; }

/* A call that happens or not.  A torn one is killed before it happens. */
#define WHOLE(name, kind, fd, file, call) { \
    REAL(name); \
    int what = verdict(kind, fd, file); \
    if (what == TORN) raise(SIGKILL); \
    if (what == FAIL) return -1; \
    return call; }

ssize_t write(int fd, const void *b, size_t n) TRANSFER(write, "write", n, 0, real(fd, b, part))
ssize_t pwrite(int fd, const void *b, size_t n, off_t o)
    TRANSFER(pwrite, "pwrite", n, o, real(fd, b, part, o))
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o)
    TRANSFER(pwrite64, "pwrite", n, o, real(fd, b, part, o))

static ssize_t pieces(int fd, const struct iovec *v, int n, off64_t o, size_t want)
{
    size_t done = 0; /* o < 0: at the file's position */
    for (int i = 0; i < n && done < want; i++) {
        size_t len = v[i].iov_len < want - done ? v[i].iov_len : want - done;
        ssize_t r = o < 0 ? syscall(SYS_write, fd, v[i].iov_base, len)
                          : syscall(SYS_pwrite64, fd, v[i].iov_base, len, o + (off64_t)done);
        if (r < 0) return done ? (ssize_t)done : r;
        done += r;
        if ((size_t)r < len) break;
    }
    return done;
}

static size_t total(const struct iovec *v, int n)
{
    size_t sum = 0;
    while (n--) sum += v++->iov_len;
    return sum;
}

ssize_t writev(int fd, const struct iovec *v, int n)
    TRANSFER(writev, "writev", total(v, n), 0, what ? pieces(fd, v, n, -1, part) : real(fd, v, n))
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o)
    TRANSFER(pwritev, "pwritev", total(v, n), o, what ? pieces(fd, v, n, o, part) : real(fd, v, n, o))
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o)
    TRANSFER(pwritev64, "pwritev", total(v, n), o, what ? pieces(fd, v, n, o, part) : real(fd, v, n, o))
ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t o, int f)
    TRANSFER(pwritev2, "pwritev", total(v, n), o, what ? pieces(fd, v, n, o, part) : real(fd, v, n, o, f))
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t o, int f)
    TRANSFER(pwritev64v2, "pwritev", total(v, n), o, what ? pieces(fd, v, n, o, part) : real(fd, v, n, o, f))

int fsync(int fd) WHOLE(fsync, "fsync", fd, 0, real(fd))
int fdatasync(int fd) WHOLE(fdatasync, "fdatasync", fd, 0, real(fd))
int ftruncate(int fd, off_t n) WHOLE(ftruncate, "ftruncate", fd, 0, real(fd, n))
int ftruncate64(int fd, off64_t n) WHOLE(ftruncate64, "ftruncate", fd, 0, real(fd, n))
int fallocate(int fd, int m, off_t o, off_t n)
    WHOLE(fallocate, "fallocate", fd, 0, real(fd, m, o, n))
int fallocate64(int fd, int m, off64_t o, off64_t n)
    WHOLE(fallocate64, "fallocate", fd, 0, real(fd, m, o, n))
int rename(const char *a, const char *b) WHOLE(rename, "rename", -1, b, real(a, b))
int link(const char *a, const char *b) WHOLE(link, "link", -1, b, real(a, b))
int mkdir(const char *a, mode_t m) WHOLE(mkdir, "mkdir", -1, a, real(a, m))
int msync(void *a, size_t n, int f) WHOLE(msync, "msync", -1, control ? control->path : a, real(a, n, f))

/* These two return the error instead of setting errno. */
#define RETURNED(name, off) int name(int fd, off o, off n) { \
    REAL(name); \
    int what = verdict("fallocate", fd, 0); \
    if (what == TORN) raise(SIGKILL); \
    return what == FAIL ? errno : real(fd, o, n); }
RETURNED(posix_fallocate, off_t)
RETURNED(posix_fallocate64, off64_t)

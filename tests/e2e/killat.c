/* Preloaded into a server: ends the process with SIGKILL at its Nth step that writes to, syncs, renames or removes a
 * regular file. KILL_AT is N; an odd N kills before the step, an even one after it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long steps;
static long limit = -1;

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("KILL_AT");
    limit = text ? atol(text) : -1;
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static int counted(int fd) {
    struct stat st;
    return limit > 0 && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
}

#define STEP(is, call)                                          \
    long at = (is) ? atomic_fetch_add(&steps, 1) + 1 : 0;       \
    if (at == limit && limit % 2 == 1) die();                   \
    __auto_type out = (call);                                   \
    if (at == limit && limit > 0 && limit % 2 == 0) die();      \
    return out

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *b, size_t n) { STEP(counted(fd), REAL(write)(fd, b, n)); }
ssize_t writev(int fd, const struct iovec *v, int n) { STEP(counted(fd), REAL(writev)(fd, v, n)); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { STEP(counted(fd), REAL(pwrite)(fd, b, n, o)); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { STEP(counted(fd), REAL(pwrite64)(fd, b, n, o)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { STEP(counted(fd), REAL(pwritev)(fd, v, n, o)); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) { STEP(counted(fd), REAL(pwritev64)(fd, v, n, o)); }
int fsync(int fd) { STEP(counted(fd), REAL(fsync)(fd)); }
int fdatasync(int fd) { STEP(counted(fd), REAL(fdatasync)(fd)); }
int sync_file_range(int fd, off64_t o, off64_t n, unsigned f) { STEP(counted(fd), REAL(sync_file_range)(fd, o, n, f)); }
int ftruncate(int fd, off_t n) { STEP(counted(fd), REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { STEP(counted(fd), REAL(ftruncate64)(fd, n)); }
int rename(const char *a, const char *b) { STEP(limit > 0, REAL(rename)(a, b)); }
int unlink(const char *a) { STEP(limit > 0, REAL(unlink)(a)); }

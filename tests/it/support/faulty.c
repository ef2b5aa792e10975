/* A disk that fails, a disk that is slow and a clock that is wrong, for the program it is preloaded into (LD_PRELOAD).
 *
 *   FAULTY_EIO=SEED:N     one in N calls of rename, fsync, fdatasync, write, pwrite on regular files fails with EIO
 *   FAULTY_DELAY=US       each of them takes so many microseconds longer
 *   FAULTY_CLOCK=S        the time of day is off by S seconds
 *   FAULTY_JUMP=MS:S      and by S more seconds from MS milliseconds after the start of the process
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name, ...) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

static uint64_t seed, one_in;
static long delay_us, clock_offset, jump_after_ms, jump_by;
static struct timespec began;
static atomic_ulong calls;

static __typeof__(clock_gettime) *real_clock(void) {
    static __typeof__(clock_gettime) *real;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    return real;
}

__attribute__((constructor)) static void read_environment(void) {
    const char *text;
    if ((text = getenv("FAULTY_EIO"))) sscanf(text, "%lu:%lu", &seed, &one_in);
    if ((text = getenv("FAULTY_DELAY"))) delay_us = atol(text);
    if ((text = getenv("FAULTY_CLOCK"))) clock_offset = atol(text);
    if ((text = getenv("FAULTY_JUMP"))) sscanf(text, "%ld:%ld", &jump_after_ms, &jump_by);
    real_clock()(CLOCK_MONOTONIC, &began);
}

/* Whether this call fails: splitmix64 (Steele, Lea, Flood 2014) of the seed and the number of the call. */
static int fails(void) {
    if (delay_us) usleep(delay_us);
    if (!one_in) return 0;
    uint64_t z = seed * 0xD1342543DE82EF95u + atomic_fetch_add(&calls, 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    if ((z ^ (z >> 31)) % one_in) return 0;
    errno = EIO;
    return 1;
}

static int fails_on(int fd) {
    struct stat status;
    return fd > 2 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && fails();
}

int rename(const char *from, const char *to) { REAL(rename); return fails() ? -1 : real(from, to); }
int fsync(int fd) { REAL(fsync); return fails_on(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return fails_on(fd) ? -1 : real(fd); }
ssize_t write(int fd, const void *bytes, size_t n) { REAL(write); return fails_on(fd) ? -1 : real(fd, bytes, n); }
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { REAL(pwrite); return fails_on(fd) ? -1 : real(fd, bytes, n, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) { REAL(pwrite64); return fails_on(fd) ? -1 : real(fd, bytes, n, at); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = real_clock()(clock, time);
    if (result || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return result;
    time->tv_sec += clock_offset;
    if (jump_by) {
        struct timespec now;
        real_clock()(CLOCK_MONOTONIC, &now);
        long ms = (now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000;
        if (ms >= jump_after_ms) time->tv_sec += jump_by;
    }
    return 0;
}

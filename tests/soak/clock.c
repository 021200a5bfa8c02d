/* A small library for LD_PRELOAD: another wall clock, which the driver of a test moves, for the program as it is released.
 *
 * CLOCK_PAGE  the file with the clock, which the driver makes; it is mapped, and both sides change it (see `struct page`)
 *
 * The wall clock that libc tells is the one in the page. The timer of the schedules is set by a raw system call (rustix), so a seccomp
 * filter sends timerfd_settime with an absolute time here: the timer is kept in the page, for the driver to see, and a thread ends the
 * wait when its time has come, or when the clock was set, as the kernel does for TFD_TIMER_CANCEL_ON_SET.
 *
 * Limitations: one timer in a process. A clock that was set ends the wait with an expiration, not with ECANCELED. Times of files are
 * those of the kernel. CLOCK_MONOTONIC, and with it every time limit of the program, goes on as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#define FIRST(context) ((context)->uc_mcontext.gregs[REG_RDI])
#define THIRD(context) ((context)->uc_mcontext.gregs[REG_RDX])
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#define FIRST(context) ((context)->uc_mcontext.regs[0])
#define THIRD(context) ((context)->uc_mcontext.regs[2])
#else
#error "the registers of this processor are not known here"
#endif

#define SECOND_NS 1000000000LL
#define LOOK_NS 1000000
#define NEVER_SECONDS 1000000

struct page {
    _Atomic int64_t ahead_ns; /* how far the wall clock is ahead of CLOCK_MONOTONIC */
    _Atomic uint64_t epoch;   /* how often it was set; the driver changes this last, so who has read it reads the clock of then, or later */
    _Atomic int64_t armed_ns; /* the wall time at which the timer ends its wait; 0: it is not set, or has ended it */
};

static struct page *page;
static int (*real_gettime)(clockid_t, struct timespec *);
static atomic_flag busy = ATOMIC_FLAG_INIT; /* held while the timer is changed */
static int timer = -1;
static uint64_t armed_epoch;
static __thread uint64_t seen_epoch __attribute__((tls_model("initial-exec")));

static int64_t wall(uint64_t *epoch) {
    struct timespec now;
    *epoch = page->epoch;
    real_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec + page->ahead_ns;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return real_gettime(clock, at);
    int64_t ns = wall(&seen_epoch);
    at->tv_sec = ns / SECOND_NS;
    at->tv_nsec = ns % SECOND_NS;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* Sets the kernel's timer; relative times are not sent here. */
static long set_kernel(int fd, int64_t seconds, int64_t nanoseconds) {
    struct itimerspec after = {.it_value = {.tv_sec = seconds, .tv_nsec = nanoseconds}};
    return syscall(SYS_timerfd_settime, fd, 0, &after, NULL) == 0 ? 0 : -errno;
}

static void *watch(void *unused) {
    const struct timespec pause = {.tv_nsec = LOOK_NS};
    uint64_t epoch;
    prctl(PR_SET_NAME, "clock");
    for (;;) {
        nanosleep(&pause, NULL);
        while (atomic_flag_test_and_set(&busy)) {}
        int64_t now_ns = wall(&epoch);
        if (page->armed_ns != 0 && (now_ns >= page->armed_ns || epoch != armed_epoch)) {
            page->armed_ns = 0;
            set_kernel(timer, 0, 1);
        }
        atomic_flag_clear(&busy);
    }
    return unused;
}

/* timerfd_settime: the driver sees the time, and `watch` ends the wait. */
static long set_timer(int fd, const struct itimerspec *wanted) {
    static int watched;
    uint64_t epoch;
    while (atomic_flag_test_and_set(&busy)) {}
    wall(&epoch);
    timer = fd;
    armed_epoch = epoch;
    page->armed_ns = wanted->it_value.tv_sec * SECOND_NS + wanted->it_value.tv_nsec;
    long result = set_kernel(fd, NEVER_SECONDS, 0);
    /* The clock was set after the caller looked at it: the kernel sets the timer, and says so once. */
    if (result == 0 && seen_epoch != epoch) result = -ECANCELED;
    seen_epoch = epoch;
    atomic_flag_clear(&busy);
    if (!watched) {
        pthread_t thread;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        if (pthread_create(&thread, NULL, watch, NULL) != 0) abort();
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        watched = 1;
    }
    return result;
}

static void trapped(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    int before = errno;
    RESULT((ucontext_t *)context) = set_timer((int)FIRST((ucontext_t *)context), (const void *)THIRD((ucontext_t *)context));
    errno = before;
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CLOCK_PAGE");
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_timerfd_settime, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, TFD_TIMER_ABSTIME, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) abort();
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (page == MAP_FAILED || !real_gettime || sigaction(SIGSYS, &action, NULL) != 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        abort();
}

/* Leaves something behind (what the query says), or tells what is there. For the tests of rewinding: what one request
 * leaves, the next must not find. */
#define _GNU_SOURCE
#include "spry.h"

#include <asm/prctl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

SPRY_FUNCTION

#define MARK 0x1badb002cafef00dull
#define STUB 0x200000000000ull
#define ELSEWHERE ((void *)0x300000000000ull)
#define WORDS (1 << 20)
#define TRAP 0x100

static unsigned long written = 7, untouched;
static __thread unsigned long of_thread = 7;
static unsigned long *large, *small;
static unsigned long handled;
static char *heap_end;

static void note(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    handled = 1 + (unsigned long)info->si_value.sival_int;
}

#ifdef HOSTILE_INIT
static void *kept;
#endif

static struct rseq area;

static int sends, sent;

/* After each instruction, while the trap flag is set. Once the runtime has sent its answer, which is the last of a request, the
 * function goes on writing until it is at the stub: there is nothing else by which its code could run then. */
static void step(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned long at = (unsigned long)registers[REG_RIP];
    if (sends && write(1, sent ? "." : "late", sent ? 1 : 4) < 0) _exit(9);
    sent |= sends;
    if (at >= STUB && at < STUB + 4096) registers[REG_EFL] &= ~TRAP;
    const unsigned char *next = (const unsigned char *)at;
    sends = sent || (next[0] == 0x0f && next[1] == 0x05 && registers[REG_RAX] == SYS_sendto);
}

__attribute__((constructor)) static void load(void) {
    large = malloc(WORDS);
    for (unsigned i = 0; i < WORDS / 8; i++) large[i] = i;
    small = malloc(64);
    *small = 7;
    heap_end = sbrk(0);
    struct sigaction act = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 3, &act, NULL);
    sigaction(SIGALRM, &act, NULL);
    struct sigaction stepping = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &stepping, NULL);
    /* An area of its own in the place of the C library's. */
    area.cpu_id = -1u;
    syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
    syscall(SYS_rseq, &area, 32, 0, RSEQ_SIG);
#ifdef HOSTILE_INIT
    kept = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
#endif
}

/* Some stack below, with the mark all over. */
static __attribute__((noinline)) void mark_stack(void) {
    volatile unsigned long room[64 << 10];
    for (unsigned i = 0; i < sizeof room / 8; i++) room[i] = MARK;
}

static __attribute__((noinline)) unsigned marks_in_stack(void) {
    unsigned long room[64 << 10];
    unsigned marks = 0;
    __asm__ volatile("" : "=m"(room)); /* what happens to be there */
    for (unsigned i = 0; i < sizeof room / 8; i++) marks += room[i] == MARK;
    return marks;
}

static void *nap(void *none) {
    for (;;) pause();
    return none;
}

static char told[8192];
static size_t told_len;

static void tell(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    int len = vsnprintf(told + told_len, sizeof told - told_len, format, rest);
    va_end(rest);
    if (len > 0) told_len += (size_t)len;
}

/* Everything that a request can find out about its process without changing it. */
static void look(struct spry_response *response) {
    unsigned long registers[8] = {0};
    unsigned mxcsr;
    unsigned short control, segments[4];
    unsigned long gs = 0;
    __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(control));
    __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3"
                     : "=r"(segments[0]), "=r"(segments[1]), "=r"(segments[2]), "=r"(segments[3]));
    __asm__ volatile("vmovdqu %%ymm15, %0" : "=m"(registers));
    syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
    tell("globals %lu %lu, thread %lu, ", written, untouched, of_thread);
    unsigned long sum = 0;
    for (unsigned i = 0; i < WORDS / 8; i++) sum += large[i];
    tell("heap %lu %lu, end %ld, ", sum, *small, (long)((char *)sbrk(0) - heap_end));
    tell("stack %u, ", marks_in_stack());
    tell("mxcsr %x, control %x, segments %x %x %x %x, gs %lx, mark in ymm15 %d, ", mxcsr, control, segments[0],
         segments[1], segments[2], segments[3], gs, registers[0] == MARK || registers[2] == MARK);
    unsigned char there;
    tell("elsewhere %d, ", mincore(ELSEWHERE, 1, &there) == 0);
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    tell("blocked");
    for (int i = 1; i <= 64; i++)
        if (sigismember(&set, i) == 1) tell(" %d", i);
    sigpending(&set);
    tell(", pending");
    for (int i = 1; i <= 64; i++)
        if (sigismember(&set, i) == 1) tell(" %d", i);
    tell(", handlers");
    for (int i = 1; i <= 64; i++) {
        struct sigaction act;
        if (sigaction(i, NULL, &act) == 0 && act.sa_handler != SIG_DFL)
            tell(" %d%s", i, act.sa_handler == SIG_IGN ? "-" : "");
    }
    stack_t alternate;
    sigaltstack(NULL, &alternate);
    tell(", handled %lu, alternate stack %d, ", handled, alternate.ss_flags);
    struct itimerval timer;
    getitimer(ITIMER_REAL, &timer);
    tell("timer %ld, ", timer.it_value.tv_sec);
    tell("open");
    for (int fd = 0; fd < 1000; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0) tell(" %d:%x:%x", fd, flags, fcntl(fd, F_GETFL));
    }
    struct stat about;
    fstat(0, &about);
    tell(", input %lx", (unsigned long)about.st_rdev);
    char folder[256] = "";
    if (!getcwd(folder, sizeof folder)) strcpy(folder, "?");
    tell(", folder %s, ", folder[0] ? "is" : "isn't");
    struct stat here, code;
    tell("in its code %d, ", stat(".", &here) == 0 && stat("remains.so", &code) == 0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    tell("files %lu, ", (unsigned long)limit.rlim_cur);
    tell("priority %d, policy %d, session %d, group %d, ", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0),
         getsid(0) == getppid(), getpgid(0) == getsid(0));
    int child = waitpid(-1, NULL, WNOHANG);
    tell("child %d %d, ", child > 0, errno);
    struct rusage usage;
    struct timespec used;
    struct tms ticks;
    memset(&usage, 1, sizeof usage);
    memset(&used, 1, sizeof used);
    memset(&ticks, 1, sizeof ticks);
    getrusage(RUSAGE_SELF, &usage);
    syscall(SYS_clock_gettime, CLOCK_PROCESS_CPUTIME_ID, &used);
    times(&ticks);
    tell("used %ld %ld %ld %ld %ld, ", usage.ru_utime.tv_usec, usage.ru_minflt, used.tv_nsec, ticks.tms_utime,
         ticks.tms_stime);
    int own = open("/proc/self/stat", O_RDONLY);
    tell("/proc/self %d, ", own < 0 ? errno : 0);
    if (own >= 0) close(own);
    char byte;
    int back = open("/proc/self/fd/1", O_RDONLY | O_NONBLOCK);
    long got = back < 0 ? -2 : read(back, &byte, 1);
    tell("pipe %ld, ", got);
    if (back >= 0) close(back);
    int unread = -1, file = open("remains.so", O_RDONLY);
    ioctl(1, FIONREAD, &unread);
    struct flock held = {.l_type = F_WRLCK};
    fcntl(file, F_OFD_GETLK, &held);
    tell("unread %d, locked %d %d, ", unread, flock(file, LOCK_EX | LOCK_NB), held.l_type != F_UNLCK);
    if (file >= 0) close(file);
    /* the outbox, behind what was told */
    unsigned long marks = 0, len = 12 << 10;
    uint8_t *room = spry_response_reserve(response, len);
    for (unsigned long i = 0; room && i + 8 <= len; i++) marks += *(unsigned long *)(room + i) == MARK;
    tell("outbox %d %lu\n", room != NULL, marks);
}

/* Whether some word near this one, within what is mapped and there, is of this byte alone. */
static int is_near(unsigned long at, unsigned char byte) {
    unsigned long wanted = byte * 0x0101010101010101ul, first = (at & -4096ul) - (4 << 20), found = 0;
    for (unsigned i = 0; i < 2048; i++) {
        const unsigned long *page = (const unsigned long *)(first + i * 4096ul);
        unsigned char there = 0;
        if (mincore((void *)page, 4096, &there) != 0 || !(there & 1)) continue;
        for (unsigned word = 0; word < 512; word++) found += page[word] == wanted;
    }
    return found != 0;
}

static const char *leave(const struct spry_request *request, struct spry_response *response) {
    struct spry_slice what = request->query;
    if (spry_slice_is(what, "global")) written = untouched = 8;
    if (spry_slice_is(what, "heap")) {
        for (unsigned i = 0; i < WORDS / 8; i++) large[i] += 1;
        *small = 8;
        free(malloc(100));
    }
    if (spry_slice_is(what, "brk")) {
        char *more = sbrk(1 << 20);
        if (more != (char *)-1) memset(more, 1, 1 << 20);
    }
    if (spry_slice_is(what, "thread-local")) of_thread = 8;
    if (spry_slice_is(what, "stack")) mark_stack();
    if (spry_slice_is(what, "registers")) {
        unsigned mxcsr = 0x9f80;
        unsigned short control = 0x027f, zero = 0;
        unsigned long mark[4] = {MARK, MARK, MARK, MARK};
        (void)zero;
        __asm__ volatile("ldmxcsr %0; fldcw %1; vmovdqu %2, %%ymm15" ::"m"(mxcsr), "m"(control), "m"(mark));
        __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%gs" ::"r"((unsigned short)0x2b));
        syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)large);
    }
    if (spry_slice_is(what, "open")) {
        for (int i = 0; i < 20; i++) open("/etc/passwd", O_RDONLY);
        syscall(SYS_memfd_create, "left", 0);
    }
    if (spry_slice_is(what, "locks")) {
        int file = open("remains.so", O_RDONLY), memory = (int)syscall(SYS_memfd_create, "left", 0);
        struct flock held = {.l_type = F_RDLCK};
        if (flock(file, LOCK_EX) != 0 || fcntl(file, F_OFD_SETLK, &held) != 0) return "no lock";
        fcntl(memory, F_SETLEASE, F_WRLCK);
    }
    if (spry_slice_is(what, "events")) {
        int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
        sigset_t all;
        sigfillset(&all);
        int signals = signalfd(-1, &all, 0), counter = eventfd(7, 0);
        struct itimerspec often = {{0, 1000000}, {0, 1000000}};
        struct epoll_event event = {.events = EPOLLIN};
        if (timerfd_settime(timer, 0, &often, NULL) != 0 || signals < 0 || counter < 0) return "no events";
        for (int fd = 3; fd <= counter; fd++)
            if (fd != epoll) epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
    if (spry_slice_is(what, "signal-at-close")) {
        /* The end that goes tells the owner of the one that is still there. The kernel lets go of what one call closes in an
           order of its own: so once with each end as the later one. */
        for (int later = 0; later < 2; later++) {
            int ends[2];
            if (pipe(ends) != 0) return "no pipe";
            int moved = dup2(ends[later], 100 + later), reads = later == 0 ? moved : ends[0];
            close(ends[later]);
            if (fcntl(reads, F_SETOWN, getpid()) != 0 || fcntl(reads, F_SETSIG, SIGRTMIN + 3) != 0) return "no owner";
            if (fcntl(reads, F_SETFL, O_ASYNC) != 0) return "no signal";
        }
    }
    if (spry_slice_is(what, "late-output")) __asm__ volatile("pushfq; orq %0, (%%rsp); popfq" : : "i"(TRAP) : "memory", "cc");
    if (spry_slice_is(what, "replace-input")) dup2(open("/etc/passwd", O_RDONLY), 0);
    if (spry_slice_is(what, "replace-output")) {
        int ends[2];
        if (pipe(ends) == 0) dup2(ends[1], 1);
    }
    if (spry_slice_is(what, "close-input")) close(0);
    if (spry_slice_is(what, "flags")) fcntl(1, F_SETFL, O_NONBLOCK | O_APPEND);
    if (spry_slice_is(what, "flags-by-another-name")) fcntl(dup(1), F_SETFL, O_NONBLOCK | O_APPEND);
    if (spry_slice_is(what, "close-on-exec")) ioctl(2, FIOCLEX);
    if (spry_slice_is(what, "pipe-size")) fcntl(open("/proc/self/fd/1", O_RDWR), F_SETPIPE_SZ, 1 << 16);
    if (spry_slice_is(what, "timer")) {
        struct itimerval timer = {.it_value = {.tv_sec = 1000}};
        setitimer(ITIMER_REAL, &timer, NULL);
    }
    if (spry_slice_is(what, "alarm")) alarm(1000);
    if (spry_slice_is(what, "interrupted-wait")) {
        /* Again and again: the first one may come before there is a wait. */
        struct itimerval timer = {{.tv_usec = 1000}, {.tv_usec = 1000}}, none = {0};
        setitimer(ITIMER_REAL, &timer, NULL);
        int woken = poll(NULL, 0, -1), why = errno;
        setitimer(ITIMER_REAL, &none, NULL);
        if (woken != -1 || why != EINTR) return "nothing interrupted it";
        if (syscall(SYS_restart_syscall) != -1 || errno != EINTR) return "it went on";
    }
    if (spry_slice_is(what, "setuid")) syscall(SYS_setuid, getuid());
    if (spry_slice_is(what, "setgid")) syscall(SYS_setgid, getgid());
    if (spry_slice_is(what, "setreuid")) syscall(SYS_setreuid, -1, -1);
    if (spry_slice_is(what, "setregid")) syscall(SYS_setregid, -1, -1);
    if (spry_slice_is(what, "setresuid")) syscall(SYS_setresuid, -1, -1, -1);
    if (spry_slice_is(what, "setresgid")) syscall(SYS_setresgid, -1, -1, -1);
    if (spry_slice_is(what, "session")) setsid();
    if (spry_slice_is(what, "handler")) signal(SIGUSR1, SIG_IGN);
    if (spry_slice_is(what, "alternate-stack")) {
        stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
        sigaltstack(&stack, NULL);
    }
    if (spry_slice_is(what, "mask") || spry_slice_is(what, "pending")) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        union sigval value = {.sival_int = 77};
        if (spry_slice_is(what, "pending")) {
            sigqueue(getpid(), SIGRTMIN + 3, value);
            kill(getpid(), SIGUSR2);
        }
    }
    if (spry_slice_is(what, "mapping")) {
        void *at = mmap(ELSEWHERE, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (at == ELSEWHERE) memset(at, 1, 1 << 20);
    }
    if (spry_slice_is(what, "shared-mapping")) {
        void *at = mmap(ELSEWHERE, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (at == ELSEWHERE) memset(at, 1, 4096);
    }
    if (spry_slice_is(what, "sealed-mapping")) {
        mmap(ELSEWHERE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        syscall(462, ELSEWHERE, 4096, 0);
    }
    unsigned long page = (unsigned long)&written & -4096ul;
    if (spry_slice_is(what, "mapping-in-exchange")) { /* as much is mapped as before, if anything known can go */
        mmap(ELSEWHERE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        unsigned long end = (unsigned long)sbrk(0);
        if (syscall(SYS_brk, end - 4096) != end) return "the heap could be made smaller";
        if (munmap((void *)(((unsigned long)&page - (1 << 19)) & -4096ul), 4096) == 0) return "the stack could be";
        if (mremap((void *)page, 4096, 0, 0) != MAP_FAILED) return "a known mapping could be";
    }
    if (spry_slice_is(what, "unmap")) {
        if (munmap((void *)page, 4096) == 0) return "a known mapping could be unmapped";
    }
    if (spry_slice_is(what, "protect")) {
        if (mprotect((void *)page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0) return "its rights could be changed";
        unsigned long text = (unsigned long)load & -4096ul;
        if (mprotect((void *)text, 4096, PROT_READ | PROT_WRITE) == 0) return "code could be made writable";
    }
    if (spry_slice_is(what, "replace-mapping")) {
        if (mmap((void *)page, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
            MAP_FAILED)
            return "a known mapping could be replaced";
        page = (unsigned long)&page & -4096ul;
        if (mmap((void *)(page - (1 << 18)), 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) != MAP_FAILED)
            return "the stack could be replaced";
    }
    if (spry_slice_is(what, "move")) {
        if (mremap((void *)page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE) != MAP_FAILED)
            return "a known mapping could be moved";
    }
    if (spry_slice_is(what, "stub")) {
        if (munmap((void *)STUB, 4096) == 0 || mprotect((void *)STUB, 4096, PROT_READ | PROT_WRITE) == 0)
            return "the stub could be changed";
        if (munmap((void *)(STUB + 0x10000000), 4096) == 0) return "the plan could be unmapped";
    }
    if (spry_slice_is(what, "guard")) {
        if (madvise((void *)(((unsigned long)&page - (1 << 19)) & -4096ul), 4096, 102) == 0) return "the stack could be guarded";
    }
    if (spry_slice_is(what, "empty")) {
        if (madvise((void *)page, 4096, MADV_DONTNEED) == 0) return "a known mapping could be emptied";
    }
    if (spry_slice_is(what, "advice")) madvise(large, 4096, MADV_DONTFORK);
    if (spry_slice_is(what, "huge-pages")) {
        madvise((void *)(((unsigned long)&page - (1 << 19)) & -4096ul), 4096, MADV_HUGEPAGE);
    }
    if (spry_slice_is(what, "lock")) mlock(&written, 8);
    if (spry_slice_is(what, "key")) syscall(SYS_pkey_alloc, 0, 0);
    if (spry_slice_is(what, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, nap, NULL);
    }
    if (spry_slice_is(what, "child")) {
        if (fork() == 0) nap(NULL);
    }
    if (spry_slice_is(what, "child-that-shares")) {
        static char stack[16384];
        clone((int (*)(void *))(void (*)(void))nap, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, NULL);
    }
    if (spry_slice_is(what, "folder") && chdir("/usr") != 0) return "no /usr";
    if (spry_slice_is(what, "umask")) umask(0);
    if (spry_slice_is(what, "limit")) {
        struct rlimit limit = {100, 100};
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (spry_slice_is(what, "priority")) setpriority(PRIO_PROCESS, 0, 10);
    if (spry_slice_is(what, "affinity")) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(0, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    if (spry_slice_is(what, "name")) prctl(PR_SET_NAME, "left");
    if (spry_slice_is(what, "group")) setpgid(0, 0);
    if (spry_slice_is(what, "another-filter")) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), syscall(SYS_seccomp, 99, 0, NULL);
    if (spry_slice_is(what, "another-listener")) {
        struct {
            unsigned short len;
            void *filter;
        } program = {1, &(struct { unsigned short code; unsigned char jt, jf; unsigned k; }){6, 0, 0, 0x7fff0000}};
        if (syscall(SYS_seccomp, 1, 8, &program) >= 0) return "it could ask itself";
    }
    if (spry_slice_is(what, "robust-list")) syscall(SYS_set_robust_list, large, 24);
    if (spry_slice_is(what, "outbox")) {
        uint8_t *room = spry_response_reserve(response, 12 << 10);
        for (unsigned i = 0; room && i < (12 << 10) / 8; i++) ((unsigned long *)room)[i] = MARK;
    }
    if (spry_slice_is(what, "large-outbox")) {
        uint8_t *room = spry_response_reserve(response, 1 << 20);
        for (unsigned i = 0; room && i < (1 << 20) / 8; i++) ((unsigned long *)room)[i] = MARK;
    }
    if (spry_slice_is(what, "sparse-outbox")) {
        uint8_t *room = spry_response_reserve(response, 1 << 20);
        if (room) room[512 << 10] = 1;
    }
    /* spryd answers by writing to memory, for which no page fault of this process is counted. */
    if (spry_slice_is(what, "answered-usage")) getrusage(RUSAGE_SELF, (struct rusage *)(large + 64 * 512));
    if (spry_slice_is(what, "usage"))
        for (volatile unsigned long i = 0; i < 100000000; i++) {}
    if (spry_slice_is(what, "inbox") && is_near((unsigned long)spry_request_body(request).data, 'Z'))
        return "an earlier request lies there";
    if (spry_slice_is(what, "own-proc")) {
        const char *paths[] = {"/proc/thread-self/comm", "/proc/self/comm", "/proc/self/timerslack_ns", "/proc/self/mem"};
        for (int i = 0; i < 4; i++)
            if (open(paths[i], O_WRONLY) >= 0 || errno != EACCES) return paths[i];
    }
    if (spry_slice_is(what, "rseq")) {
        if (syscall(SYS_rseq, &area, 32, 0, RSEQ_SIG) != 0) return "a new thread would end the process";
        if (area.cpu_id != -1u) return "the kernel knows its area";
    }
    if (spry_slice_is(what, "rewind-itself")) ((void (*)(void))STUB)();
    if (spry_slice_is(what, "middle-of-the-stub")) ((void (*)(void))(STUB + 0x40))();
    if (spry_slice_is(what, "forged-stub")) {
        /* the same call from elsewhere: nobody asks, and nothing comes of it but a full mask */
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, (void *)(STUB + 0x10000000), NULL, 8);
    }
    if (spry_slice_is(what, "stub-with-other-arguments")) {
        unsigned long ip = STUB + 0x3e, set = (unsigned long)large;
        __asm__ volatile("mov $14, %%eax; mov $2, %%edi; mov %1, %%rsi; xor %%edx, %%edx; mov $8, %%r10d; jmp *%0" ::"r"(ip),
                         "r"(set)
                         : "rax", "rdi", "rsi", "rdx", "r10", "memory");
    }
    return NULL;
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    told_len = 0;
    tell("pid %d\n", getpid());
    if (spry_slice_is(request->query, "look"))
        look(response);
    else {
        const char *wrong = leave(request, response);
        tell("%s\n", wrong ? wrong : "left");
    }
#ifdef HOSTILE_INIT
    tell("kept %d\n", (*(int *)kept)++);
#endif
    return response->set_body(response, told, told_len);
}

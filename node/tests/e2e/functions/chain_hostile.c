/* A member of a chain that knows how spry works inside, and tries to get at others. The query says what it does, as
 * `do=…&key=value`; without one it passes its input on. What it finds out it answers as lines of text, or by itself, past
 * the runtime: then its process ends. */
#include "chain_hostile.h"

#include <sys/sendfile.h>
#include <sys/uio.h>

SPRY_FUNCTION

static const struct spry_request *asked;
static uint64_t answered_before;           /* the invocation of the call before this one */

/* What it is told: `&`, the query (where a trigger has started it: its input), `&`. */
static char told[1024];

static void tell(void) {
    struct spry_slice from = asked->query.len ? asked->query : spry_request_body(asked);
    size_t len = from.len < sizeof told - 3 ? from.len : sizeof told - 3;
    snprintf(told, sizeof told, "&%.*s&", (int)len, (const char *)from.data);
}

/* A number that it is told, or `otherwise`. */
static uint64_t number(const char *key, uint64_t otherwise) {
    char pattern[40];
    snprintf(pattern, sizeof pattern, "&%s=", key);
    char *at = strstr(told, pattern);
    return at ? strtoull(at + strlen(pattern), 0, 0) : otherwise;
}

static int does(const char *what) {
    char pattern[40];
    size_t len = snprintf(pattern, sizeof pattern, "&do=%s&", what);
    return strncmp(told, pattern, len) == 0;
}

/* Lines of the answer. */
static char report[64 * 1024 - 512];
static size_t report_len;
#define SAY(...) (report_len += snprintf(report + report_len, sizeof report - report_len, __VA_ARGS__), \
                  report_len = report_len < sizeof report ? report_len : sizeof report - 1)
static void outcome(const char *what, const char *of, long result) {
    SAY("%s %s %s\n", what, *of ? of : "-", result < 0 ? strerrorname_np(errno) : "done");
}

/* 0xfffffff0 and 0xfffffff1 in a frame stand for the own outbox and the inbox: who wrote it didn't know their names. */
static void name_segments(char *frame, size_t len) {
    for (size_t at = 0; at + 8 <= len; at++) {
        uint32_t word, names[2][2] = {{own_segment, own_generation}, {inbox_segment, inbox_generation}};
        memcpy(&word, frame + at, 4);
        if (word == 0xfffffff0 || word == 0xfffffff1) memcpy(frame + at, names[word & 1], 8);
    }
}

/* The frame that came in, where the runtime has mapped it. */
static char *frame_served(void) {
    char *body = (char *)spry_request_body(asked).data;
    read_maps();
    for (int i = 0; i < mapping_count; i++)
        if (mappings[i].start <= body && body < mappings[i].end) return mappings[i].start + served.offset;
    return inbox.start + served.offset;
}

/* Where the chain's request lies: what came in, or what that says. */
static const void *origin(void) {
    char *frame = frame_served();
    return frame[6] == 0 ? (void *)&served.offset : frame + 8;
}

/* Puts a frame at the end of the outbox, where the runtime hasn't come to: the body of the request, or one of its own. */
static struct descriptor frame_at_end(void) {
    struct spry_slice body = spry_request_body(asked);
    uint32_t offset = outbox.end - outbox.start - FRAME_AT_END, length = 80;
    char *frame = outbox.start + offset;
    if (body.len > 64 && asked->query.len) {
        length = body.len < FRAME_AT_END ? body.len : FRAME_AT_END;
        memcpy(frame, body.data, length);
        name_segments(frame, length);
    } else {
        memset(frame, 0, length);
        frame[0] = 64, frame[4] = (char)200, frame[6] = 1;
        memcpy(frame + 8, origin(), 8);
        memcpy(frame + 64, "its own nonsense", 16);
    }
    struct descriptor it = {own_segment, own_generation, offset, length, served.invocation, 0, 0, 0, 0};
    return it;
}

/* What it has sent counts; whoever is to be ended for that stays. */
static void leave(void) {
    if (number("stay", 0)) for (;;) pause();
    _exit(0);
}

/* Answers by itself, with whatever the query changes in the descriptor. */
static void answer(void) {
    struct descriptor it = frame_at_end();
    it.segment = number("segment", it.segment);
    it.segment = it.segment == 0xfffffff1 ? inbox_segment : it.segment;
    it.generation = number("generation", it.generation);
    it.offset = number("offset", it.offset);
    it.length = number("length", it.length);
    it.route = number("route", 0);
    it.step = number("step", 0);
    it.flags = number("flags", 0);
    it.source = number("source", 0);
    it.invocation = number("invocation", it.invocation) + (number("plus", 0) << number("shift", 0));
    if (number("old", 0)) it.invocation = answered_before;
    for (uint64_t i = 0; i < number("times", 1); i++) bus_send(&it, number("bytes", sizeof it));
    leave();
}

/* Answers what another member of the chain is serving, as that one's outbox says. */
static void answer_others(void) {
    for (uint32_t id = 1; id < number("to", 64); id++) {
        int fd = id == own_segment ? -1 : ask_for(id, own_generation);
        struct descriptor it = frame_at_end();
        if (fd >= 0 && pread(fd, &it.invocation, 8, 0) == 8 && it.invocation && it.invocation != served.invocation)
            bus_send(&it, sizeof it);
        if (fd >= 0) close(fd);
    }
    for (;;) pause();
}

/* Asks for segments around its own, and looks into those that it gets for what it was sent, which is written backwards: so
 * that its own chain doesn't hold it. */
static void map_others(void) {
    struct spry_slice body = spry_request_body(asked);
    char needle[64];
    size_t len = body.len < sizeof needle ? body.len : sizeof needle;
    for (size_t i = 0; i < len; i++) needle[i] = body.data[len - 1 - i];
    int refused = 0;
    SAY("own %u\n", own_segment);
    for (uint32_t generation = own_generation ? own_generation - 1 : 0; generation <= own_generation + 1; generation++)
        for (uint32_t id = number("from", 0); id < number("to", 64); id++) {
            int fd = ask_for(id, generation);
            if (fd == -2) { SAY("unanswered\n"); return; }
            if (fd == -1) { refused++; continue; }
            char *at = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
            read_maps();
            const char *name = "?";
            for (int i = 0; i < mapping_count; i++) if (mappings[i].start == at) name = mappings[i].name;
            SAY("granted %s %s\n", name, holds(fd, needle, len) ? "secret" : "nothing");
            munmap(at, 4096);
            close(fd);
        }
    SAY("refused %d\n", refused);
}

static sigjmp_buf caught;
static void catch(int signal) { siglongjmp(caught, signal); }
static int store(volatile char *at) {
    signal(SIGSEGV, catch), signal(SIGBUS, catch);
    errno = EFAULT;
    if (sigsetjmp(caught, 1)) return -1;
    *at = 'x';
    return 0;
}

/* Every way to write to a mapping that can only be read. */
static void write_mapping(const struct mapping *it) {
    const char *name = it->name;
    size_t len = it->end - it->start;
    outcome("store", name, store(it->start));
    outcome("mprotect", name, mprotect(it->start, len, PROT_READ | PROT_WRITE));
    outcome("remove", name, madvise(it->start, len, MADV_REMOVE));
    int memory = open("/proc/self/mem", O_RDWR);
    outcome("mem", name, memory < 0 ? -1 : pwrite(memory, "x", 1, (off_t)it->start));
    struct iovec from = {"x", 1}, to = {it->start, 1};
    outcome("vm_writev", name, syscall(SYS_process_vm_writev, getpid(), &from, 1, &to, 1, 0));
    char path[80];
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (long)it->start, (long)it->end);
    outcome("map_files", name, open(path, O_RDWR));
    if (memory >= 0) close(memory);
}

/* Every way to write to a file, or to change its size or seals. */
static void write_file(int fd, const char *name) {
    struct stat about;
    fstat(fd, &about);
    void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    outcome("mmap", name, at == MAP_FAILED ? -1 : 0);
    at = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    outcome("mprotect", name, mprotect(at, 4096, PROT_READ | PROT_WRITE));
    outcome("store", name, store(at));
    munmap(at, 4096);
    outcome("pwrite", name, pwrite(fd, "x", 1, 0));
    outcome("ftruncate", name, ftruncate(fd, 0));
    outcome("grow", name, ftruncate(fd, about.st_size + 4096));
    outcome("punch", name, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    outcome("extend", name, fallocate(fd, 0, about.st_size, 4096));
    outcome("seal", name, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    int mine = memfd_create("x", 0);
    outcome("fill", name, write(mine, "x", 1) != 1 || lseek(mine, 0, SEEK_SET));
    outcome("sendfile", name, sendfile(fd, mine, 0, 1));
    outcome("copy", name, copy_file_range(mine, &(off_t){0}, fd, &(off_t){0}, 1, 0));
    int pipes[2];
    if (pipe(pipes) == 0 && write(pipes[1], "x", 1) == 1) {
        outcome("splice", name, splice(pipes[0], 0, fd, &(off_t){0}, 1, 0));
        close(pipes[0]), close(pipes[1]);
    }
    close(mine);
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR);
    outcome("reopen", name, again < 0 ? -1 : pwrite(again, "x", 1, 0));
    at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
    outcome("reopen-mmap", name, at == MAP_FAILED ? -1 : 0);
    if (again >= 0) close(again);
}

static void write_everything(void) {
    for (uint32_t id = 0; id < number("to", 64); id++) {
        int fd = ask_for(id, own_generation);
        if (fd < 0) continue;
        write_file(fd, "granted");
        close(fd);
    }
    for (int fd = 3; fd < 256; fd++) {
        struct stat about;
        if (fstat(fd, &about) == 0 && about.st_ino == outbox.inode && S_ISREG(about.st_mode)) write_file(fd, "own");
    }
    read_maps();
    static struct mapping known[MAPPINGS_MAX];
    int count = mapping_count;
    memcpy(known, mappings, sizeof known);
    /* (What is mapped privately, as frozen memory is, is this process's own.) */
    for (int i = 0; i < count; i++)
        if (strncmp(known[i].name, "/memfd:spry-", 12) == 0 && known[i].permissions[1] != 'w' &&
            known[i].permissions[3] == 's')
            write_mapping(&known[i]);
}

/* Tries to change what it was given, and passes it on. */
static int spoil(struct spry_response *response) {
    struct spry_slice body = spry_request_body(asked);
    long page = sysconf(_SC_PAGESIZE);
    char *at = (char *)body.data, *from = (char *)((uintptr_t)at & ~(page - 1)), *mine;
    int memory = open("/proc/self/mem", O_RDWR), changed = 0;
    changed += store(at) == 0;
    changed += memory >= 0 && pwrite(memory, "x", 1, (off_t)at) == 1;
    changed += mprotect(from, page, PROT_READ | PROT_WRITE) == 0;
    changed += madvise(from, page, MADV_REMOVE) == 0;
    int fd = ask_for(served.segment, served.generation);
    if (fd >= 0) {
        changed += pwrite(fd, "x", 1, served.offset + 64) == 1;
        changed += fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, lseek(fd, 0, SEEK_END)) == 0;
        mine = mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        changed += mine != MAP_FAILED;
    }
    changed += fd < 0 && (at < inbox.start || at >= inbox.end); /* it must have had what it tried on */
    return changed ? spry_fail(response, "it changed what it was given") : spry_response_pass_through(response);
}

/* Emits values past the runtime, as many as it is told, then answers. */
static void emit_flood(void) {
    struct descriptor it = frame_at_end();
    uint32_t value = it.offset + 4096;
    char *block = memset(outbox.start + value, 0, 64);
    memcpy(block, "\4\0\0\0item", 8);
    strcpy(block + 64, told + 1);
    struct descriptor emitted = it;
    emitted.offset = value, emitted.length = 64 + strlen(told + 1), emitted.flags = EMIT;
    for (uint64_t i = 0; i < number("count", 1); i++)
        if (bus_send(&emitted, sizeof emitted) < 0) break;
    bus_send(&it, sizeof it);
    leave();
}

/* Asks for its own segment again and again, and reads every answer. */
static void map_again(void) {
    uint64_t count = 0;
    for (; count < number("count", 1); count++) {
        int fd = ask_for(own_segment, own_generation);
        if (fd == -2) break;
        if (fd >= 0) close(fd);
    }
    SAY("taken %lu\n", count);
}

/* Sends on the control socket until nothing more is taken, and reads nothing; the answer says how much that was. */
static void control_flood(void) {
    static char text[2048];
    int spare = memfd_create("flood", 0), full = 0;
    uint64_t count = 0;
    if (number("size", 0)) memset(text, 'x', number("size", 0));
    else snprintf(text, sizeof text, "{\"Map\":{\"segment\":%lu,\"generation\":%u}}", number("segment", own_segment), own_generation);
    /* What spryd takes, it takes meanwhile: full is what stays full for some thousand attempts. */
    while (full < 20000 && count < 10000000) {
        if (control_send(text, spare, number("descriptors", 0), MSG_DONTWAIT) >= 0) count++, full = 0;
        else if (errno == EAGAIN || errno == ETOOMANYREFS) full++, sched_yield();
        else break;
    }
    SAY("taken %lu\n", count);
}

static char *rewritten, *variants;
static int variant_count;
static void *rewrite(void *unused) {
    for (unsigned i = 0;; i++) memcpy(rewritten, variants + 512 * (i % variant_count), 512);
    return unused;
}

/* Serves so many invocations by itself, always with the same place, where one frame after the other lies meanwhile. */
static void race(void) {
    struct descriptor it = frame_at_end();
    uint64_t calls = number("calls", 1);
    pthread_t thread;
    rewritten = outbox.start + it.offset;
    variant_count = it.length / 512;
    variants = malloc(it.length);
    memcpy(variants, rewritten, it.length);
    it.length = 512;
    if (variant_count == 0 || pthread_create(&thread, 0, rewrite, 0)) return;
    do {
        if (bus_send(&it, sizeof it) < 0) break;
        if (--calls == 0) break;
        struct descriptor next;
        if (!bus_receive(&next)) break;
        it.invocation = next.invocation;
    } while (1);
    _exit(0);
}

/* Says it at once: it may be ended for what it did. */
static void tell_log(void) {
    fwrite(report, 1, report_len, stderr);
    report_len = 0;
}

/* Tries to connect its sockets to other places: to a path, to a port of the host, and to every port of the bus's own
 * addresses: where spryd makes connections, its own, other instances', gateway ports'. */
static void reconnect(void) {
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    struct sockaddr_in own = {0}, it = {.sin_family = AF_INET};
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    socklen_t len = sizeof own;
    int sockets[] = {control_fd, bus_fd}, inet = domain_of(bus_fd) == AF_INET;
    struct spry_slice body = spry_request_body(asked);
    memcpy(path.sun_path, body.data, body.len < sizeof path.sun_path ? body.len : sizeof path.sun_path - 1);
    if (inet) getsockname(bus_fd, (struct sockaddr *)&own, &len);
    for (int i = 0; i < 2; i++) {
        /* Only TCP can be disconnected; a pair stays a pair. */
        outcome("disconnect", i ? "bus" : "control", connect(sockets[i], &nowhere, sizeof nowhere));
        outcome("path", i ? "bus" : "control", connect(sockets[i], (struct sockaddr *)&path, sizeof path));
        it.sin_addr.s_addr = htonl(INADDR_LOOPBACK), it.sin_port = htons(number("port", 1));
        outcome("host", i ? "bus" : "control", connect(sockets[i], (struct sockaddr *)&it, sizeof it));
        tell_log();
    }
    uint32_t addresses[] = {0x7ffffffe, 0x7f000000 + 65, 0x7f000000 + 1, 0x7f000000 + 129, ntohl(own.sin_addr.s_addr)};
    for (int port = 1; inet && port < 65536; port++)
        for (unsigned a = 0; a < sizeof addresses / sizeof *addresses; a++) {
            struct sockaddr_in self = {0}, peer = {0};
            it.sin_addr.s_addr = htonl(addresses[a]), it.sin_port = htons(port);
            if (connect(bus_fd, (struct sockaddr *)&it, sizeof it)) continue;
            len = sizeof self, getsockname(bus_fd, (struct sockaddr *)&self, &len);
            len = sizeof peer, getpeername(bus_fd, (struct sockaddr *)&peer, &len);
            /* (A socket that connects to its own port meets itself.) */
            if (self.sin_port != peer.sin_port || self.sin_addr.s_addr != peer.sin_addr.s_addr)
                SAY("met somebody at %x:%d\n", addresses[a], port), tell_log();
            connect(bus_fd, &nowhere, sizeof nowhere);
        }
    SAY("over\n");
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    asked = request;
    report_len = 0;
    tell();
    if (!break_in()) return spry_fail(response, "it found no way in");
    if (does("answer")) answer();
    if (does("answer-others")) answer_others();
    if (does("emit")) emit_flood();
    if (does("race")) race();
    if (does("guess")) for (uint32_t id = 1000000;; id++) ask_for(id, own_generation);
    if (does("spoil")) return spoil(response);
    if (does("map")) map_others();
    if (does("write")) write_everything();
    if (does("control")) control_flood();
    if (does("map-again")) map_again();
    if (does("reconnect")) reconnect();
    answered_before = served.invocation;
    if (!report_len) return spry_response_pass_through(response);
    return spry_response_body(response, report, report_len);
}

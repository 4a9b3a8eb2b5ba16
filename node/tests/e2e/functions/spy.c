/* Looks for other requests, in all that its process can read or ask for. The body of "?look" is what it looks for, backwards, so that
 * nothing of its own holds it. "?wait" is a request to be found. Both wait until they are let go, by a signal each. */
#define _GNU_SOURCE
#include "spry.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

SPRY_FUNCTION

enum { PAGE = 4096, SEGMENTS = 60 };

__attribute__((constructor)) static void hold_signals(void) {
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGUSR2);
    sigprocmask(SIG_BLOCK, &both, NULL);
}

static void wait_for(int signal) {
    sigset_t one;
    int got;
    sigemptyset(&one);
    sigaddset(&one, signal);
    sigwait(&one, &got);
}

/* What was meant for an earlier request of this process's is nothing to this one. */
static void forget(int signal) {
    sigset_t one;
    const struct timespec now = {0};
    sigemptyset(&one);
    sigaddset(&one, signal);
    while (sigtimedwait(&one, NULL, &now) == signal) {}
}

/* 1: the page holds something, 0: it is a hole, -1: nothing is mapped. (So holes stay holes.) */
static int is_there(const char *page) {
    unsigned char there = 0;
    return mincore((void *)page, PAGE, &there) ? -1 : there & 1;
}

static unsigned long found, own;
static const char *needle, *backwards;
static size_t needle_len;

static void search(const char *start, size_t len) {
    found += memmem(start, len, needle, needle_len) != NULL;
    own += memmem(start, len, backwards, needle_len) != NULL;
}

/* What is mapped side by side with this: the inbox, from its start to its end. */
static void search_around(const char *at) {
    const char *start = (const char *)((unsigned long)at & -(unsigned long)PAGE), *end = start;
    while (is_there(start - PAGE) >= 0) start -= PAGE;
    for (; is_there(end) >= 0; end += PAGE) {}
    for (; start < end; start += PAGE)
        if (is_there(start) == 1) search(start, PAGE);
}

/* All that it shares with anybody, where it may know what that is. (One that is rewound may not.) Its own memory holds what it
 * looks for. */
static void search_mappings(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        char *start, *end, may_read, shared;
        if (sscanf(line, "%p-%p %c%*c%*c%c", (void **)&start, (void **)&end, &may_read, &shared) == 4 && may_read == 'r' &&
            shared == 's')
            for (; start < end; start += PAGE)
                if (is_there(start) == 1) search(start, PAGE);
    }
    if (maps) fclose(maps);
}

static void search_file(int fd) {
    static char window[1 << 16];
    off_t at = 0, len = lseek(fd, 0, SEEK_END);
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && at < len) {
        ssize_t got = pread(fd, window, sizeof window, at);
        if (got <= 0) break;
        search(window, got);
        at += got > (ssize_t)needle_len ? got - (ssize_t)needle_len : got;
    }
    memset(window, 0, sizeof window);
}

/* How many segments spryd hands out, and how many it refuses. */
static void ask(int control, int *granted, int *refused) {
    for (int id = 1; id <= SEGMENTS; id++) {
        char text[128], reply[1024];
        snprintf(text, sizeof text, "{\"Map\":{\"segment\":%d,\"generation\":1}}", id);
        if (send(control, text, strlen(text), MSG_NOSIGNAL) < 0) return;
        union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } beside;
        struct iovec part = {reply, sizeof reply};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &beside, .msg_controllen = sizeof beside};
        if (recvmsg(control, &message, 0) <= 0) return;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *(header ? granted : refused) += 1;
        if (header) search_file(*(int *)CMSG_DATA(header));
    }
}

static int control_socket(void) {
    for (int fd = 3; fd < 256; fd++) {
        int domain = -1;
        socklen_t len = sizeof domain;
        if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX) return fd;
    }
    return -1;
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    struct spry_slice query = request->query, body = spry_request_body(request);
    forget(SIGUSR1);
    forget(SIGUSR2);
    if (spry_slice_is(query, "wait")) wait_for(SIGUSR1);
    if (!spry_slice_is(query, "look")) return response->set_body(response, "served", 6);
    wait_for(SIGUSR2);
    char forwards[64], text[256];
    const char *data = (const char *)body.data;
    if (body.len > sizeof forwards) return 1;
    for (size_t i = 0; i < body.len; i++) forwards[i] = data[body.len - 1 - i];
    needle = forwards, backwards = data, needle_len = body.len;
    search_around(data);
    search_mappings();
    /* (Not its log.) */
    for (int fd = 3; fd < 256; fd++) search_file(fd);
    int granted = 0, refused = 0;
    ask(control_socket(), &granted, &refused);
    int len = snprintf(text, sizeof text, "found %d, own %d, granted %d, refused %d", found != 0, own != 0, granted, refused);
    return response->set_body(response, text, len);
}

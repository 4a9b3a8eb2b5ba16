/* Does to its process what the query says. For the tests of what the gateway makes of it. */
#define _GNU_SOURCE
#include "spry.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

SPRY_FUNCTION

/* Calls `act` on every socket that this process holds: the bus and the control socket. */
static int on_sockets(void (*act)(int)) {
    int count = 0;
    for (int fd = 3; fd < 256; fd++) {
        struct stat about;
        if (fstat(fd, &about) == 0 && S_ISSOCK(about.st_mode)) {
            act(fd);
            count++;
        }
    }
    return count;
}

static void close_it(int fd) { close(fd); }
static void shut_it(int fd) { shutdown(fd, SHUT_RDWR); }
static void write_garbage(int fd) {
    char garbage[57];
    memset(garbage, 0xa5, sizeof garbage);
    (void)!send(fd, garbage, sizeof garbage, MSG_NOSIGNAL | MSG_DONTWAIT);
}
static void write_zeros(int fd) {
    char zeros[32] = {0};
    (void)!send(fd, zeros, sizeof zeros, MSG_NOSIGNAL | MSG_DONTWAIT);
}
static void flood(int fd) {
    char zeros[32] = {0};
    for (int i = 0; i < 100000; i++)
        if (send(fd, zeros, sizeof zeros, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
}
static void wait_for_ever(void) {
    for (;;) pause();
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    struct spry_slice how = request->query;
    if (spry_slice_is(how, "exit")) exit(3);
    if (spry_slice_is(how, "abort")) abort();
    if (spry_slice_is(how, "segv")) *(volatile int *)8 = 1;
    if (spry_slice_is(how, "kill")) kill(getpid(), SIGKILL);
    if (spry_slice_is(how, "loop"))
        for (volatile unsigned long i = 0;; i++) {}
    if (spry_slice_is(how, "sleep")) wait_for_ever();
    if (spry_slice_is(how, "allocate"))
        for (;;) {
            char *block = malloc(1 << 20);
            if (block) memset(block, 1, 1 << 20);
        }
    if (spry_slice_is(how, "close")) {
        on_sockets(close_it);
        wait_for_ever();
    }
    if (spry_slice_is(how, "shutdown")) {
        on_sockets(shut_it);
        wait_for_ever();
    }
    if (spry_slice_is(how, "garbage")) {
        on_sockets(write_garbage);
        wait_for_ever();
    }
    if (spry_slice_is(how, "zeros")) {
        on_sockets(write_zeros);
        wait_for_ever();
    }
    if (spry_slice_is(how, "flood")) {
        on_sockets(flood);
        wait_for_ever();
    }
    if (spry_slice_is(how, "header")) {
        response->add_header(response, spry_str("x-split"), spry_str("a\r\nx-injected: b"));
        return response->set_body(response, "x", 1);
    }
    if (spry_slice_is(how, "fail")) {
        const char *text = "it went wrong\nand this is where";
        response->fail(response, text, strlen(text));
        return 1;
    }
    if (spry_slice_is(how, "nonzero")) return 1;
    if (spry_slice_is(how, "print")) {
        fprintf(stdout, "to stdout of %.*s\n", (int)request->call_id.len, request->call_id.data);
        fprintf(stderr, "to stderr\n");
    }
    char answer[64];
    int len = snprintf(answer, sizeof answer, "pid %d", getpid());
    return response->set_body(response, answer, len);
}

/* Every part of the C ABI, chosen by the request's path. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "spry.h"

SPRY_FUNCTION

static int loaded;

int spry_init(void) {
    loaded = 41;
    printf("initialised\n");
    return 0;
}

static int describe(const struct spry_request *request, struct spry_response *response) {
    char text[1024];
    struct spry_slice body = spry_request_body(request);
    struct spry_slice accept = spry_request_header(request, "accept");
    int len = snprintf(text, sizeof text, "%.*s %.*s ?%.*s %.*s accept=%.*s headers=%u body=%zu aligned=%d deadline=%llu",
                       (int)request->method.len, request->method.data, (int)request->path.len, request->path.data,
                       (int)request->query.len, request->query.data, (int)request->call_id.len, request->call_id.data,
                       (int)accept.len, accept.data, request->header_count, body.len,
                       (int)((uintptr_t)body.data % 64 == 0), (unsigned long long)request->deadline_unix_ns);
    int error = spry_response_status(response, 201);
    if (!error) error = spry_response_header(response, "x-made-by", "c");
    return error ? error : spry_response_body(response, text, (size_t)len);
}

/* Appends to a text that is long enough for what the tests send. */
static size_t append(char *text, size_t at, struct spry_slice slice, const char *after) {
    memcpy(text + at, slice.data, slice.len);
    strcpy(text + at + slice.len, after);
    return at + slice.len + strlen(after);
}

/* "name=value;" for each part, then the body. */
static int parts(const struct spry_request *request, struct spry_response *response) {
    static char text[1 << 16];
    size_t len = 0;
    for (size_t i = 0; i < request->part_count; i++) {
        len = append(text, len, request->parts[i].name, "=");
        len = append(text, len, request->parts[i].value, ";");
    }
    len = append(text, len, spry_request_body(request), "");
    return spry_response_body(response, text, len);
}

/* "name: value" for each header, in order. */
static int headers(const struct spry_request *request, struct spry_response *response) {
    char text[4096];
    size_t len = 0;
    for (uint32_t i = 0; i < request->header_count; i++) {
        len = append(text, len, request->headers[i].name, ": ");
        len = append(text, len, request->headers[i].value, "\n");
    }
    return spry_response_body(response, text, len);
}

/* Emits as many values as the query says, then answers with the code of the last try. */
static int emit(const struct spry_request *request, struct spry_response *response) {
    char text[64];
    int count = atoi((const char *)request->query.data), code = 0;
    for (int i = 0; i < count && !code; i++) {
        int len = snprintf(text, sizeof text, "value %d", i);
        code = spry_emit(response, "thumb-1", i % 2 ? 0 : "text/plain", text, (size_t)len);
    }
    snprintf(text, sizeof text, "%d", code);
    return spry_text(response, text);
}

static int emit_refusals(struct spry_response *response) {
    if (spry_emit(response, "", "", "x", 1) != SPRY_BAD_NAME) return spry_fail(response, "no name");
    if (spry_emit(response, "a b", "", "x", 1) != SPRY_BAD_NAME) return spry_fail(response, "name");
    if (spry_emit(response, "a", "b\r\n", "x", 1) != SPRY_BAD_NAME) return spry_fail(response, "type");
    if (spry_emit(response, "a", "", 0, 5) != SPRY_MISUSE) return spry_fail(response, "null");
    if (spry_emit(response, "a", "", "x", (size_t)1 << 40) != SPRY_TOO_LARGE) return spry_fail(response, "size");
    return spry_text(response, "all refused");
}

/* The body backwards, written where it is read; headers come after it, and are long enough to move it. */
static int reversed(const struct spry_request *request, struct spry_response *response) {
    struct spry_slice body = spry_request_body(request);
    size_t len = body.len;
    uint8_t *out = spry_response_reserve(response, len + 100);
    if (!out) return spry_fail(response, "no room");
    for (size_t i = 0; i < len; i++) out[i] = body.data[len - 1 - i];
    if (spry_response_commit(response, len + 101) != SPRY_TOO_LARGE) return spry_fail(response, "over-commit");
    if (spry_response_commit(response, len)) return spry_fail(response, "commit");
    char value[401];
    memset(value, 'v', 400);
    value[400] = 0;
    return spry_response_header(response, "x-long", value);
}

static int refusals(struct spry_response *response) {
    struct spry_slice nothing = {0, 0};
    if (spry_response_status(response, 99) != SPRY_BAD_STATUS) return spry_fail(response, "status");
    if (spry_response_header(response, "a b", "c") != SPRY_BAD_HEADER) return spry_fail(response, "name");
    if (spry_response_header(response, "a", "b\r\nc: d") != SPRY_BAD_HEADER) return spry_fail(response, "value");
    if (response->add_header(response, nothing, nothing) != SPRY_BAD_HEADER) return spry_fail(response, "empty");
    if (spry_response_commit(response, 0) != SPRY_MISUSE) return spry_fail(response, "commit");
    if (spry_response_body(response, 0, 5) != SPRY_MISUSE) return spry_fail(response, "null");
    if (spry_response_body(response, "x", (size_t)1 << 40) != SPRY_TOO_LARGE) return spry_fail(response, "size");
    if (spry_response_reserve(response, (size_t)1 << 40)) return spry_fail(response, "reserve");
    return spry_text(response, "all refused");
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    struct spry_slice path = request->path;
    if (spry_slice_is(path, "/describe")) return describe(request, response);
    if (spry_slice_is(path, "/reversed")) return reversed(request, response);
    if (spry_slice_is(path, "/refusals")) return refusals(response);
    if (spry_slice_is(path, "/parts")) return parts(request, response);
    if (spry_slice_is(path, "/headers")) return headers(request, response);
    if (spry_slice_is(path, "/emit")) return emit(request, response);
    if (spry_slice_is(path, "/emit-refusals")) return emit_refusals(response);
    if (spry_slice_is(path, "/echo")) return spry_response_pass_through(response);
    if (spry_slice_is(path, "/typed-echo")) {
        if (spry_response_header(response, "content-type", "image/png")) return 1;
        return spry_response_pass_through(response);
    }
    if (spry_slice_is(path, "/nothing")) return 0;
    if (spry_slice_is(path, "/loaded")) return spry_text(response, loaded == 41 ? "41" : "not initialised");
    if (spry_slice_is(path, "/code")) return 7;
    if (spry_slice_is(path, "/fail")) return spry_fail(response, "no such colour\nthe rest");
    if (spry_slice_is(path, "/print")) {
        printf("unflushed");
        fprintf(stderr, "to stderr");
        return spry_text(response, "printed");
    }
    if (spry_slice_is(path, "/exit")) exit(3);
    if (spry_slice_is(path, "/crash")) abort();
    if (spry_slice_is(path, "/big")) {
        size_t len = (size_t)strtoul((const char *)request->query.data, 0, 10);
        uint8_t *out = spry_response_reserve(response, len);
        return out ? spry_response_commit(response, len) : spry_response_body(response, "", len);
    }
    if (spry_slice_is(path, "/garbage")) {
        /* Straight onto whatever may be the bus: what spryd makes of it is spryd's test. */
        for (int fd = 3; fd < 64; fd++)
            if (write(fd, "garbage", 7) == 7) break;
        pause();
    }
    return spry_fail(response, "unknown path");
}

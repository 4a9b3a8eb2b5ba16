/* spry.h: what the author of a native function in C (or C++) uses.
 *
 * A function is a shared library with one entry point:
 *
 *     #include "spry.h"
 *     SPRY_FUNCTION                              // says which version of this header it was built with
 *
 *     int spry_handle(const struct spry_request *request, struct spry_response *response) {
 *         return spry_text(response, "hello");
 *     }
 *
 *     cc -shared -fPIC -O2 -o hello.so hello.c
 *
 * Nothing has to be linked: the runtime hands its own functions over as pointers in the response.
 *
 * One request at a time, on one thread. Everything in the request is read-only to the function, and is valid
 * until spry_handle returns; bodies and parts lie in shared memory, where their writers put them. A function that returns non-zero without having
 * called `fail` has failed too; so has one that crashes, only that its process is lost as well.
 *
 * The functions of the response return 0, or an enum spry_error; what they refuse changes nothing.
 */
#ifndef SPRY_H
#define SPRY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of everything below. A library of another version is refused when it is deployed. */
#define SPRY_ABI_VERSION 2

#if defined(__GNUC__)
#define SPRY_EXPORT __attribute__((visibility("default")))
#else
#define SPRY_EXPORT
#endif

/* Bytes in memory that somebody else owns; not zero-terminated. */
struct spry_slice {
    const uint8_t *data;
    size_t len;
};

/* A header. Names are in lower case. */
struct spry_header {
    struct spry_slice name;
    struct spry_slice value;
};

/* One value of several. */
struct spry_part {
    struct spry_slice name;        /* may be empty */
    struct spry_slice value;
};

/* In a chain, method, path, query, call id and deadline are those of the client's call of the chain. */
struct spry_request {
    uint32_t abi_version;          /* SPRY_ABI_VERSION of the runtime */
    uint32_t header_count;
    const struct spry_header *headers;
    struct spry_slice method;      /* "GET" */
    struct spry_slice path;        /* what follows the function's name: empty, or "/..." */
    struct spry_slice query;       /* without "?" */
    struct spry_slice call_id;     /* the invocation's public name */
    uint64_t deadline_unix_ns;     /* when the time runs out: nanoseconds since 1970 */
    /* The values of a list (what the branches before this step answered, or what a trigger has collected), in
     * order; of any other input the body alone. No byte of them was copied. */
    size_t part_count;
    const struct spry_part *parts;
    /* The body. A list is joined to one when this is first called; see spry_request_body. */
    struct spry_slice (*body)(const struct spry_request *);
    const void *context;           /* the runtime's own */
};

enum spry_error {
    SPRY_OK = 0,
    SPRY_BAD_STATUS = 1,           /* not between 200 and 599 */
    SPRY_BAD_HEADER = 2,           /* no HTTP header, or too many, or too long */
    SPRY_TOO_LARGE = 3,            /* over the function's payload limit, or over what was reserved */
    SPRY_FULL = 4,                 /* earlier answers still take the room, and it stayed so */
    SPRY_MISUSE = 5,               /* commit without reserve, a null pointer, text that is not UTF-8 */
    SPRY_BAD_NAME = 6,             /* no name or content type of an emitted value */
    SPRY_TOO_MANY = 7,             /* more values than one call may emit: 128 */
    SPRY_NO_CHAIN = 8,             /* the call is not part of a chain: nobody would get the value */
    SPRY_CLOSED = 9                /* spryd is gone, and this process about to end */
};

struct spry_response {
    void *context;                 /* the runtime's own */

    /* The HTTP status; 200 unless set. */
    int (*set_status)(struct spry_response *, uint16_t status);
    int (*add_header)(struct spry_response *, struct spry_slice name, struct spry_slice value);
    /* Copies the body. The last body given counts. */
    int (*set_body)(struct spry_response *, const void *data, size_t len);
    /* Room for a body of at most `len` bytes, where the caller will read it: what is written there is not
     * copied again. Null when there is none; `set_body` then says why. */
    uint8_t *(*reserve)(struct spry_response *, size_t len);
    /* The first `len` bytes of the reserved room are the body. */
    int (*commit)(struct spry_response *, size_t len);
    /* The request's body is the response's body; no byte is copied. */
    int (*pass_through)(struct spry_response *);
    /* The invocation failed: the caller gets a 500 with this text (its first line is the message). */
    void (*fail)(struct spry_response *, const char *text, size_t len);
    /* Gives a copy of a value to the triggers of the chain that this call is part of; the call goes on. The name is 1
     * to 64 characters of a-z, 0-9, _ and -; the content type may be empty. What was emitted stays so, even if
     * the call fails. */
    int (*emit)(struct spry_response *, struct spry_slice name, struct spry_slice content_type, const void *data,
                size_t len);
};

/* Written by the author. Required. */
SPRY_EXPORT int spry_handle(const struct spry_request *request, struct spry_response *response);

/* Written by the author, optional: called once, when the function is deployed, before any instance is
 * forked. Non-zero refuses the deployment; what it wrote to stderr tells why. It must not start threads. */
SPRY_EXPORT int spry_init(void);

/* Written by SPRY_FUNCTION. */
SPRY_EXPORT uint32_t spry_abi_version(void);

#ifdef __cplusplus
#define SPRY_FUNCTION extern "C" SPRY_EXPORT uint32_t spry_abi_version(void) { return SPRY_ABI_VERSION; }
#else
#define SPRY_FUNCTION SPRY_EXPORT uint32_t spry_abi_version(void) { return SPRY_ABI_VERSION; }
#endif

/* A slice over a zero-terminated text. */
static inline struct spry_slice spry_str(const char *text) {
    struct spry_slice slice = {(const uint8_t *)text, strlen(text)};
    return slice;
}

/* Whether a slice holds exactly this text. */
static inline int spry_slice_is(struct spry_slice slice, const char *text) {
    return slice.len == strlen(text) && memcmp(slice.data, text, slice.len) == 0;
}

/* The value of a header (name in lower case), or an empty slice. */
static inline struct spry_slice spry_request_header(const struct spry_request *request, const char *name) {
    struct spry_slice none = {0, 0};
    for (uint32_t i = 0; i < request->header_count; i++)
        if (spry_slice_is(request->headers[i].name, name)) return request->headers[i].value;
    return none;
}

/* The body. One that a client sent, or a function wrote, is aligned to 64 bytes; an element of somebody's array and
 * a list are not. A list of JSON values is a JSON array, other values come each with its length before it (4 bytes,
 * the lowest first): the content-type header says which, application/json or application/vnd.spry.frames. */
static inline struct spry_slice spry_request_body(const struct spry_request *request) {
    return request->body(request);
}

static inline int spry_response_status(struct spry_response *response, uint16_t status) {
    return response->set_status(response, status);
}

static inline int spry_response_header(struct spry_response *response, const char *name, const char *value) {
    return response->add_header(response, spry_str(name), spry_str(value));
}

static inline int spry_response_body(struct spry_response *response, const void *data, size_t len) {
    return response->set_body(response, data, len);
}

static inline uint8_t *spry_response_reserve(struct spry_response *response, size_t len) {
    return response->reserve(response, len);
}

static inline int spry_response_commit(struct spry_response *response, size_t len) {
    return response->commit(response, len);
}

static inline int spry_response_pass_through(struct spry_response *response) {
    return response->pass_through(response);
}

/* Fails the invocation; `return spry_fail(response, "no such colour");` */
static inline int spry_fail(struct spry_response *response, const char *text) {
    response->fail(response, text, strlen(text));
    return 1;
}

/* Emits a value; the content type may be null. */
static inline int spry_emit(struct spry_response *response, const char *name, const char *content_type,
                            const void *data, size_t len) {
    return response->emit(response, spry_str(name), spry_str(content_type ? content_type : ""), data, len);
}

/* A whole answer of text. */
static inline int spry_text(struct spry_response *response, const char *text) {
    int error = spry_response_header(response, "content-type", "text/plain; charset=utf-8");
    return error ? error : spry_response_body(response, text, strlen(text));
}

#ifdef __cplusplus
}
#endif
#endif

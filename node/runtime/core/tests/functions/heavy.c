/* Memory of every kind that is frozen, and what may be done with it afterwards. What was written while the function was
 * loaded is a pattern by address, so that a byte in the wrong place shows. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spry.h"

SPRY_FUNCTION

#define MIB ((size_t)1 << 20)
#define SMALL 4096
#define BLOCKS 20000

static uint32_t data[1 << 18] = {1}; /* .data: a private file mapping */
static uint32_t bss[1 << 18];
static uint32_t *blocks[BLOCKS]; /* from brk */
static uint32_t *large;          /* from mmap */
static uint8_t *pages;           /* our own mapping, half of it never touched */
static uint8_t *secret;          /* given away to nobody by fork */
static size_t large_words;
static int calls;

static uint32_t pattern(const void *at) { return (uint32_t)((uintptr_t)at * 2654435761u >> 3); }

static void fill(uint32_t *at, size_t words) {
    for (size_t i = 0; i < words; i++) at[i] = pattern(at + i);
}

static int whole(const uint32_t *at, size_t words) {
    for (size_t i = 0; i < words; i++)
        if (at[i] != pattern(at + i)) return 0;
    return 1;
}

int spry_init(void) {
    const char *mib = getenv("HEAVY_MIB");
    large_words = (mib ? (size_t)atoi(mib) : 24) * MIB / 4;
    fill(data, 1 << 18);
    fill(bss, 1 << 18);
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(600);
        if (!blocks[i]) return 1;
        fill(blocks[i], 150);
    }
    large = malloc(large_words * 4);
    pages = mmap(0, 8 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    secret = mmap(0, SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!large || pages == MAP_FAILED || secret == MAP_FAILED) return 2;
    fill(large, large_words);
    fill((uint32_t *)pages, MIB);
    memset(secret, 7, SMALL);
    return madvise(secret, SMALL, MADV_WIPEONFORK) ? 3 : 0;
}

static int all_whole(void) {
    if (!whole(data, 1 << 18) || !whole(bss, 1 << 18) || !whole(large, large_words)) return 0;
    for (int i = 0; i < BLOCKS; i++)
        if (!whole(blocks[i], 150)) return 0;
    return whole((uint32_t *)pages, MIB);
}

/* The heap grows past where it ended when it was frozen, and shrinks back. */
static const char *grow(void) {
    void *before = sbrk(0);
    static uint32_t *more[BLOCKS];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < BLOCKS; i++) {
            more[i] = malloc(1000);
            if (!more[i]) return "no memory";
            fill(more[i], 250);
        }
        for (int i = 0; i < BLOCKS; i++)
            if (!whole(more[i], 250)) return "what was written to new memory is lost";
        if (sbrk(0) == before) return "the heap didn't grow by brk";
        for (int i = 0; i < BLOCKS; i++) free(more[i]);
        char *zeroed = calloc(1, 8 * MIB);
        for (size_t i = 0; i < 8 * MIB; i++)
            if (zeroed[i]) return "calloc isn't zero";
        free(zeroed);
    }
    return "grown";
}

/* A large block that was frozen grows and shrinks: realloc uses mremap. */
static const char *move(void) {
    size_t words = large_words;
    uint32_t first = large[0], last = large[words - 1];
    large = realloc(large, words * 8);
    if (!large || large[0] != first || large[words - 1] != last) return "realloc lost bytes";
    memset(large, 0, words * 8);
    large = realloc(large, words * 4);
    free(large);
    large = malloc(words * 4);
    fill(large, words);
    return "moved";
}

/* Memory that is given back is zero or stays what it is, and says which. */
static const char *give_back(void) {
    int given = madvise(pages, 2 * MIB, MADV_DONTNEED);
    if (given == 0 && pages[0] != 0) return "MADV_DONTNEED brought old bytes back";
    if (given == -1 && (errno != EINVAL || !whole((uint32_t *)pages, MIB))) return "a refusal changed something";
    if (madvise(pages + 6 * MIB, MIB, MADV_DONTNEED)) return "what isn't frozen can't be given back";
    pages[7 * MIB] = 1;
    if (pages[7 * MIB] != 1 || pages[7 * MIB + 1] || pages[5 * MIB]) return "untouched memory isn't zero";
    void *again = mmap(pages, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (again != pages || pages[100]) return "a new mapping in its place isn't zero";
    return munmap(pages, 8 * MIB) ? "munmap" : given ? "refused" : "given";
}

/* A child of the instance sees what the instance sees. */
static const char *child(void) {
    bss[5] = 4711;
    pid_t pid = fork();
    if (pid == 0) {
        bss[5]++;
        char *more = malloc(3 * MIB);
        memset(more, 1, 3 * MIB);
        _exit(bss[5] == 4712 && whole(data, 1 << 18) ? 42 : 1);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return "no child";
    return WIFEXITED(status) && WEXITSTATUS(status) == 42 && bss[5] == 4711 ? "separate" : "shared";
}

static const char *scribble(void) {
    memset(bss, 0xff, sizeof bss);
    memset(data, 0xff, sizeof data);
    memset(large, 0xff, large_words * 4);
    for (int i = 0; i < BLOCKS; i++) memset(blocks[i], 0xff, 600);
    return "scribbled";
}

/* Whether the file behind the memory can be opened, or written to. */
static const char *reach(void) {
    char line[512], path[128];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (!strstr(line, "spry-frozen") || sscanf(line, "%lx-%lx", &start, &end) != 2) continue;
        snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", start, end);
        FILE *file = fopen(path, "r+");
        if (file && fputc(1, file) != EOF && fflush(file) == 0) return "written to";
    }
    return maps ? "out of reach" : "no /proc/self/maps";
}

int spry_handle(const struct spry_request *request, struct spry_response *response) {
    char text[64];
    calls++;
    if (spry_slice_is(request->path, "/whole")) return spry_text(response, all_whole() ? "whole" : "broken");
    if (spry_slice_is(request->path, "/grow")) return spry_text(response, grow());
    if (spry_slice_is(request->path, "/move")) return spry_text(response, move());
    if (spry_slice_is(request->path, "/give-back")) return spry_text(response, give_back());
    if (spry_slice_is(request->path, "/child")) return spry_text(response, child());
    if (spry_slice_is(request->path, "/scribble")) return spry_text(response, scribble());
    if (spry_slice_is(request->path, "/reach")) return spry_text(response, reach());
    if (spry_slice_is(request->path, "/secret")) return spry_text(response, secret[0] ? "known" : "wiped");
    snprintf(text, sizeof text, "%d", calls);
    return spry_text(response, text);
}

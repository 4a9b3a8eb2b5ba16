/* The same, and its load maps a quarter of what can be mapped, none of which it touches. */
#include "remains.c"

__attribute__((constructor)) static void map_without_end(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (mmap(NULL, 1ul << 45, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) abort();
}

/* The same, and its load shows its memory to all who have its user. */
#include "remains.c"

__attribute__((constructor)) static void show(void) { prctl(PR_SET_DUMPABLE, 1); }

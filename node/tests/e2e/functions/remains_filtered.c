/* The same, and its load filters the system calls of what rewinds its instances. */
#define HOSTILE_FILTER
#include "remains.c"

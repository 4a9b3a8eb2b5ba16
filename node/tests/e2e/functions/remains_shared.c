/* The same, and its load maps memory that all its processes share. */
#define HOSTILE_INIT
#include "remains.c"

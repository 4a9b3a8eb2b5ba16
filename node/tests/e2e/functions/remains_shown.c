/* The same, and its load shows its memory to all who have its user. */
#define HOSTILE_SHOWS
#include "remains.c"

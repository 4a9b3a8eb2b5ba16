/* The same, and its load maps a quarter of what can be mapped, none of which it touches. */
#define VAST_INIT
#include "remains.c"

/* The same, and its load has each new instance make a process that shares its memory, isn't its child any more, and would carry
 * what it likes from one request to the next. */
#define HOSTILE_TWIN
#include "remains.c"

#include <pthread.h>
#include <unistd.h>
#include "spry.h"
SPRY_FUNCTION
static void *forever(void *nothing) {
    for (;;) pause();
    return nothing;
}
int spry_init(void) {
    pthread_t thread;
    return pthread_create(&thread, 0, forever, 0);
}
int spry_handle(const struct spry_request *request, struct spry_response *response) {
    (void)request; (void)response;
    return 0;
}

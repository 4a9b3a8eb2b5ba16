/* No function at all, or a part of one, by -D. */
#include "spry.h"
#ifdef VERSION
uint32_t spry_abi_version(void) { return VERSION; }
#endif
int spry_something(void);
int spry_something(void) { return 0; }
#ifdef INIT
int spry_handle(const struct spry_request *request, struct spry_response *response) {
    (void)request; (void)response;
    return 0;
}
int spry_init(void) { return INIT; }
#endif

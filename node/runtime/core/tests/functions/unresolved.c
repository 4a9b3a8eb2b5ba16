#include "spry.h"
SPRY_FUNCTION
extern int from_nowhere(void);
int spry_handle(const struct spry_request *request, struct spry_response *response) {
    (void)request; (void)response;
    return from_nowhere();
}

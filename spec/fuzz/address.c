/* Fuzz target: addresses as users write them. What is accepted must come back the same from its own
 * text. */
#include "net/address.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char text[512], first[DM_ADDRESS_TEXT], second[DM_ADDRESS_TEXT];
    struct dm_address address, again;
    const char *why = NULL;
    if (size >= sizeof text) {
        return 0;
    }
    memcpy(text, data, size);
    text[size] = '\0';
    if (dm_address_parse(text, &address, &why) != 0) {
        if (why == NULL) {
            abort(); /* refused without a word */
        }
        return 0;
    }
    dm_address_text(&address, first);
    if (dm_address_parse(first, &again, &why) != 0) {
        abort();
    }
    dm_address_text(&again, second);
    if (strcmp(first, second) != 0 || address.type != again.type || address.dual != again.dual) {
        abort();
    }
    return 0;
}

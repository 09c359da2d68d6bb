/* errors.c: see errors.h. */
#include "base/errors.h"

#include <stdbool.h>
#include <string.h>
#include <uv.h>

static bool is_known(int error) {
    char name[64];
    return strncmp(uv_err_name_r(error, name, sizeof name), "Unknown", 7) != 0;
}

const char *dm_error_name(int error) {
    if (is_known(error)) {
        return uv_err_name(error);
    }
    const char *name = strerrorname_np(-error);
    return name ? name : "EUNKNOWN";
}

const char *dm_error_text(int error) {
    if (is_known(error)) {
        return uv_strerror(error);
    }
    const char *text = strerrordesc_np(-error);
    return text ? text : "unknown error";
}

/* errors.h: names and texts of negative errno values, also of those that libuv does not know. Never
 * allocates, which uv_strerror does, for good, with a value unknown to it. */
#pragma once

const char *dm_error_name(int error); /* "ENOEXEC" */
const char *dm_error_text(int error); /* "exec format error" */

/* lua/child.c: core.spawn and the child objects it gives. The userdata is a proxy: it lives as long
 * as the process or Lua holds it, whichever is longer, and its pointer is wiped at exit. Collecting
 * it never touches the process. Longer than 400 lines: one reader for each field that a spawn
 * may have. */
#include "process/child.h"
#include "base/errors.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <errno.h>
#include <lauxlib.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define CHILD "dm.child"

/* Where programs are looked for if the caller does not say. */
#define DEFAULT_SEARCH_PATH "/usr/local/bin:/usr/bin:/bin"

struct proxy {
    struct dm_lua_object object; /* held while the process lives */
    struct dm_child *child;      /* NULL once it has exited */
    pid_t pid;
};

/* ---- options: everything is checked, and scratch memory belongs to Lua, before anything is made
 * ---- */

static void *scratch(lua_State *L, size_t count, size_t size) {
    void *memory = lua_newuserdata(L, count * size + 1);
    memset(memory, 0, count * size + 1);
    return memory;
}

static const char *check_string(lua_State *L, int index, const char *what) {
    if (lua_type(L, index) != LUA_TSTRING) {
        luaL_error(L, "%s: expected a string, found %s", what, luaL_typename(L, index));
    }
    const char *string = lua_tostring(L, index);
    if (strlen(string) != lua_objlen(L, index)) {
        luaL_error(L, "%s: contains a NUL byte", what);
    }
    return string;
}

/* The string stays valid: the options table holds it. */
static const char *opt_string(lua_State *L, const char *field) {
    lua_getfield(L, 1, field);
    const char *string = lua_isnil(L, -1) ? NULL : check_string(L, -1, field);
    lua_pop(L, 1);
    return string;
}

static lua_Integer check_integer(lua_State *L, int index, const char *what, lua_Integer min,
                                 lua_Integer max) {
    const lua_Number number = lua_tonumber(L, index);
    if (lua_type(L, index) != LUA_TNUMBER || !(number >= (lua_Number)min) ||
        !(number <= (lua_Number)max) || number != (lua_Number)(lua_Integer)number) {
        luaL_error(L, "%s: expected an integer", what);
    }
    return (lua_Integer)number;
}

static bool opt_integer(lua_State *L, const char *field, lua_Integer min, lua_Integer max,
                        lua_Integer *value) {
    lua_getfield(L, 1, field);
    const bool given = !lua_isnil(L, -1);
    if (given) {
        *value = check_integer(L, -1, field, min, max);
    }
    lua_pop(L, 1);
    return given;
}

/* Pushes the table opts[field] and gives its length; pushes nil and gives 0 if there is none. */
static size_t push_list(lua_State *L, const char *field) {
    lua_getfield(L, 1, field);
    if (lua_isnil(L, -1)) {
        return 0;
    }
    if (!lua_istable(L, -1)) {
        luaL_error(L, "%s: expected a table, found %s", field, luaL_typename(L, -1));
    }
    return lua_objlen(L, -1);
}

/* Leaves the list and its array on the stack. `more`: free places before the closing NULL. */
static char **opt_strings(lua_State *L, const char *field, size_t more, size_t *count) {
    const size_t n = push_list(L, field);
    const int list = lua_gettop(L);
    char **strings = scratch(L, n + more + 1, sizeof *strings);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, list, (int)i + 1);
        strings[i] = (char *)(uintptr_t)check_string(L, -1, field);
        lua_pop(L, 1);
    }
    *count = n;
    return strings;
}

/* Leaves the list and its array on the stack. */
static int *opt_integers(lua_State *L, const char *field, lua_Integer max, size_t *count) {
    const size_t n = push_list(L, field);
    const int list = lua_gettop(L);
    int *integers = scratch(L, n, sizeof *integers);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, list, (int)i + 1);
        integers[i] = (int)check_integer(L, -1, field, 0, max);
        lua_pop(L, 1);
    }
    *count = n;
    return integers;
}

/* A file with a slash is itself; another is tried in each directory of search_path. */
static char **parse_files(lua_State *L) {
    const char *file = opt_string(L, "file");
    if (!file || !*file) {
        luaL_error(L, "file: expected the name of a program");
    }
    const char *path = opt_string(L, "search_path");
    path = path ? path : DEFAULT_SEARCH_PATH;
    size_t places = 1;
    for (const char *p = path; *p; p++) {
        places += *p == ':';
    }
    char **files = scratch(L, places + 1, sizeof *files);
    if (strchr(file, '/')) {
        files[0] = (char *)(uintptr_t)file;
        return files;
    }
    char *text = scratch(L, strlen(path) + places * (strlen(file) + 3), 1);
    for (size_t i = 0; i < places; i++) {
        const size_t length = strcspn(path, ":");
        files[i] = text;
        text += sprintf(text, "%.*s/%s", length ? (int)length : 1, length ? path : ".", file) + 1;
        path += length + 1;
    }
    return files;
}

/* "NAME=" with room for a pid, whose place is returned. */
static char *pid_variable(lua_State *L, const char *name, char **variable) {
    const size_t size = strlen(name);
    *variable = scratch(L, size + 21, 1);
    memcpy(*variable, name, size + 1);
    return *variable + size;
}

static void parse_env(lua_State *L, struct dm_spawn *spawn) {
    size_t n;
    spawn->env = opt_strings(L, "env", 2, &n);
    if (dm_lua_boolean_field(L, 1, "listen_pid")) {
        spawn->listen_pid = pid_variable(L, "LISTEN_PID=", &spawn->env[n++]);
    }
    if (dm_lua_boolean_field(L, 1, "watchdog_pid")) {
        spawn->watchdog_pid = pid_variable(L, "WATCHDOG_PID=", &spawn->env[n]);
    }
}

static rlim_t check_limit(lua_State *L, int list, const char *field) {
    lua_getfield(L, list, field);
    rlim_t value = RLIM_INFINITY;
    if (lua_type(L, -1) != LUA_TSTRING || strcmp(lua_tostring(L, -1), "unlimited") != 0) {
        value = (rlim_t)check_integer(L, -1, "limits", 0, (lua_Integer)1 << 53);
    }
    lua_pop(L, 1);
    return value;
}

static void parse_limits(lua_State *L, struct dm_spawn *spawn) {
    const size_t n = push_list(L, "limits");
    const int list = lua_gettop(L);
    struct dm_limit *limits = scratch(L, n, sizeof *limits);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, list, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        const int entry = lua_gettop(L);
        lua_getfield(L, entry, "name");
        const char *name = check_string(L, -1, "limits");
        limits[i].which = dm_limit_find(name);
        if (limits[i].which < 0) {
            luaL_error(L, "limits: there is no limit named %s", name);
        }
        limits[i].value.rlim_cur = check_limit(L, entry, "soft");
        limits[i].value.rlim_max = check_limit(L, entry, "hard");
        lua_settop(L, entry - 1);
    }
    spawn->limits = limits;
    spawn->limit_count = n;
}

static void parse_user(lua_State *L, struct dm_spawn *spawn) {
    lua_Integer value = 0;
    spawn->has_uid = opt_integer(L, "uid", 0, UINT32_MAX - 1, &value);
    spawn->uid = (uid_t)value;
    spawn->has_gid = opt_integer(L, "gid", 0, UINT32_MAX - 1, &value);
    spawn->gid = (gid_t)value;
    size_t n;
    spawn->groups = (const gid_t *)opt_integers(L, "groups", UINT32_MAX - 1, &n);
    spawn->has_groups = !lua_isnil(L, -2); /* the list, below its array */
    spawn->group_count = n;
}

static void parse_cpus(lua_State *L, struct dm_spawn *spawn) {
    size_t n;
    const int *cpus = opt_integers(L, "cpus", CPU_SETSIZE - 1, &n);
    if (n > 0) {
        cpu_set_t *set = scratch(L, 1, sizeof *set);
        for (size_t i = 0; i < n; i++) {
            CPU_SET((size_t)cpus[i], set);
        }
        spawn->cpus = set;
    }
}

static int opt_fd(lua_State *L, const char *field) {
    lua_Integer fd = -1;
    opt_integer(L, field, 0, INT32_MAX, &fd);
    return (int)fd;
}

/* Leaves scratch memory on the stack, which must stay until the process is made. */
static void parse_options(lua_State *L, struct dm_child_options *o) {
    struct dm_spawn *spawn = &o->spawn;
    size_t n;
    lua_Integer value = 0;
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checkstack(L, 64, "spawn");
    spawn->files = parse_files(L);
    spawn->argv = opt_strings(L, "argv", 0, &n);
    if (n == 0) {
        luaL_error(L, "argv: expected at least the program's name");
    }
    parse_env(L, spawn);
    spawn->cwd = opt_string(L, "cwd");
    spawn->must_read = opt_string(L, "must_read");
    parse_limits(L, spawn);
    parse_user(L, spawn);
    parse_cpus(L, spawn);
    spawn->has_umask = opt_integer(L, "umask", 0, 0777, &value);
    spawn->umask = (mode_t)value;
    spawn->has_nice = opt_integer(L, "nice", -20, 19, &value);
    spawn->nice = (int)value;
    spawn->die_with_master = dm_lua_boolean_field(L, 1, "die_with_master");
    o->stdio[0] = opt_fd(L, "stdin");
    o->stdio[1] = opt_fd(L, "stdout");
    o->stdio[2] = opt_fd(L, "stderr");
    o->fds = opt_integers(L, "fds", INT32_MAX, &n);
    o->fd_count = (int)n;
    o->channel = dm_lua_boolean_field(L, 1, "channel");
    o->lingers = dm_lua_boolean_field(L, 1, "lingers");
    o->captures[0] = dm_lua_boolean_field(L, 1, "capture_stdout");
    o->captures[1] = dm_lua_boolean_field(L, 1, "capture_stderr");
    lua_getfield(L, 1, "on_output");
    o->report_output = !lua_isnil(L, -1);
    lua_pop(L, 1);
}

/* ---- events ---- */

/* Pushes the callback and the child; false (and nothing pushed) if there is no such callback. */
static bool push_callback(const struct proxy *proxy, const char *name) {
    if (!dm_lua_push_callback(&proxy->object, name)) {
        return false;
    }
    lua_rawgeti(proxy->object.L, LUA_REGISTRYINDEX, proxy->object.self);
    return true;
}

static void on_exec(void *ctx) {
    const struct proxy *proxy = ctx;
    if (push_callback(proxy, "on_exec")) {
        dm_lua_call(proxy->object.L, 1, 0, "on_exec");
    }
}

static void on_line(void *ctx, const char *line, size_t length, bool had_fd) {
    const struct proxy *proxy = ctx;
    if (push_callback(proxy, "on_line")) {
        lua_pushlstring(proxy->object.L, line, length);
        lua_pushboolean(proxy->object.L, had_fd);
        dm_lua_call(proxy->object.L, 3, 0, "on_line");
    }
}

static void on_skipped(void *ctx, size_t length, bool had_fd) {
    const struct proxy *proxy = ctx;
    if (push_callback(proxy, "on_skipped")) {
        lua_pushnumber(proxy->object.L, (lua_Number)length);
        lua_pushboolean(proxy->object.L, had_fd);
        dm_lua_call(proxy->object.L, 3, 0, "on_skipped");
    }
}

static void on_channel_closed(void *ctx, const char *reason) {
    const struct proxy *proxy = ctx;
    if (push_callback(proxy, "on_channel_closed")) {
        lua_pushstring(proxy->object.L, reason); /* nil for NULL */
        dm_lua_call(proxy->object.L, 2, 0, "on_channel_closed");
    }
}

static void push_failure(lua_State *L, const struct dm_status *status) {
    const char *step = dm_step_name(status->failed);
    const char *message = dm_error_text(-status->error);
    lua_createtable(L, 0, 4);
    dm_lua_set_string(L, "step", step);
    dm_lua_set_string(L, "code", dm_error_name(-status->error));
    dm_lua_set_string(L, "path", status->path); /* none for NULL */
    if (status->path) {
        lua_pushfstring(L, "%s: %s: %s", step, status->path, message);
    } else {
        lua_pushfstring(L, "%s: %s", step, message);
    }
    lua_setfield(L, -2, "message");
}

static void push_status(lua_State *L, const struct proxy *proxy, const struct dm_status *status) {
    dm_lua_push_exit(L, &status->exit);
    if (status->failed != DM_STEP_NONE) {
        push_failure(L, status);
        lua_setfield(L, -2, "failed");
        lua_pushnil(L);
        lua_setfield(L, -2, "code");
    }
    dm_lua_set_number(L, "pid", proxy->pid);
    dm_lua_set_number(L, "stderr_lost", (double)status->stderr_lost);
}

static void on_output(void *ctx, int fd, const char *data, size_t size) {
    const struct proxy *proxy = ctx;
    if (push_callback(proxy, "on_output")) {
        lua_pushstring(proxy->object.L, fd == 1 ? "stdout" : "stderr");
        lua_pushlstring(proxy->object.L, data, size);
        dm_lua_call(proxy->object.L, 3, 0, "on_output");
    }
}

static void on_leader_exit(void *ctx, const struct dm_status *status) {
    struct proxy *proxy = ctx;
    lua_State *L = proxy->object.L;
    if (push_callback(proxy, "on_leader_exit")) {
        push_status(L, proxy, status);
        dm_lua_call(L, 2, 0, "on_leader_exit");
    }
}

static void on_exit_(void *ctx, const struct dm_status *status) {
    struct proxy *proxy = ctx;
    lua_State *L = proxy->object.L;
    if (push_callback(proxy, "on_exit")) {
        push_status(L, proxy, status);
        dm_lua_call(L, 2, 0, "on_exit");
    }
    proxy->child = NULL;
    dm_lua_release(&proxy->object);
}

static const struct dm_child_events events = {
    .on_exec = on_exec,
    .on_line = on_line,
    .on_skipped = on_skipped,
    .on_channel_closed = on_channel_closed,
    .on_output = on_output,
    .on_leader_exit = on_leader_exit,
    .on_exit = on_exit_,
};

/* ---- functions ---- */

/* Pushes a proxy, held, with the callbacks of the table at 1. */
static struct proxy *new_proxy(lua_State *L) {
    static const char *const names[] = {
        "on_exec",   "on_line",        "on_skipped", "on_channel_closed",
        "on_output", "on_leader_exit", "on_exit"};
    struct proxy *proxy = dm_lua_new_object(L, sizeof *proxy, CHILD);
    const int self = lua_gettop(L);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        lua_getfield(L, 1, names[i]);
        if (!lua_isnil(L, -1) && !lua_isfunction(L, -1)) {
            luaL_error(L, "%s: expected a function, found %s", names[i], luaL_typename(L, -1));
        }
        dm_lua_set_callback(L, self, names[i], self + 1);
        lua_pop(L, 1);
    }
    dm_lua_hold(L, self);
    return proxy;
}

/* Of a proxy on top of the stack. */
static int started(lua_State *L, struct proxy *proxy, int error, const char *what) {
    if (error) {
        dm_lua_release(&proxy->object);
        return dm_lua_fail(L, error, what);
    }
    proxy->pid = dm_child_pid(proxy->child);
    return 1;
}

int core_spawn(lua_State *L) {
    struct dm_child_options options = {.fd_count = 0};
    parse_options(L, &options);
    struct proxy *proxy = new_proxy(L);
    return started(
        L, proxy, dm_child_spawn(dm_lua_core(L), &options, &events, proxy, &proxy->child), "spawn");
}

/* adopt{pid, pidfd, channel, mark, out, err (as child:keep() gave them, the descriptors as they are
 * now), stdout, stderr, lingers, and the callbacks of spawn} -> child, whether its channel was in
 * the middle of nothing, whether it can be written to, what it was last sent if that is 'unsent' or
 * out 'perhaps'. A child of a master that has died. */
int core_adopt(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    const struct dm_kept_child kept = {
        .pid = dm_lua_integer_field(L, 1, "pid", -1),
        .pidfd = dm_lua_integer_field(L, 1, "pidfd", -1),
        .channel = dm_lua_integer_field(L, 1, "channel", -1),
        .mark = dm_lua_integer_field(L, 1, "mark", -1),
        .output = {dm_lua_integer_field(L, 1, "out", -1), dm_lua_integer_field(L, 1, "err", -1)},
        .targets = {dm_lua_integer_field(L, 1, "stdout", -1),
                    dm_lua_integer_field(L, 1, "stderr", -1)},
        .lingers = dm_lua_boolean_field(L, 1, "lingers"),
        .report_output = dm_lua_integer_field(L, 1, "reports", -1) > 0,
    };
    luaL_argcheck(L, kept.pid > 1 && kept.pidfd > 2, 1, "pid, pidfd");
    struct proxy *proxy = new_proxy(L);
    enum dm_keeper_mark before;
    const int rc = dm_child_adopt(dm_lua_core(L), &kept, &events, proxy, &proxy->child, &before);
    if (rc != 0) {
        return started(L, proxy, rc, "adopt");
    }
    lua_pushboolean(L, before == DM_MARK_CLEAR);
    lua_pushboolean(L, before != DM_MARK_WRITING);
    lua_pushstring(L, before == DM_MARK_QUEUED    ? "unsent"
                      : before == DM_MARK_SENDING ? "perhaps"
                                                  : NULL);
    return started(L, proxy, 0, NULL) + 3;
}

static void set_fd(lua_State *L, const char *field, int fd) {
    if (fd >= 0) {
        dm_lua_set_number(L, field, fd);
    }
}

/* rehearse{as spawn} -> true | nil, failed {step, code, path, message}. Waits for about a
 * millisecond. */
int core_rehearse(lua_State *L) {
    struct dm_child_options options = {.fd_count = 0};
    struct dm_spawn_error failure;
    parse_options(L, &options);
    const int rc = dm_spawn_rehearse(&options.spawn, &failure);
    if (rc != 0 || failure.step == DM_STEP_NONE) {
        lua_pushboolean(L, true); /* without a process nothing is known */
        return 1;
    }
    const struct dm_status status = {
        .failed = failure.step,
        .error = failure.error,
        .path = failure.path[0] ? failure.path : NULL,
    };
    lua_pushnil(L);
    push_failure(L, &status);
    return 2;
}

static struct proxy *check_proxy(lua_State *L) {
    return luaL_checkudata(L, 1, CHILD);
}

static int l_pid(lua_State *L) {
    lua_pushinteger(L, check_proxy(L)->pid);
    return 1;
}

static int l_signal(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    const int number = dm_lua_check_signal(L, 2);
    return dm_lua_result(L, proxy->child ? dm_child_signal(proxy->child, number) : -ESRCH,
                         "signal");
}

static int l_signal_group(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    const int number = dm_lua_check_signal(L, 2);
    return dm_lua_result(L, proxy->child ? dm_child_signal_group(proxy->child, number) : -ESRCH,
                         "signal");
}

static int l_send(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    size_t length;
    const char *line = luaL_checklstring(L, 2, &length);
    const int fd = luaL_optint(L, 3, -1);
    luaL_argcheck(L, !memchr(line, '\n', length), 2, "a line must not contain a newline");
    const bool now = lua_toboolean(L, 4);
    return dm_lua_result(
        L, proxy->child ? dm_child_send(proxy->child, line, length, fd, now) : -EPIPE, "send");
}

/* Whether it has not read all that it was sent over its channel. */
static int l_is_unread(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    lua_pushboolean(L, proxy->child && dm_child_is_unread(proxy->child));
    return 1;
}

/* keep() -> {pidfd, channel, mark, out, err}, as far as they are there; nil once it has exited. */
static int l_keep(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    if (!proxy->child) {
        return 0;
    }
    struct dm_kept_child kept;
    dm_child_keep(proxy->child, &kept);
    lua_createtable(L, 0, 5);
    set_fd(L, "pidfd", kept.pidfd);
    set_fd(L, "channel", kept.channel);
    set_fd(L, "mark", kept.mark);
    set_fd(L, "out", kept.output[0]);
    set_fd(L, "err", kept.output[1]);
    return 1;
}

/* Those of its group that became ours when it ended. */
static int l_others(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    pid_t pids[16];
    const size_t n = proxy->child ? dm_child_others(proxy->child, pids, 16) : 0;
    dm_lua_push_integers(L, pids, n < 16 ? n : 16);
    return 1;
}

/* take_fd() -> the descriptor that came with the line at hand; nil: there is none */
static int l_take_fd(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    const int fd = proxy->child ? dm_child_take_fd(proxy->child) : -1;
    lua_pushinteger(L, fd);
    return fd >= 0;
}

static int l_close_channel(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    if (proxy->child) {
        dm_child_close_channel(proxy->child);
    }
    return dm_lua_result(L, proxy->child ? 0 : -EBADF, NULL);
}

static int l_pause_reading(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    luaL_checktype(L, 2, LUA_TBOOLEAN);
    if (proxy->child) {
        dm_child_pause_reading(proxy->child, lua_toboolean(L, 2));
    }
    return dm_lua_result(L, proxy->child ? 0 : -EBADF, NULL);
}

static int l_tail(lua_State *L) {
    const struct proxy *proxy = check_proxy(L);
    if (!proxy->child) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    size_t length;
    const char *tail = dm_child_tail(proxy->child, &length);
    lua_pushlstring(L, tail ? tail : "", length);
    return 1;
}

static const luaL_Reg methods[] = {
    {"pid", l_pid},
    {"signal", l_signal},
    {"signal_group", l_signal_group},
    {"send", l_send},
    {"is_unread", l_is_unread},
    {"others", l_others},
    {"keep", l_keep},
    {"take_fd", l_take_fd},
    {"close_channel", l_close_channel},
    {"pause_reading", l_pause_reading},
    {"tail", l_tail},
    {NULL, NULL},
};

void dm_lua_open_child(lua_State *L) {
    dm_lua_new_type(L, CHILD, methods, NULL);
}

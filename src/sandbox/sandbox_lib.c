/* sandbox/sandbox_lib.c: what the user's script finds in its state. Left out or replaced is what
 * could end, block or corrupt the master: ffi, bytecode, debug hooks, finalizers, os.exit, commands
 * without a limit. lua/script/dutch-master.lua does the rest with the primitives made here.
 *
 * What is one call of C ends by itself within the bounds of memory, looks at the clock
 * (sandbox/match.c), or waits in a system call that the alarm interrupts. Not stopped is what C
 * modules do that the script requires. The script is its user's own code: the limits are against
 * mistakes, not against an attacker. */
#include "lua/embedded.h"
#include "process/command.h"
#include "sandbox/sandbox.h"

#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>
#include <uv.h>

int luaopen_cjson(lua_State *L);
int luaopen_cjson_safe(lua_State *L);

/* fail(message): an error at the script's line that called into our Lua. */
static int l_fail(lua_State *L) {
    lua_Debug ar;
    dm_sandbox_where(L, dm_sandbox_of(L), &ar);
    lua_pushvalue(L, 1);
    lua_concat(L, 2);
    return lua_error(L);
}

static int fail(lua_State *L, const char *message) {
    lua_settop(L, 0);
    lua_pushstring(L, message);
    return l_fail(L);
}

/* In the master's state, protected: calls the host with what was packed, packs what it returns. */
static int call_host(lua_State *L) {
    struct dm_sandbox *s = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_rawgeti(L, LUA_REGISTRYINDEX, s->host);
    lua_call(L, dm_lua_unpack(L, &s->values), LUA_MULTRET);
    if (!dm_lua_pack(L, 1, &s->values, false)) {
        return luaL_error(L, "%s", s->values.error);
    }
    return 0;
}

/* host(name, ...): asks the master. An error there is an error here. */
static int l_host(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    luaL_checkstring(L, 1);
    if (!s->caller) {
        return fail(L, "the master can be asked only from within a hook");
    } else if (!dm_lua_pack(L, 1, &s->values, false)) {
        return fail(L, s->values.error);
    }
    if (lua_cpcall(s->caller, call_host, s) != 0) {
        const char *message =
            lua_type(s->caller, -1) == LUA_TSTRING ? lua_tostring(s->caller, -1) : "failed";
        snprintf(s->values.error, sizeof s->values.error, "%s", message);
        lua_pop(s->caller, 1);
        return fail(L, s->values.error);
    }
    lua_settop(L, 0);
    return dm_lua_unpack(L, &s->values);
}

static int run_command(lua_State *L, struct dm_output *output, int *status) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    const char *command = luaL_checkstring(L, 1);
    int rc = 0;
    if (s->directory && access(s->directory, X_OK) != 0) {
        rc = -errno;
    } else {
        rc = dm_command_run(command, s->directory, s->deadline, output, status);
    }
    if (rc == -ETIMEDOUT) {
        if (output) {
            free(output->data);
            output->data = NULL;
        }
        dm_sandbox_expire(L, s);
        lua_settop(L, 0);
        lua_pushliteral(L, "the command took too long");
        l_fail(L);
    }
    return rc;
}

/* execute(command) -> status as of waitpid | nil, message */
static int l_execute(lua_State *L) {
    int status = 0;
    const int rc = run_command(L, NULL, &status);
    if (rc != 0) {
        lua_pushnil(L);
        lua_pushstring(L, uv_strerror(rc));
        return 2;
    }
    lua_pushinteger(L, status);
    return 1;
}

static int write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        const ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR) {
            return -errno;
        } else if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

/* capture(command) -> path of a file with its output, readable until the next capture | nil,
 * message
 */
static int l_capture(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    struct dm_output output = {0};
    int status = 0;
    int rc = run_command(L, &output, &status);
    if (rc == 0) {
        if (s->file >= 0) {
            close(s->file);
        }
        s->file = memfd_create("popen", MFD_CLOEXEC);
        rc = s->file < 0 ? -errno : write_all(s->file, output.data, output.size);
    }
    free(output.data);
    if (rc != 0) {
        lua_pushnil(L);
        lua_pushstring(L, rc == -EFBIG ? "more output than 16 MiB" : uv_strerror(rc));
        return 2;
    }
    lua_pushfstring(L, "/proc/self/fd/%d", s->file);
    return 1;
}

/* load_file(path) -> function | nil, message. Text only. */
static int l_load_file(lua_State *L) {
    if (luaL_loadfilex(L, luaL_checkstring(L, 1), "t") == 0) {
        return 1;
    }
    lua_pushnil(L);
    lua_insert(L, -2);
    return 2;
}

/* expired() -> is the budget of this call over? */
static int l_expired(lua_State *L) {
    lua_pushboolean(L, dm_sandbox_of(L)->expired);
    return 1;
}

/* directory(path): where this fork will run; a relative path begins where the last one ended. */
static int l_directory(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    const char *path = luaL_checkstring(L, 1);
    if (*path != '/' && s->directory) {
        path = lua_pushfstring(L, "%s/%s", strcmp(s->directory, "/") ? s->directory : "", path);
    }
    char *copy = strdup(path);
    if (!copy) {
        return fail(L, "not enough memory");
    }
    free(s->directory);
    s->directory = copy;
    return 0;
}

/* resolve(path) -> the path as seen from the directory that dutch.chdir chose */
static int l_resolve(lua_State *L) {
    const struct dm_sandbox *s = dm_sandbox_of(L);
    if (s->directory && lua_type(L, 1) == LUA_TSTRING && *lua_tostring(L, 1) != '/') {
        lua_pushfstring(L, "%s/%s", s->directory, lua_tostring(L, 1));
    }
    return 1;
}

static int l_presets(lua_State *L) {
    if (dm_lua_load_embedded(L, "dutch-master/launch/presets") != 0) {
        return lua_error(L);
    }
    lua_call(L, 0, 1);
    return 1;
}

static const luaL_Reg libraries[] = {
    {"", luaopen_base},
    {LUA_LOADLIBNAME, luaopen_package},
    {LUA_TABLIBNAME, luaopen_table},
    {LUA_IOLIBNAME, luaopen_io},
    {LUA_OSLIBNAME, luaopen_os},
    {LUA_STRLIBNAME, luaopen_string},
    {LUA_MATHLIBNAME, luaopen_math},
    {LUA_BITLIBNAME, luaopen_bit},
    {LUA_DBLIBNAME, luaopen_debug},
    {NULL, NULL},
};

static const luaL_Reg primitives[] = {
    {"host", l_host},           {"fail", l_fail},           {"execute", l_execute},
    {"capture", l_capture},     {"load_file", l_load_file}, {"expired", l_expired},
    {"directory", l_directory}, {"resolve", l_resolve},     {NULL, NULL},
};

static const luaL_Reg preloaded[] = {
    {"cjson", luaopen_cjson},
    {"cjson.safe", luaopen_cjson_safe},
    {"dutch-master.presets", l_presets},
    {NULL, NULL},
};

int dm_sandbox_open_libraries(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    lua_Debug ar;
    /* Root, or a set-uid binary, takes no path from whoever called it. */
    lua_pushboolean(L, geteuid() == 0 || getauxval(AT_SECURE) != 0);
    lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
    for (const luaL_Reg *library = libraries; library->func; library++) {
        lua_pushcfunction(L, library->func);
        lua_pushstring(L, library->name);
        lua_call(L, 1, 0);
    }
    dm_sandbox_open_patterns(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    luaL_register(L, NULL, preloaded);
    lua_settop(L, 1);
    if (dm_lua_load_embedded(L, "script/dutch-master") != 0) {
        return lua_error(L);
    }
    lua_pushvalue(L, -1);
    lua_getinfo(L, ">S", &ar);
    snprintf(s->prelude, sizeof s->prelude, "%s", ar.source);
    lua_newtable(L);
    luaL_register(L, NULL, primitives);
    lua_pushvalue(L, 1);
    lua_call(L, 2, 1); /* entry points */
    return 1;
}

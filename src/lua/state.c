/* lua/state.c: see lua/state.h. */
#include "lua/state.h"

#include "lua/arena.h"
#include "lua/call.h"
#include "lua/embedded.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>
#include <luajit.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* From the archives of lua-cjson and luv, whose headers do not declare all of them. */
int luaopen_cjson(lua_State *L);
int luaopen_cjson_safe(lua_State *L);
int luaopen_luv(lua_State *L);
void luv_set_loop(lua_State *L, uv_loop_t *loop);

/* libc's heap rather than LuaJIT's own: it stays mapped from one state to the next, children of the
 * master need not get it (process/spawn_memory.h), and sanitizers see it. */
static void *allocate(void *ud, void *block, size_t old_size, size_t size) {
    if (size == 0) {
        free(block);
        return NULL;
    }
    return realloc(block, size);
}

static const luaL_Reg preloaded[] = {
    {"cjson", luaopen_cjson},
    {"cjson.safe", luaopen_cjson_safe},
    {"luv", luaopen_luv},
    {NULL, NULL},
};

struct lua_State *dm_lua_state_new(bool environment, struct dm_arena *arena) {
    static bool own_heap; /* older builds of LuaJIT (x86-64 without GC64) take no other allocator */
    const lua_Alloc from = arena ? dm_arena_allocate : allocate;
    lua_State *L = own_heap ? NULL : lua_newstate(from, arena);
    if (!L) {
        L = luaL_newstate();
        own_heap = L != NULL;
    }
    if (!L) {
        return NULL;
    }
    lua_pushboolean(L, !environment);
    lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload"); /* package, preload */
    luaL_register(L, NULL, preloaded);
    lua_settop(L, 0);
    return L;
}

static int on_panic(lua_State *L) {
    const char *message = lua_tostring(L, -1);
    fprintf(stderr, "dutch-master: panic: %s\n", message ? message : "error without message");
    if (dm_lua_core(L)->kept.open) {
        abort();
    }
    dm_children_stop_all(dm_lua_core(L));
    _exit(70);
}

struct lua_State *dm_lua_state_open(struct dm_core *core) {
    lua_State *L = dm_lua_state_new(false, NULL);
    if (!L) {
        return NULL;
    }
    lua_atpanic(L, on_panic);
    /* Policy runs for microseconds at a time: compiling traces of it costs more than it gives. */
    luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    /* Percent. Memory of a process that lives for months counts more than a little time: the next
     * collection begins when a quarter has come, not when all is there twice. */
    lua_gc(L, LUA_GCSETPAUSE, 125);
    dm_lua_set_core(L, core);
    luv_set_loop(L, core->loop);
    luv_set_callback(L, dm_lua_call_luv);
    lua_getglobal(L, "package");
    /* Policy comes from the binary alone, never from where the master was started. */
    lua_pushliteral(L, "");
    lua_setfield(L, 1, "path");
    lua_pushliteral(L, "");
    lua_setfield(L, 1, "cpath");
    lua_getfield(L, 1, "preload");
    lua_pushcfunction(L, luaopen_dutch_core);
    lua_setfield(L, -2, "dutch-master.core");
    lua_settop(L, 0);
    dm_lua_open_embedded(L, "");
    return L;
}

void dm_lua_state_close(struct lua_State *L) {
    if (L) {
        lua_close(L);
    }
}

/* Argument 1: argv. Returns what main() returns. */
static int l_enter(lua_State *L) {
    lua_getglobal(L, "require");
    lua_pushliteral(L, "dutch-master.cli");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "main");
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
    return 1;
}

int dm_lua_state_enter(struct lua_State *L, int argc, char **argv) {
    lua_pushcfunction(L, l_enter);
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i);
    }
    if (dm_lua_call(L, 1, 1, "start") != 0) {
        return DM_LUA_PANIC;
    }
    const int code = lua_isnumber(L, -1) ? (int)lua_tointeger(L, -1) : DM_LUA_RUN;
    lua_pop(L, 1);
    return code;
}

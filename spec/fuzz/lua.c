/* Fuzz target: what reads untrusted text in Lua. The function is named by DM_FUZZ as
 * MODULE:FUNCTION, such as dutch-master.channel.protocol:decode. It may refuse, it must not throw.
 */
#include "lua/embedded.h"
#include "lua/state.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static lua_State *L;

/* The state lives as long as the process, and LuaJIT's memory is not visible to the leak checker.
 */
const char *__asan_default_options(void);

const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

static void load(const char *name) {
    char module[128];
    const char *colon = strchr(name, ':');
    if (colon == NULL || (size_t)(colon - name) >= sizeof module) {
        fprintf(stderr, "DM_FUZZ: expected MODULE:FUNCTION, found %s\n", name);
        exit(2);
    }
    memcpy(module, name, (size_t)(colon - name));
    module[colon - name] = '\0';
    L = dm_lua_state_new(false, NULL);
    dm_lua_open_embedded(L, "");
    lua_getglobal(L, "require");
    lua_pushstring(L, module);
    lua_call(L, 1, 1);              /* module */
    lua_getfield(L, -1, colon + 1); /* module, function */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (L == NULL) {
        const char *name = getenv("DM_FUZZ");
        load(name ? name : "dutch-master.channel.protocol:decode");
    }
    lua_pushvalue(L, 2);
    lua_pushlstring(L, (const char *)data, size);
    if (lua_pcall(L, 1, 0, 0) != 0) {
        fprintf(stderr, "threw: %s\n", lua_tostring(L, -1));
        abort();
    }
    return 0;
}

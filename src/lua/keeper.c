/* lua/keeper.c: what a master tells its keeper, and hears of its predecessor. Without a keeper
 * kept() is nil and the others do nothing.
 */
#include "base/signals.h"
#include "keeper/kept.h"
#include "keeper/memory.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ON_KEEPER "dutch-master.on_keeper" /* in the registry */

static struct dm_kept *kept_of(lua_State *L) {
    return &dm_lua_core(L)->kept;
}

/* store, and pids: whose pidfd one of it is. */
static void push_store(lua_State *L, const struct dm_keeper_link *link) {
    lua_createtable(L, 0, (int)link->held_count);
    lua_createtable(L, 0, (int)link->held_count);
    for (uint32_t i = 0; i < link->held_count; i++) {
        const struct dm_keeper_held *held = &link->held[i];
        lua_pushinteger(L, held->fd);
        lua_setfield(L, -3, held->name);
        if (held->pid) {
            lua_pushinteger(L, held->pid);
            lua_setfield(L, -2, held->name);
        }
    }
    lua_setfield(L, -3, "pids");
    lua_setfield(L, -2, "store");
}

static void push_upgrade(lua_State *L, const struct dm_keeper_upgrade *upgrade) {
    static const char *const reasons[] = {
        "", "not run", "refused", "died", "exited", "late",
    };
    char buffer[16];
    lua_createtable(L, 0, 3);
    dm_lua_set_boolean(L, "failed", upgrade->state == DM_UPGRADE_FAILED);
    if (upgrade->reason < sizeof reasons / sizeof *reasons) {
        dm_lua_set_string(L, "reason", reasons[upgrade->reason]);
    }
    if (upgrade->reason == DM_UPGRADE_DIED) {
        dm_lua_set_string(L, "detail", dm_signal_name(upgrade->number, buffer));
    } else if (upgrade->reason == DM_UPGRADE_NOT_RUN) {
        dm_lua_set_string(L, "detail", strerror(upgrade->number));
    } else {
        dm_lua_set_number(L, "detail", upgrade->number);
    }
}

/* kept() -> {keeper = its pid, deaths = of masters so far, signal or code = what the last one ended
 * by, upgrade = {failed, reason, detail} if the program was to change, renewed = the keeper was a
 * master, whose keeper had died; of a predecessor: state = its last snapshot, set_aside = that one
 * is not to be used, store = {name = descriptor}, pids = {name = pid}}, or nil. To be asked once,
 * first.
 */
int core_kept(lua_State *L) {
    const struct dm_kept *kept = kept_of(L);
    char buffer[16];
    size_t size;
    if (!kept->open) {
        return 0;
    }
    lua_createtable(L, 0, 7);
    dm_lua_set_number(L, "keeper", kept->link.keeper);
    dm_lua_set_number(L, "deaths", kept->link.deaths);
    if (kept->link.died_of) {
        dm_lua_set_string(L, "signal", dm_signal_name(kept->link.died_of, buffer));
    } else {
        dm_lua_set_number(L, "code", kept->link.exited_with);
    }
    if (kept->link.succeeds && dm_keeper_has_written(kept->link.memory)) {
        const char *state = dm_keeper_newest(kept->link.memory, &size);
        lua_pushlstring(L, state ? state : "", size);
        lua_setfield(L, -2, "state");
        dm_lua_set_boolean(L, "set_aside", kept->link.set_aside);
        push_store(L, &kept->link);
    }
    if (kept->link.upgrade.state == DM_UPGRADE_RENEWED) {
        dm_lua_set_boolean(L, "renewed", true);
    } else if (kept->link.upgrade.state != DM_UPGRADE_NONE) {
        push_upgrade(L, &kept->link.upgrade);
        lua_setfield(L, -2, "upgrade");
    }
    return 1;
}

static void on_keeper(struct dm_core *core, const char *event, int error) {
    lua_State *L = core->kept_data;
    lua_getfield(L, LUA_REGISTRYINDEX, ON_KEEPER);
    lua_getfield(L, -1, event);
    lua_replace(L, -2);
    lua_pushstring(L, error ? strerror(-error) : NULL); /* nil for NULL */
    dm_lua_call(L, 1, 0, "keeper");
}

/* on_keep{write =, lost =, alone =}: write() is called before the loop waits, if touch() was;
 * lost() when the keeper has died, to keep all again and call renew(); alone(why or nil) if it has
 * not, or it cannot be done. */
int core_on_keep(lua_State *L) {
    struct dm_core *core = dm_lua_core(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, ON_KEEPER);
    core->kept_data = dm_lua_main(L);
    core->on_keeper = on_keeper;
    return 0;
}

int core_touch(lua_State *L) {
    dm_kept_touch(kept_of(L));
    return 0;
}

/* The strings of the list on the stack's top, and of the lists in it, from number n on; with the
 * one at 0, if there is one, between any two items. parts NULL: they are counted. */
static size_t gather(lua_State *L, struct iovec *parts, size_t n) {
    luaL_checktype(L, -1, LUA_TTABLE);
    luaL_checkstack(L, 4, "lists");
    const int count = (int)lua_objlen(L, -1);
    struct iovec between;
    lua_rawgeti(L, -1, 0);
    between.iov_base = (void *)(uintptr_t)lua_tolstring(L, -1, &between.iov_len);
    for (int i = 1; i <= count; i++) {
        if (i > 1 && between.iov_base) {
            n++;
            if (parts) {
                parts[n - 1] = between;
            }
        }
        lua_rawgeti(L, -2, i);
        if (lua_type(L, -1) != LUA_TSTRING) {
            n = gather(L, parts, n);
        } else if (n++, parts) {
            parts[n - 1].iov_base = (void *)(uintptr_t)lua_tolstring(L, -1, &parts[n - 1].iov_len);
        }
        lua_pop(L, 1); /* the list has it */
    }
    lua_pop(L, 1);
    return n;
}

/* keep(texts): a snapshot is these strings, one after the other. */
int core_keep(lua_State *L) {
    lua_settop(L, 1);
    const size_t count = gather(L, NULL, 0);
    struct iovec *parts = lua_newuserdata(L, (count + 1) * sizeof *parts);
    lua_insert(L, 1);
    gather(L, parts, 0);
    return dm_lua_result(L, dm_kept_write(kept_of(L), parts, count), "snapshot");
}

/* said() -> the number of the last record of the log that was written, by this master or another;
 * say(number): see log/ledger.lua. */
int core_said(lua_State *L) {
    lua_pushnumber(L, (lua_Number)dm_kept_said(kept_of(L)));
    return 1;
}

int core_say(lua_State *L) {
    dm_kept_say(kept_of(L), (uint64_t)luaL_checknumber(L, 1));
    return 0;
}

/* Whether each snapshot is to be made a second time: see keeper/estate.lua. */
int core_checks_state(lua_State *L) {
#ifdef DM_CHECK_STATE
    lua_pushboolean(L, true);
#else
    lua_pushboolean(L, false);
#endif
    return 1;
}

/* keep_fd(name, fd [, pid]) */
int core_keep_fd(lua_State *L) {
    const char *name = luaL_checkstring(L, 1);
    return dm_lua_result(
        L, dm_kept_put(kept_of(L), name, luaL_checkint(L, 2), luaL_optint(L, 3, 0)), name);
}

int core_drop_fd(lua_State *L) {
    dm_kept_drop(kept_of(L), luaL_checkstring(L, 1));
    return 0;
}

/* become(path): see dm_kept_become. settled(): the keeper keeps no way back. */
int core_become(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    return dm_lua_result(L, dm_kept_become(kept_of(L), path), path);
}

/* renew(): this process becomes the keeper of another master, as soon as it is not in the middle of
 * anything. */
int core_renew(lua_State *L) {
    dm_kept_renew(kept_of(L));
    return 0;
}

int core_settled(lua_State *L) {
    dm_kept_settled(kept_of(L));
    return 0;
}

int core_supervises(lua_State *L) {
    dm_kept_hello(kept_of(L));
    return 0;
}

/* kill_stranger(pid): a child of the keeper's that is in no snapshot. */
int core_kill_stranger(lua_State *L) {
    dm_kept_kill(kept_of(L), luaL_checkint(L, 1), SIGKILL);
    return 0;
}

/* That of this process; core.pid() is the keeper's, where there is one. */
int core_master_pid(lua_State *L) {
    lua_pushinteger(L, getpid());
    return 1;
}

/* give_up(code): ends this process and touches nothing of what it had begun to take over. */
int core_give_up(lua_State *L) {
    fflush(NULL);
    _exit(luaL_checkint(L, 1));
}

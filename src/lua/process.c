/* lua/process.c: the master itself: its end, its errors, signals to it, and the children that it
 * did not start. */
#include "lua/open.h"

#include "lua/call.h"
#include "lua/support.h"

#include <errno.h>
#include <lauxlib.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* How long the end waits for orphans that were killed: only an uninterruptible wait takes longer.
 */
enum { KILL_ADOPTED_MS = 2000 };

/* Orphans that are looked at in one go: the others have their turn when these are gone. */
enum { ADOPTED_MAX = 4096 };

#define ON_SIGNAL "dutch-master.on_signal" /* in the registry */

int core_stop(lua_State *L) {
    dm_core_stop(dm_lua_core(L), luaL_optint(L, 1, 0));
    return 0;
}

int core_on_error(lua_State *L) {
    if (!lua_isnoneornil(L, 1)) {
        luaL_checktype(L, 1, LUA_TFUNCTION);
    }
    lua_settop(L, 1);
    dm_lua_set_error_sink(L, 1);
    return 0;
}

/* ---- signals ---- */

static void on_signal(struct dm_signals *signals, int number, pid_t sender, uid_t sender_uid,
                      uint64_t at_ms) {
    const struct dm_core *core = dm_container(signals, struct dm_core, signals);
    lua_State *L = signals->data;
    char buffer[16];
    if (!core->silent) {
        lua_getfield(L, LUA_REGISTRYINDEX, ON_SIGNAL);
        lua_pushstring(L, dm_signal_name(number, buffer));
        lua_pushinteger(L, sender);
        lua_pushnumber(L, sender_uid);
        lua_pushnumber(L, (double)at_ms);
        dm_lua_call(L, 4, 0, "signal");
    }
}

/* signals({names}, fn(name, sender_pid, sender_uid, at)): at: when it came, as now() */
int core_signals(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    sigset_t set;
    sigemptyset(&set);
    for (int i = 1; i <= (int)lua_objlen(L, 1); i++) {
        lua_rawgeti(L, 1, i);
        const int number = dm_lua_check_signal(L, -1);
        /* The first has an owner already, the others nobody can have. */
        if (number == SIGCHLD || number == SIGKILL || number == SIGSTOP) {
            return luaL_error(L, "%s cannot be listened to", lua_tostring(L, -1));
        }
        sigaddset(&set, number);
        lua_pop(L, 1);
    }
    struct dm_core *core = dm_lua_core(L);
    core->signals.data = dm_lua_main(L);
    core->signals.on_signal = on_signal;
    lua_pushvalue(L, 2);
    lua_setfield(L, LUA_REGISTRYINDEX, ON_SIGNAL);
    return dm_lua_result(L, dm_signals_set(&core->signals, core->loop, &set), "signals");
}

/* no_signals(): this program is no master, nothing is asked of it by a signal. */
int core_no_signals(lua_State *L) {
    (void)L;
    dm_signals_release();
    return 0;
}

/* ---- orphans ---- */

/* -> how many got it */
int core_kill_adopted(lua_State *L) {
    lua_pushinteger(L,
                    (lua_Integer)dm_reaper_kill_adopted(&dm_lua_core(L)->reaper, KILL_ADOPTED_MS));
    return 1;
}

/* adopted() -> {pid, ...}: children that we did not start, ours and our keeper's */
int core_adopted(lua_State *L) {
    pid_t *pids = lua_newuserdata(L, ADOPTED_MAX * sizeof *pids);
    const size_t n = dm_reaper_adopted(&dm_lua_core(L)->reaper, pids, ADOPTED_MAX);
    dm_lua_push_integers(L, pids, n < ADOPTED_MAX ? n : ADOPTED_MAX);
    return 1;
}

/* signal_adopted(pid, name) -> whether it was one of them. Its group gets the signal too if it
 * leads one. */
int core_signal_adopted(lua_State *L) {
    const pid_t pid = (pid_t)luaL_checkinteger(L, 1);
    const int number = dm_lua_check_signal(L, 2);
    lua_pushboolean(L, dm_reaper_signal_adopted(&dm_lua_core(L)->reaper, pid, number));
    return 1;
}

/* ---- processes that are not ours ---- */

/* open_process(pid) -> a pidfd, which names this process and no later one; nil if there is none. */
int core_open_process(lua_State *L) {
    const int fd = (int)syscall(SYS_pidfd_open, luaL_checkint(L, 1), 0);
    return dm_lua_result_integer(L, fd < 0 ? -errno : fd, "process");
}

/* signal_process(pidfd, name) */
int core_signal_process(lua_State *L) {
    const int number = dm_lua_check_signal(L, 2);
    const long rc = syscall(SYS_pidfd_send_signal, luaL_checkint(L, 1), number, NULL, 0);
    return dm_lua_result(L, rc == 0 ? 0 : -errno, "signal");
}

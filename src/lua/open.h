/* lua/open.h: the whole of what Lua can ask of C, in one place. core.NAME is core_NAME(), in the
 * file named beside it; a type is a kind of object that these functions give, with methods of its
 * own.
 */
#pragma once

#include <lua.h>

/* clang-format off */
#define DM_LUA_FUNCTIONS(F) \
    /* process.c  */ F(open_process) F(signal_process) F(stop) F(on_error) F(signals) F(no_signals) F(adopted) F(signal_adopted) F(kill_adopted) \
    /* child.c    */ F(spawn) F(adopt) F(rehearse) \
    /* keeper.c   */ F(kept) F(on_keep) F(touch) F(keep) F(keep_fd) F(drop_fd) F(checks_state) F(said) F(say) \
                      F(supervises) F(become) F(renew) F(settled) F(kill_stranger) F(master_pid) F(give_up) \
    /* call.c     */ F(held) \
    /* timer.c    */ F(timer) F(now) F(wall) \
    /* sysinfo.c  */ F(getuser) F(getgroup) F(pid) F(uid) F(hostname) F(environ) F(cwd) F(cpus) F(executable) F(image) F(idle) \
    /* files.c    */ F(open_append) F(reopen_append) F(trust_owner_of) F(realpath) F(stat) F(access) F(read_file) F(runtime_dir) F(lock) F(claim) F(pid_file) \
    /* sink.c     */ F(sink) \
    /* notify.c   */ F(notify_socket) F(sd_notify) F(sd_notify_set) \
    /* stream.c   */ F(serve) F(connect) \
    /* dial.c     */ F(dial) \
    /* terminal.c */ F(isatty) F(tty_size) F(write_stdout) F(write_stderr) \
    /* address.c  */ F(address) F(bucket) \
    /* listener.c */ F(listen) \
    /* descriptors.c */ F(close_fd) F(copy_listener) F(inherit) F(quiet_ms) F(holders) F(group_has) \
                      F(bound) F(untouched) \
    /* watch.c    */ F(watch)

#define DM_LUA_TYPES(T) \
    T(child) T(timer) T(files) T(sink) T(notify) T(stream) T(dial) T(listener) T(lane) T(watch)
/* clang-format on */

#define DM_LUA_DECLARE(name) int core_##name(lua_State *L);
DM_LUA_FUNCTIONS(DM_LUA_DECLARE)
#undef DM_LUA_DECLARE

/* Make the types known to the state. */
#define DM_LUA_DECLARE(name) void dm_lua_open_##name(lua_State *L);
DM_LUA_TYPES(DM_LUA_DECLARE)
#undef DM_LUA_DECLARE

int luaopen_dutch_core(lua_State *L); /* require 'dutch-master.core' */

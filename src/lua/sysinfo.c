/* lua/sysinfo.c: what Lua can ask about the machine, its users and its processes. */
#include "process/sysinfo.h"
#include "base/identity.h"
#include "lua/open.h"
#include "lua/support.h"

#include <errno.h>
#include <grp.h>
#include <lauxlib.h>
#include <limits.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

enum {
    ENTRY_BYTES = 65536, /* strings of one passwd or group entry; groups list their members */
    GROUPS_MAX = 65536,  /* NGROUPS_MAX of the kernel */
};

static int no_such(lua_State *L, const char *what, int index) {
    return dm_lua_fail_why(L, -ENOENT, NULL,
                           lua_pushfstring(L, "there is no %s '%s'", what, lua_tostring(L, index)));
}

/* Stack: ..., user. Adds groups. */
static void set_groups(lua_State *L, const struct passwd *entry) {
    int count = 64;
    gid_t *groups = lua_newuserdata(L, (size_t)count * sizeof *groups);
    if (getgrouplist(entry->pw_name, entry->pw_gid, groups, &count) < 0) {
        count = count > GROUPS_MAX ? GROUPS_MAX : count;
        groups = lua_newuserdata(L, (size_t)count * sizeof *groups);
        lua_remove(L, -2);
        if (getgrouplist(entry->pw_name, entry->pw_gid, groups, &count) < 0) {
            count = 0;
        }
    }
    lua_createtable(L, count, 0); /* user, scratch, list */
    for (int i = 0; i < count; i++) {
        lua_pushnumber(L, groups[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -3, "groups");
    lua_pop(L, 1);
}

/* getuser(name | uid) */
int core_getuser(lua_State *L) {
    struct passwd entry, *found = NULL;
    const bool by_name = lua_type(L, 1) == LUA_TSTRING;
    const char *name = by_name ? lua_tostring(L, 1) : NULL;
    const uid_t uid = by_name ? 0 : (uid_t)luaL_checknumber(L, 1);
    char *text = lua_newuserdata(L, ENTRY_BYTES);
    const int rc = by_name ? getpwnam_r(name, &entry, text, ENTRY_BYTES, &found)
                           : getpwuid_r(uid, &entry, text, ENTRY_BYTES, &found);
    if (!found) {
        return rc != 0 ? dm_lua_fail(L, -rc, "getuser") : no_such(L, "user", 1);
    }
    lua_createtable(L, 0, 6);
    dm_lua_set_number(L, "uid", entry.pw_uid);
    dm_lua_set_number(L, "gid", entry.pw_gid);
    dm_lua_set_string(L, "name", entry.pw_name);
    dm_lua_set_string(L, "dir", entry.pw_dir);
    dm_lua_set_string(L, "shell", entry.pw_shell && *entry.pw_shell ? entry.pw_shell : "/bin/sh");
    set_groups(L, &entry);
    return 1;
}

/* getgroup(name | gid) -> gid */
int core_getgroup(lua_State *L) {
    struct group entry, *found = NULL;
    const bool by_name = lua_type(L, 1) == LUA_TSTRING;
    const char *name = by_name ? lua_tostring(L, 1) : NULL;
    const gid_t gid = by_name ? 0 : (gid_t)luaL_checknumber(L, 1);
    char *text = lua_newuserdata(L, ENTRY_BYTES);
    const int rc = by_name ? getgrnam_r(name, &entry, text, ENTRY_BYTES, &found)
                           : getgrgid_r(gid, &entry, text, ENTRY_BYTES, &found);
    if (!found) {
        return rc != 0 ? dm_lua_fail(L, -rc, "getgroup") : no_such(L, "group", 1);
    }
    lua_pushnumber(L, entry.gr_gid);
    return 1;
}

int core_pid(lua_State *L) {
    lua_pushinteger(L, dm_identity());
    return 1;
}

int core_uid(lua_State *L) {
    lua_pushnumber(L, geteuid());
    return 1;
}

int core_hostname(lua_State *L) {
    char name[HOST_NAME_MAX + 1] = "";
    gethostname(name, sizeof name - 1);
    lua_pushstring(L, name);
    return 1;
}

/* The first of several variables of one name, as getenv does. */
int core_environ(lua_State *L) {
    lua_newtable(L);
    for (char **variable = environ; variable && *variable; variable++) {
        const char *equals = strchr(*variable, '=');
        if (!equals || equals == *variable) {
            continue;
        }
        lua_pushlstring(L, *variable, (size_t)(equals - *variable));
        lua_pushvalue(L, -1);
        lua_rawget(L, -3); /* table, name, known */
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_pushstring(L, equals + 1);
            lua_rawset(L, -3);
        } else {
            lua_pop(L, 2);
        }
    }
    return 1;
}

int core_cwd(lua_State *L) {
    char path[PATH_MAX];
    const int rc = dm_cwd(path, sizeof path);
    if (rc != 0) {
        return dm_lua_fail(L, rc, "working directory");
    }
    lua_pushstring(L, path);
    return 1;
}

/* cpus([root]) */
int core_cpus(lua_State *L) {
    lua_pushinteger(L, dm_cpus(luaL_optstring(L, 1, "")));
    return 1;
}

int core_executable(lua_State *L) {
    char path[PATH_MAX];
    dm_executable(path, sizeof path);
    lua_pushstring(L, path);
    return 1;
}

/* idle(pid): whether it sleeps in its event loop; nil where that cannot be seen. */
int core_idle(lua_State *L) {
    return dm_lua_result_maybe(L, dm_proc_idle((pid_t)luaL_checkinteger(L, 1)));
}

int core_image(lua_State *L) {
    lua_pushstring(L, dm_image());
    return 1;
}

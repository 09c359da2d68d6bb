/* main.c: the order in which things come up, and in reverse go down. What is done when is decided
 * in lua/dutch-master/; how it is done, in the other files here. */
#include "core.h"
#include "keeper/handoff.h"
#include "keeper/keeper.h"
#include "lua/state.h"
#include "script/script_main.h"
#include "worker/worker_main.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_PANIC = 70, EXIT_SYSTEM = 71 };

/* Otherwise the loop's epoll would get number 0 to 2, and libuv aborts when it closes that. */
static void open_standard_fds(void) {
    int fd;
    do {
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    } while (fd >= 0 && fd <= 2 && fcntl(fd, F_SETFD, 0) == 0);
    if (fd > 2) {
        close(fd);
    }
}

/* Whether this is a master with a keeper, and no verb: known before anything else exists in this
 * process. What is what is cli.lua's to say; a spec compares the two. */
static bool wants_keeper(int argc, char **argv) {
    static const char *const verbs[] = {
        "check", "plan",    "status",     "top",     "why",     "events", "logs",
        "list",  "metrics", "web",        "restart", "reload",  "scale",  "upgrade",
        "stop",  "init",    "completion", "help",    "version",
    };
    const int script = argc > 1 && strcmp(argv[1], "--") == 0 ? 2 : 1;
    if (script >= argc || (script == 1 && argv[1][0] == '-') || access(argv[script], F_OK) != 0) {
        return false;
    }
    for (size_t i = 0; script == 1 && i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(argv[1], verbs[i]) == 0) {
            return false;
        }
    }
    for (int i = script + 1; i < argc && strcmp(argv[i], "--watch") != 0; i++) {
        if (strcmp(argv[i], "--no-keeper") == 0) {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv) {
    static struct dm_core core;
    struct dm_keeper_link link = {.socket = -1};
    uv_loop_t loop;
    int code = EXIT_PANIC;

    if (!dm_handoff_is_there()) { /* else all of them are blocked */
        dm_signals_hold();
    }
    open_standard_fds();
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "--lua-worker") == 0) {
        dm_signals_release();
        return dm_lua_worker_main(argc, argv);
    } else if (argc > 1 && strcmp(argv[1], "--script-process") == 0) {
        dm_signals_release();
        return dm_script_main();
    }
    if (wants_keeper(argc, argv) && !dm_keeper_run(&link, argv, &code)) {
        return code;
    }
    signal(SIGXFSZ, SIG_IGN); /* a log file at its size limit is an error of write(), not our end */
    if (uv_loop_init(&loop) != 0) {
        goto out;
    }
    if (dm_core_init(&core, &loop, &link) != 0) {
        code = EXIT_SYSTEM;
        goto out_loop;
    }
    struct lua_State *L = dm_lua_state_open(&core);
    if (!L) {
        goto out_core;
    }

    code = dm_lua_state_enter(L, argc, argv);
    if (code == DM_LUA_RUN) {
        uv_run(&loop, UV_RUN_DEFAULT);
        code = core.stopped ? core.exit_code : EXIT_PANIC;
    } else if (code == DM_LUA_PANIC) {
        code = EXIT_PANIC;
    }

    if (code == EXIT_PANIC && core.kept.open) {
        abort(); /* the workers live, and the keeper starts another master */
    }
    dm_children_stop_all(&core);
    dm_lua_state_close(L);
out_core:
    dm_core_deinit(&core);
out_loop:
    dm_core_close_loop(&loop);
out:
    return code;
}

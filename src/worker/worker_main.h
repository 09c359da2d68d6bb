/* worker/worker_main.h: `dutch-master --lua-worker SCRIPT [ARGS...]`, the process that runs a Lua
 * worker.
 */
#pragma once

/* Takes main's own argc and argv: argv[1] is "--lua-worker", argv[2] the script. */
int dm_lua_worker_main(int argc, char **argv);

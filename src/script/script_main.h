/* script/script_main.h: `dutch-master --script-process`, the process that evaluates the user's
 * script and runs its hooks. Its only partner is the master, on descriptor 3. */
#pragma once

/* Ends with the socket. */
int dm_script_main(void);

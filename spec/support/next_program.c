/* next_program.c: a program that a master can be told to become, for spec/e2e/upgrade_spec.lua.
 * Says of itself what `upgrade` asks (-DSTATE=N); then goes back to the program that it took the
 * place of, as one does that does not understand what it was handed; or becomes REAL, with Lua from
 * TREE.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char self[4096] = "", value[64];
    if (argc > 1 && strcmp(argv[1], "--state") == 0) {
        (void)!readlink("/proc/self/exe", self, sizeof self - 1);
        printf("state: %d\nversion: 9.9.9\nimage: %s\n", STATE, self);
        return 0;
    }
#ifdef REAL
    setenv("DUTCH_MASTER_LUA", TREE, 1);
    execv(REAL, argv);
#else
    int pid, handoff, former;
    const char *text = getenv("DUTCH_MASTER_HANDOFF");
    if (!text || sscanf(text, "%d %d %d", &pid, &handoff, &former) != 3) {
        return 99;
    }
    snprintf(value, sizeof value, "%d %d -1", pid, handoff);
    setenv("DUTCH_MASTER_HANDOFF", value, 1);
    fcntl(former, F_SETFD, FD_CLOEXEC);
    fexecve(former, argv, environ);
#endif
    (void)value;
    return 98;
}

/* outlive.h: work that is done to its end even if this process is killed in the middle of it. libc
 * alone. */
#pragma once

/* Calls work(arg) and waits for it. It runs in a process of its own that shares our memory and our
 * descriptors (clone(2): CLONE_VM, CLONE_FILES) while this thread stands still, so that whoever
 * kills this process kills the work neither before its first step nor between two of them. It must
 * not take a lock that another thread may hold, end the process, or jump out; after some seconds it
 * is killed where it is. Where no such process can be made, it runs in this one. */
void dm_outlive(void (*work)(void *arg), void *arg);

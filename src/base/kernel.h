/* kernel.h: what the kernel has and the headers of older C libraries do not. */
#pragma once

/* linux/wait.h: waitid's type for a pidfd; missing in glibc before 2.36. */
enum { DM_P_PIDFD = 3 };

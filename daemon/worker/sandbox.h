// What a mode may ask of the kernel once it has started. Entered after the device is open and
// before anything hostile is read; there is no way back.
#pragma once

enum nb_sandbox {
    NB_SANDBOX_LOAD,
    NB_SANDBOX_JOB,          // as LOAD, with threads and answers from the broker
    NB_SANDBOX_JOB_VULKAN,   // with a driver in the process too
    NB_SANDBOX_SERVE,        // on the CPU
    NB_SANDBOX_SERVE_VULKAN, // with a driver in the process
};

// No new privileges, no core dumps, not traceable, few fds, and the profile's system calls alone
// (any other fails with EPERM), for every thread of the process. Negative errno.
int nb_sandbox_enter(enum nb_sandbox profile);

// Limits what this process and its later threads may open to what drivers need (files.c). To be
// called before a driver is loaded. -ENOSYS or -EOPNOTSUPP: this kernel has no Landlock.
int nb_sandbox_files(void);

// What a machine's files say it allows: trees of such files, made up, and the real groups where
// this process may make one. Asserts figures and names.
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/device.h"
#include "machine/bounds.h"

static char root[] = "/tmp/nibble-machine-XXXXXX";

static void put(const char *path, const char *text)
{
    char whole[PATH_MAX];
    snprintf(whole, sizeof(whole), "%s%s", root, path);
    for (char *slash = whole + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        mkdir(whole, 0700);
    }
    FILE *f = fopen(whole, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    return remove(path);
}

static int setup(void **state)
{
    memset(root + strlen(root) - 6, 'X', 6);
    if (!mkdtemp(root))
        return -1;
    put("/proc/meminfo", "MemTotal:  1000000 kB\nMemFree: 5 kB\nMemAvailable:  800000 kB\n");
    return 0;
}

static int teardown(void **state)
{
    return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void put_v2(const char *own)
{
    char line[300];
    snprintf(line, sizeof(line), "0::%s\n", own);
    put("/proc/self/cgroup", line);
    put("/proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/a rw\n"
                                "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 "
                                "rw,nsdelegate\n");
}

static void put_v1(const char *own, const char *mount_root)
{
    char text[600];
    snprintf(text, sizeof(text), "4:memory:%s\n3:cpuset:/\n1:cpu,cpuacct:%s\n0::/\n", own, own);
    put("/proc/self/cgroup", text);
    snprintf(text, sizeof(text),
             "32 31 0:29 %s /sys/fs/cgroup/cpu\\040and rw - cgroup cgroup rw,cpu,cpuacct\n"
             "35 31 0:32 %s /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
             "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
             mount_root, mount_root);
    put("/proc/self/mountinfo", text);
}

static uint32_t quota(void)
{
    struct nb_cpu_quota q;
    nb_cpu_quota(root, &q);
    return q.thousandths;
}

static void test_no_groups(void **state)
{
    struct nb_memory_room m;
    nb_memory_room(root, &m);
    assert_int_equal(m.room, UINT64_C(800000) << 10);
    assert_int_equal(m.limit, UINT64_C(1000000) << 10);
    assert_int_equal(m.used, UINT64_C(200000) << 10);
    assert_string_equal(m.group, "");
    assert_int_equal(quota(), 0);
}

static void test_v2(void **state)
{
    struct nb_cpu_quota q;
    struct nb_memory_room m;
    put_v2("/system.slice/nibble.service");
    put("/sys/fs/cgroup/system.slice/nibble.service/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
    put("/sys/fs/cgroup/system.slice/nibble.service/memory.max", "max\n");
    put("/sys/fs/cgroup/system.slice/nibble.service/memory.high", "3000000\n");
    put("/sys/fs/cgroup/system.slice/nibble.service/memory.current", "1500000\n");
    put("/sys/fs/cgroup/system.slice/nibble.service/memory.stat",
        "anon 5\ninactive_file 400000\nactive_file 100000\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "9000000\n");
    nb_cpu_quota(root, &q);
    assert_int_equal(q.thousandths, 1500);
    assert_string_equal(q.group, "/system.slice");
    nb_memory_room(root, &m);
    assert_int_equal(m.limit, 3000000);
    assert_int_equal(m.used, 1000000);
    assert_int_equal(m.room, 2000000);
    assert_string_equal(m.group, "/system.slice/nibble.service");
    put("/sys/fs/cgroup/cpu.max", "50000 100000\n"); // a container's own highest group
    assert_int_equal(quota(), 500);
}

static void test_v1(void **state)
{
    struct nb_memory_room m;
    put_v1("/a/b", "/");
    put("/sys/fs/cgroup/cpu and/a/b/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu and/a/b/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    nb_memory_room(root, &m);
    assert_string_equal(m.group, "");
    assert_int_equal(quota(), 0);
    put("/sys/fs/cgroup/cpu and/a/cpu.cfs_quota_us", "50000\n");
    put("/sys/fs/cgroup/cpu and/a/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "62914560\n");
    put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "20000000\n");
    put("/sys/fs/cgroup/memory/a/memory.stat", "cache 9\ntotal_inactive_file 5000000\n");
    nb_memory_room(root, &m);
    assert_int_equal(m.limit, 62914560);
    assert_int_equal(m.used, 15000000);
    assert_string_equal(m.group, "/a");
    assert_int_equal(quota(), 500);
}

// Without a namespace of its own, a container sees its group at the mount's top, under the
// machine's name.
static void test_container(void **state)
{
    struct nb_memory_room m;
    put_v1("/docker/0123456789", "/docker/0123456789");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "2000000\n");
    nb_memory_room(root, &m);
    assert_int_equal(m.limit, 1000000);
    assert_int_equal(m.room, 0);
    assert_string_equal(m.group, "/");
    put_v2("/../outside");
    put("/sys/fs/cgroup/cpu.max", "20000 100000\n");
    assert_int_equal(quota(), 200);
}

// Nothing in such a file makes more than "no limit" of it.
static void test_nonsense(void **state)
{
    static const char *const wrong[] = {"",
                                        "max",
                                        "0 0\n",
                                        "-5 100000\n",
                                        "5\n",
                                        "5 \n",
                                        "1e9 100000",
                                        "99999999999999999999 1\n",
                                        "x 100000\n",
                                        "5 -1\n",
                                        "18446744073709551615 1\n"};
    put_v2("/g");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        put("/sys/fs/cgroup/g/cpu.max", wrong[i]);
        assert_int_equal(quota(), 0);
    }
    static const char *const lines[] = {
        "", ":", "::", "0:", "0::", "0::g\n", "0\n::/g\n", "cpu:cpu\n"};
    put("/sys/fs/cgroup/g/cpu.max", "50000 100000\n");
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        put("/proc/self/cgroup", lines[i]);
        assert_int_equal(quota(), 0);
    }
    put("/proc/self/cgroup", "0::/g\n");
    static const char *const mounts[] = {"",
                                         " - \n",
                                         "1 2 3 - cgroup2 a b\n",
                                         "1 2 3 4 5 6 - cgroup2\n",
                                         "1 2 3 / x rw - cgroup2 a b\n",
                                         "1 2 3 x /y rw - cgroup2 a b\n"};
    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
        put("/proc/self/mountinfo", mounts[i]);
        assert_int_equal(quota(), 0);
    }
}

// A line longer than any that counts is none at all, and neither are its pieces.
static void test_long_lines(void **state)
{
    char *text = malloc(40000);
    assert_non_null(text);
    memset(text, 'x', 30000);
    snprintf(text + 8191, 40000 - 8191, "0::/g\n0::/h\n");
    put_v2("/g");
    put("/proc/self/cgroup", text);
    put("/sys/fs/cgroup/g/cpu.max", "10000 100000\n");
    put("/sys/fs/cgroup/h/cpu.max", "20000 100000\n");
    assert_int_equal(quota(), 200);
    free(text);
}

static void test_long_names(void **state)
{
    struct nb_cpu_quota q;
    char name[200] = "/", path[300];
    memset(name + 1, 'a', 120);
    memcpy(name + 121, "/end", sizeof("/end"));
    put_v2(name);
    snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", name);
    put(path, "100000 100000\n");
    nb_cpu_quota(root, &q);
    assert_int_equal(q.thousandths, 1000);
    assert_int_equal(strlen(q.group), NB_GROUP_NAME - 1);
    assert_memory_equal(q.group, "...a", 4);
    assert_string_equal(q.group + strlen(q.group) - 4, "/end");
}

static void test_threads(void **state)
{
    static const struct {
        uint32_t cores, allowed, thousandths, threads;
        const char *why;
    } cases[] = {
        {8, 8, 0, 8, ""},
        {8, 8, 500, 1, "control group /g grants 0.50 CPUs"},
        {8, 8, 1, 1, "control group /g grants 0.00 CPUs"},
        {8, 8, 2990, 2, "control group /g grants 2.99 CPUs"},
        {8, 8, 16000, 8, ""},
        {8, 3, 0, 3, "it may use 3 of 8 cores"},
        {8, 3, 8000, 3, "it may use 3 of 8 cores"},
        {8, 3, 2000, 2, "control group /g grants 2.00 CPUs"},
        {1, 1, 250, 1, ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct nb_cpu_quota q = {.thousandths = cases[i].thousandths, .group = "/g"};
        struct nb_cpu_allowed allowed;
        nb_cpu_allow(cases[i].cores, cases[i].allowed, &q, &allowed);
        assert_int_equal(allowed.threads, cases[i].threads);
        assert_string_equal(allowed.why, cases[i].why);
    }
}

static void test_reasons(void **state)
{
    char text[NB_LIMIT_TEXT];
    const struct rlimit files = {12, 12}, size = {1000 << 10, RLIM_INFINITY};
    struct rlimit old;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &size), 0);
    nb_limit_reason(-EFBIG, text);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_string_equal(text, "File too large: this process may make files of 1000 KiB (raise it: "
                              "ulimit -f, LimitFSIZE=)");
    assert_string_equal(nb_limit_reason(EMFILE, text),
                        "Too many open files: this process may have 12 descriptors (raise it: "
                        "ulimit -n, LimitNOFILE=)");
    assert_string_equal(nb_limit_reason(-ENOENT, text), "No such file or directory");
    if (nb_process_limit(RLIMIT_AS) == NB_NO_LIMIT && nb_process_limit(RLIMIT_DATA) == NB_NO_LIMIT)
        assert_string_equal(nb_limit_reason(-ENOMEM, text), "Cannot allocate memory");
}

// ---- The real ones

struct real {
    char dir[PATH_MAX];
};

static void keep_first(void *user, const struct nb_group *group)
{
    struct real *real = user;
    const char *file = group->version == 1 ? "cpu.cfs_quota_us" : "cpu.max";
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", group->dir, file);
    // The highest group of version 2 has no such file, and its children have one where it allows
    // the controller.
    if (!*real->dir && (!access(path, F_OK) || group->version == 2))
        snprintf(real->dir, sizeof(real->dir), "%s", group->dir);
}

static bool write_into(const char *dir, const char *file, const char *text)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    FILE *f = fopen(path, "we");
    bool good = f && fputs(text, f) >= 0;
    return f && !fclose(f) && good;
}

// Skipped only where no group can be made.
static void test_real_quota(void **state)
{
    struct real real = {""};
    char dir[PATH_MAX + 32], self[32];
    nb_groups_each("", "cpu", keep_first, &real);
    snprintf(dir, sizeof(dir), "%s/nibble-test-%d", real.dir, (int)getpid());
    if (!*real.dir || mkdir(dir, 0700) < 0) {
        print_message("no control group can be made here: skipped\n");
        skip();
    }
    snprintf(self, sizeof(self), "%d", (int)getpid());
    bool set =
        write_into(dir, "cpu.max", "50000 100000") || write_into(dir, "cpu.cfs_quota_us", "50000");
    bool in = set && write_into(dir, "cgroup.procs", self);
    struct nb_cpu_quota q;
    nb_cpu_quota("", &q);
    struct nb_cpu_allowed allowed;
    int rc = nb_cpu_allowed(&allowed);
    write_into(real.dir, "cgroup.procs", self);
    rmdir(dir);
    if (!in) {
        print_message("a control group has no quota here: skipped\n");
        skip();
    }
    assert_int_equal(q.thousandths, 500);
    assert_int_equal(rc, 0);
    assert_int_equal(allowed.threads, 1);
}

int main(void)
{
#define IN_A_TREE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_A_TREE(test_no_groups),
        IN_A_TREE(test_v2),
        IN_A_TREE(test_v1),
        IN_A_TREE(test_container),
        IN_A_TREE(test_nonsense),
        IN_A_TREE(test_long_lines),
        IN_A_TREE(test_long_names),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_real_quota),
        cmocka_unit_test(test_reasons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// What the probe makes of device nodes, with a folder that stands for /sys.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/worker/nodes.h"

static char sys[] = "/tmp/nibble-sys-XXXXXX";
static struct nb_link_device npus[4];
static size_t n_npus;

static void on_npu(const struct nb_link_device *device)
{
    assert_true(n_npus < 4);
    npus[n_npus++] = *device;
}

static void put(const char *path, const char *text)
{
    char full[256];
    snprintf(full, sizeof(full), "%s/%s", sys, path);
    for (char *c = full + strlen(sys) + 1; (c = strchr(c, '/')); *c++ = '/') {
        *c = '\0';
        mkdir(full, 0700);
    }
    FILE *f = fopen(full, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void npus_are_present_and_unused(void **state)
{
    char link[256], command[64];
    assert_non_null(mkdtemp(sys));
    nb_npu_list(sys, on_npu);
    assert_int_equal(n_npus, 0); // no such class
    put("class/accel/accel0/dev", "261:0\n");
    put("class/accel/accel0/device/vendor", "0x8086\n");
    put("class/accel/accel0/device/device", "0x7d1d\n");
    put("bus/pci/drivers/intel_vpu/bind", "");
    snprintf(link, sizeof(link), "%s/class/accel/accel0/device/driver", sys);
    assert_int_equal(symlink("../../../../bus/pci/drivers/intel_vpu", link), 0);
    put("class/accel/accel1/dev", "261:1\n"); // on a board: no PCI, no driver link
    nb_npu_list(sys, on_npu);
    snprintf(command, sizeof(command), "rm -r %s", sys);
    assert_int_equal(system(command), 0);
    assert_int_equal(n_npus, 2);
    const struct nibble_device *d = &npus[0].device;
    assert_string_equal(d->name, "npu0");
    assert_string_equal(d->kind, "npu");
    assert_string_equal(d->state, "unusable");
    assert_string_equal(d->node, "/dev/accel/accel0");
    assert_string_equal(d->driver, "intel_vpu");
    assert_non_null(strstr(d->description, "0x8086:0x7d1d"));
    assert_non_null(strstr(d->reason, "no Vulkan driver"));
    assert_non_null(strstr(d->reason, "intel_vpu"));
    assert_int_equal(npus[0].number, makedev(261, 0));
    assert_string_equal(npus[1].device.name, "npu1");
    assert_string_equal(npus[1].device.driver, "unknown");
}

static void a_device_without_a_node_has_none(void **state)
{
    struct nb_link_device device = {0};
    nb_node_of_gpu(&(struct nb_device_info){.name = "vulkan0"}, &device);
    nb_node_of_gpu(&(struct nb_device_info){.drm_major = 226, .drm_minor = 4000}, &device);
    nb_node_of_gpu(&(struct nb_device_info){.pci = "ffff:ff:1f.7"}, &device);
    assert_string_equal(device.device.node, "");
    assert_int_equal(device.number, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(npus_are_present_and_unused),
        cmocka_unit_test(a_device_without_a_node_has_none),
    };
    return cmocka_run_group_tests_name("device nodes", tests, NULL, NULL);
}

// What the broker makes of events of device nodes: its devices are one of a known number, and what
// is told to others is counted.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "daemon/broker.h"
#include "daemon/device.h"
#include "daemon/hotplug.h"
#include "daemon/inventory.h"
#include "daemon/log.h"
#include "daemon/probe.h"

static struct nb_device one = {.number = 0xe280};
static int gone, probes;

struct nb_device *nb_device_by_number(struct nb_broker *broker, uint64_t number)
{
    return number == one.number ? &one : NULL;
}

void nb_device_gone(struct nb_device *device, const char *why)
{
    assert_ptr_equal(device, &one);
    assert_true(*why);
    gone++;
}

void nb_probe_later(struct nb_broker *broker)
{
    probes++;
}

void nb_log(int priority, const char *format, ...)
{
}

static void events_go_by_number(void **state)
{
    static struct nb_broker broker;
    nb_hotplug_event(&broker, 1, 0xe201); // a display's node, or a device that is not ours
    assert_int_equal(gone + probes, 0);
    nb_hotplug_event(&broker, 1, one.number);
    assert_int_equal(gone, 1);
    assert_int_equal(probes, 0);
    nb_hotplug_event(&broker, 0,
                     one.number); // the number is used again: only a driver knows by whom
    assert_int_equal(gone, 1);
    assert_int_equal(probes, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(events_go_by_number)};
    return cmocka_run_group_tests_name("hotplug", tests, NULL, NULL);
}

// What a device keeps from start to start: a blob is taken only whole and only by the device,
// driver and build that wrote it. Every truncation and every changed bit of one is refused before a
// driver sees it, and a device given rubbish is as good as one given nothing.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "engine/device.h"
#include "engine/vulkan/cache.h"
#include "engine/vulkan/tier.h"
#include "tensor/fail.h"
#include "tests/support/cpu_driver.h"

#define HEAD 104 // bytes before the choices; the last 16 are the driver's size and the hash

static const struct nb_vulkan_cache_id id = {.vendor = 0x1002,
                                             .device = 0x73bf,
                                             .driver_version = 7,
                                             .device_uuid = "device of test",
                                             .driver_uuid = "driver of test",
                                             .pipeline_uuid = "pipelines, test",
                                             .shaders = 0x0123456789abcdef};

static const struct nb_vulkan_choice choices[] = {{.gemm = 11, .tile = {0, 1, 2, 2}},
                                                  {.gemm = 12, .tile = {2, 1, 0, 0, 1}}};

struct blob {
    uint8_t *data;
    size_t bytes;
};

// What a driver may have to say: its header, then bytes of its own.
static struct blob make_blob(void)
{
    uint32_t pipelines[16] = {32, 1, id.vendor, id.device};
    memcpy(&pipelines[4], id.pipeline_uuid, sizeof(id.pipeline_uuid));
    for (uint32_t i = 8; i < 16; i++)
        pipelines[i] = i * 0x9e3779b9u;
    struct nb_vulkan_cache_parts parts = {.pipelines = pipelines,
                                          .pipelines_bytes = sizeof(pipelines),
                                          .choices = choices,
                                          .n_choices = 2};
    struct blob b;
    void *data;
    assert_int_equal(nb_vulkan_cache_write(&id, &parts, &data, &b.bytes), 0);
    assert_int_equal(b.bytes, HEAD + sizeof(choices) + sizeof(pipelines));
    b.data = data;
    return b;
}

// After a change of the content that whoever made it has hashed again.
static void rehash(const struct blob *b)
{
    uint64_t hash = XXH3_64bits(b->data + HEAD, b->bytes - HEAD);
    memcpy(b->data + HEAD - sizeof(hash), &hash, sizeof(hash));
}

static int check(const struct blob *b, const struct nb_vulkan_cache_id *who)
{
    struct nb_vulkan_cache_parts parts = {.hash = 99};
    int rc = nb_vulkan_cache_read(b->data, b->bytes, who, &parts);
    assert_true(rc == 0 ? parts.pipelines != NULL : parts.hash == 99 && !parts.pipelines);
    return rc;
}

static void there_and_back(void **state)
{
    struct blob b = make_blob();
    struct nb_vulkan_cache_parts parts;
    assert_int_equal(nb_vulkan_cache_read(b.data, b.bytes, &id, &parts), 0);
    assert_int_equal(parts.n_choices, 2);
    assert_memory_equal(parts.choices, choices, sizeof(choices));
    assert_int_equal(parts.pipelines_bytes, 64);
    free(b.data);
}

static void damaged(void **state)
{
    struct blob b = make_blob();
    size_t whole = b.bytes;
    for (b.bytes = 0; b.bytes < whole; b.bytes++) {
        // A copy of its own size, so that a read past the end is seen by the sanitizers.
        struct blob cut = {malloc(b.bytes ? b.bytes : 1), b.bytes};
        assert_non_null(cut.data);
        memcpy(cut.data, b.data, b.bytes);
        assert_int_not_equal(check(&cut, &id), 0);
        free(cut.data);
    }
    for (size_t bit = 0; bit < whole * 8; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (check(&b, &id) == 0)
            fail_msg("bit %zu of byte %zu may change unseen", bit % 8, bit / 8);
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_int_equal(check(&b, &id), 0);
    b.data = realloc(b.data, whole + 1);
    assert_non_null(b.data);
    b.data[whole] = 0;
    b.bytes = whole + 1;
    assert_int_equal(check(&b, &id), -EINVAL);
    free(b.data);
}

static void of_another(void **state)
{
    struct blob b = make_blob();
    for (size_t byte = 0; byte < sizeof(id); byte++) {
        struct nb_vulkan_cache_id other = id;
        ((uint8_t *)&other)[byte] ^= 1;
        assert_int_equal(check(&b, &other), -ESTALE);
    }
    free(b.data);
}

// Whole, hashed, and still not what a device writes.
static void senseless(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } changes[] = {
        {HEAD + 8, NB_TIER_TILES},           // a tile that there is not
        {HEAD + 8 + NB_VULKAN_BUCKETS, 1},   // a bucket that there is not
        {HEAD + sizeof(choices), 31},        // a driver's header too short
        {HEAD + sizeof(choices), 65},        // ... longer than its data
        {HEAD + sizeof(choices) + 4, 2},     // ... of another version
        {HEAD + sizeof(choices) + 8, 0xff},  // ... of another vendor
        {HEAD + sizeof(choices) + 12, 0xff}, // ... of another device
        {HEAD + sizeof(choices) + 16, 'P'},  // ... with another UUID
    };
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct blob b = make_blob();
        b.data[changes[i].at] = changes[i].value;
        rehash(&b);
        if (check(&b, &id) == 0)
            fail_msg("change %zu is taken", i);
        free(b.data);
    }
}

static const char *device;

// What the device has to keep, or 0 bytes.
static struct blob save(const struct blob *given)
{
    const struct nb_device_options o = {.cache = given ? given->data : NULL,
                                        .cache_bytes = given ? given->bytes : 0};
    struct nb_device *d;
    struct nb_error error;
    if (nb_device_create(device, &o, &d, &error) < 0)
        fail_msg("%s", error.text);
    struct blob b = {0};
    void *data = NULL;
    int rc = d->ops->cache(d, &data, &b.bytes);
    assert_int_equal(rc, data ? 1 : 0);
    assert_int_equal(d->ops->cache(d, &data, &b.bytes), 0); // nothing new since
    d->ops->destroy(d);
    b.data = data;
    return b;
}

static void a_device(void **state)
{
    struct blob first = save(NULL);
    assert_non_null(first.data);
    assert_null(save(&first).data); // it is taken: there is nothing else to keep
    struct blob foreign = make_blob(), damaged_one = save(&foreign);
    assert_int_equal(damaged_one.bytes, first.bytes);
    damaged_one.data[damaged_one.bytes - 1] ^= 1;
    struct blob again = save(&damaged_one);
    assert_int_equal(again.bytes, first.bytes);
    struct blob huge = {first.data, SIZE_MAX};
    struct blob after = save(&huge);
    assert_int_equal(after.bytes, first.bytes);
    free(first.data);
    free(foreign.data);
    free(damaged_one.data);
    free(again.data);
    free(after.data);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    return device ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back), cmocka_unit_test(damaged),  cmocka_unit_test(of_another),
        cmocka_unit_test(senseless),      cmocka_unit_test(a_device),
    };
    return cmocka_run_group_tests(tests, find_device, NULL);
}

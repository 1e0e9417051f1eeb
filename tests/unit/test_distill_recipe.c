// Recipes of trainings: what is taken, and that whatever else is refused in one line.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "distill/train_recipe.h"
#include "engine/sampler.h"

static void recipes(void **state)
{
    static struct nb_train_recipe r;
    static const char *const bad[] = {"",
                                      "[]",
                                      "{\"layers\": 0}",
                                      "{\"layers\": [3, 1]}",
                                      "{\"layers\": []}",
                                      "{\"layers\": \"six\"}",
                                      "{\"rate\": -1}",
                                      "{\"rate\": \"fast\"}",
                                      "{\"length\": 12.5}",
                                      "{\"length\": 4}",
                                      "{\"schedule\": \"steep\"}",
                                      "{\"start\": 1}",
                                      "{\"activations\": \"static\"}",
                                      "{\"scales\": \"fixed\"}",
                                      "{\"vocabulary\": -1}",
                                      "{\"states\": 1}",
                                      "{\"own\": 1.5}",
                                      "{\"states\": 17}",
                                      "{\"vocabulary\": \"half\"}",
                                      "{\"adapter\": {}, \"vocabulary\": 0.5}",
                                      "{\"adapter\": {}, \"activations\": \"dynamic\"}",
                                      "{\"to\": 5}",
                                      "{\"layer\": 6}",
                                      "{\"qat\": 1}",
                                      "{\"mix\": 0.5, \"hard\": 1}",
                                      "{\"adapter\": {}, \"temperature\": 2}",
                                      "{\"scales\": \"learned\"}",
                                      "{\"layers\": [0, 1], \"layers_by\": \"evenly\"}",
                                      "{\"seed\": 1, \"seed\": 2}",
                                      "{\"tokens\": 1e300}",
                                      "{\"cosine\": -1}",
                                      "{\"relation\": \"all\"}",
                                      "{\"adapter\": 8}",
                                      "{\"adapter\": {\"rank\": 0}}",
                                      "{\"adapter\": {\"alpha\": 0}}",
                                      "{\"adapter\": {\"matrices\": []}}",
                                      "{\"adapter\": {\"matrices\": [1]}}",
                                      "{\"adapter\": {\"matrices\": \"attn_q\"}}",
                                      "{\"adapter\": {\"matrix\": 1}}",
                                      "{\"adapter\": {}, \"to\": \"Q8_0\"}",
                                      "{\"adapter\": {}, \"layers\": 2}",
                                      "{\"device\": 0}",
                                      "{\"device\": \"vulkan\"}",
                                      "{\"device\": \"vulkan00000\"}",
                                      "{\"device\": \"vulkan0/..\"}",
                                      "{\"device\": \"vulkan0\\u0000\"}",
                                      "{\"device\": \"vulkan0\", \"adapter\": {}}",
                                      "{\"attention\": 1, \"device\": \"vulkan0\"}",
                                      "{\"device\": \"vulkan0\", \"precision\": \"bf16\"}",
                                      "{\"device\": \"vulkan0\", \"activations\": \"dynamic\"}"};
    struct nb_error error = {""};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (nb_train_recipe_parse(bad[i], strlen(bad[i]), &r, &error) != -EINVAL || !*error.text)
            fail_msg("%s: taken", bad[i]);
        assert_null(strchr(error.text, '\n'));
    }
    static const char good[] = "{\"layers\": [0, 5, 9], \"rate\": 1e-3, \"start\": \"random\", "
                               "\"schedule\": \"linear\", \"tokens\": 5e6, \"to\": \"Q8_0\"}";
    assert_int_equal(nb_train_recipe_parse(good, strlen(good), &r, &error), 0);
    assert_int_equal(r.layers, 3);
    assert_int_equal(r.from[2], 9);
    assert_true(r.start == NB_START_RANDOM && r.schedule == NB_SCHEDULE_LINEAR && r.length == 256);
    assert_string_equal(r.to, "Q8_0");
    assert_int_equal(r.adapter.rank, 0);
    static const char on[] = "{\"device\": \"vulkan12\", \"qat\": true, \"precision\": \"fp32\"}";
    assert_int_equal(nb_train_recipe_parse(on, strlen(on), &r, &error), 0);
    assert_string_equal(r.device, "vulkan12");
    static const char cpu[] = "{\"device\": \"cpu\", \"precision\": \"bf16\"}";
    assert_int_equal(nb_train_recipe_parse(cpu, strlen(cpu), &r, &error), 0);
    assert_string_equal(r.device, "");
    static const char adapter[] = "{\"adapter\": {\"matrices\": [\"attn_q\"]}}";
    assert_int_equal(nb_train_recipe_parse(adapter, strlen(adapter), &r, &error), 0);
    assert_true(r.adapter.rank == 8 && r.adapter.alpha == 16 && r.hard == 1);
    assert_true(r.adapter.n_roles == 1 && !strcmp(r.adapter.roles[0], "attn_q"));
    assert_string_equal(r.to, "F32");
    for (uint32_t i = 0; i < 20000; i++) { // any text is taken or refused, in one line
        char text[sizeof(good)];
        const size_t len = sizeof(good) - 1 - nb_random(1, i) % 20;
        memcpy(text, good, len);
        for (uint32_t j = 0; j <= i % 4; j++)
            text[nb_random(2 + j, i) % len] = (char)nb_random(9 + j, i);
        const int rc = nb_train_recipe_parse(text, len, &r, &error);
        assert_true(rc == 0 || (rc == -EINVAL && *error.text && !strchr(error.text, '\n')));
    }
}

// Keys that students of the other kind alone have, by their names.
static void kinds(void **state)
{
    static struct nb_train_recipe r;
    static const struct {
        const char *text, *of_logits, *of_vectors; // why it is refused; NULL: it is not
    } cases[] = {
        {"{\"layers\": 3, \"hidden\": 1}", NULL, NULL},
        {"{\"hard\": 0.1}", NULL, "\"hard\" is of logits, and this bert model"},
        {"{\"temperature\": 2}", NULL, "\"temperature\" is of logits"},
        {"{\"mix\": 0}", NULL, "\"mix\" is of logits"},
        {"{\"relation\": 0}", "\"relation\" is of vectors, and this bert model", NULL},
        {"{\"cosine\": 0, \"relation\": 0}", "\"relation\" is of vectors", "nothing is learnt"},
        {"{\"cosine\": 0, \"relation\": 0, \"hidden\": 2}", "is of vectors", NULL},
        {"{\"adapter\": {}}", NULL, "leave out \"adapter\""}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *why[] = {cases[i].of_logits, cases[i].of_vectors};
        struct nb_error error = {""};
        assert_int_equal(nb_train_recipe_parse(cases[i].text, strlen(cases[i].text), &r, &error),
                         0);
        for (enum nb_train_kind kind = 0; kind < NB_TRAIN_KINDS; kind++) {
            const int rc = nb_train_recipe_settle(&r, kind, "bert", &error);
            assert_int_equal(rc, why[kind] ? -EINVAL : 0);
            if (why[kind] && !strstr(error.text, why[kind]))
                fail_msg("%s", error.text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(recipes), cmocka_unit_test(kinds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

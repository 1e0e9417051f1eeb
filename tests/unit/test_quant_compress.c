// A compression's file: the same bytes whatever the number of threads, and wherever it was stopped
// and gone on with.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quant/compress.h"
#include "tests/support/random_model.h"

static const uint8_t key[NB_JOURNAL_KEY] = "a test";
static const char recipe_text[] =
    "{\"to\": \"Q4_0\", \"tensors\": [{\"match\": \"ffn_down\", \"to\": \"Q5_1\", \"sparse\": 0},"
    "{\"match\": \"attn_v\", \"to\": \"F16\"}, {\"match\": \"ffn_up\", \"sparse\": \"2:4\"}],"
    "\"embedding\": \"Q8_0\", \"sparse\": {\"share\": 0.5}}";

struct bytes {
    char *data;
    size_t len;
};

static struct bytes read_all(int fd)
{
    struct bytes b = {.len = (size_t)lseek(fd, 0, SEEK_END)};
    b.data = malloc(b.len + 1);
    assert_int_equal(pread(fd, b.data, b.len, 0), b.len);
    return b;
}

struct stop {
    uint32_t calls; // of progress that it stops at; 0: never
};

static int on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    struct stop *stop = user;
    assert_true(*what && done <= total);
    return stop->calls && --stop->calls == 0 ? -ECANCELED : 0;
}

static int run(int model, uint32_t threads, int result, int journal, uint32_t calls)
{
    const struct nb_source_file file = {"model.gguf", model};
    struct stop stop = {calls};
    struct nb_source *source = NULL;
    struct nb_recipe *recipe = NULL;
    struct nb_compress *c = NULL;
    struct nb_team *team = NULL;
    struct nb_error error = {""};
    assert_int_equal(nb_source_open_gguf(&file, 1, &source, &error), 0);
    assert_int_equal(nb_recipe_parse(recipe_text, strlen(recipe_text), false, &recipe, &error), 0);
    assert_int_equal(nb_team_create(threads, &team), 0);
    const struct nb_compress_options options = {.fd = result,
                                                .journal = journal,
                                                .key = key,
                                                .team = team,
                                                .progress = on_progress,
                                                .user = &stop};
    assert_int_equal(nb_compress_create(source, recipe, &options, &c, &error), 0);
    int rc = nb_compress_begin(c, &error);
    if (rc == 0)
        rc = nb_compress_finish(c, NULL, &error);
    if (rc == 0)
        assert_int_equal(lseek(result, 0, SEEK_END), nb_compress_size(c));
    nb_compress_destroy(c);
    nb_team_destroy(team);
    nb_recipe_free(recipe);
    nb_source_close(source);
    return rc;
}

static struct bytes made_by(int model, uint32_t threads)
{
    int result = memfd_create("result", MFD_CLOEXEC),
        journal = memfd_create("journal", MFD_CLOEXEC);
    assert_int_equal(run(model, threads, result, journal, 0), 0);
    struct bytes b = read_all(result);
    close(result);
    close(journal);
    return b;
}

static void assert_same(const struct bytes *a, struct bytes b)
{
    assert_int_equal(a->len, b.len);
    assert_memory_equal(a->data, b.data, b.len);
    free(b.data);
}

static void threads_do_not_show(void **state)
{
    int model = random_model_create(&RANDOM_MODEL);
    struct bytes alone = made_by(model, 1);
    for (uint32_t threads = 2; threads < 6; threads++)
        assert_same(&alone, made_by(model, threads));
    free(alone.data);
    close(model);
}

// Stopped at each chunk in turn, and then at the next but one, until it is done.
static void stops_do_not_show(void **state)
{
    int model = random_model_create(&RANDOM_MODEL);
    struct bytes alone = made_by(model, 2);
    for (uint32_t first = 1, rc = 1; rc; first++) {
        int result = memfd_create("result", MFD_CLOEXEC),
            journal = memfd_create("journal", MFD_CLOEXEC);
        rc = run(model, 2, result, journal, first) != 0;
        for (int n = 0; rc && run(model, 2, result, journal, 2); n++)
            assert_true(n < 100);
        assert_same(&alone, read_all(result));
        close(result);
        close(journal);
    }
    free(alone.data);
    close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_do_not_show),
        cmocka_unit_test(stops_do_not_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

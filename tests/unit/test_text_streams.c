// Streams of text: whole UTF-8 sequences alone leave, and never a part of a stop string, however
// the bytes are cut.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/text/stop.h"
#include "engine/text/utf8.h"

#define FFFD "\xef\xbf\xbd"

static size_t filter(const char *in, size_t len, size_t step, char *out)
{
    struct nb_utf8 u = {0};
    size_t n = 0;

    for (size_t i = 0; i < len; i += step)
        n += nb_utf8_push(&u, in + i, len - i < step ? len - i : step, out + n);
    return n + nb_utf8_finish(&u, out + n);
}

static void test_utf8_cases(void **unused)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain", "plain"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"a\x80z", "a" FFFD "z"},
        {"\xc0\xaf", FFFD FFFD},                   // overlong
        {"\xe0\x80\xaf", FFFD FFFD FFFD},          // overlong
        {"\xed\xa0\x80", FFFD FFFD FFFD},          // a surrogate
        {"\xf4\x90\x80\x80", FFFD FFFD FFFD FFFD}, // past U+10FFFF
        {"\xf0\x9f\x98x", FFFD "x"},               // cut short: one replacement
        {"\xe2\x82\xe2\x82\xac", FFFD "\xe2\x82\xac"},
        {"\xf1\x80\x80", FFFD},
        {"\xff\xfe", FFFD FFFD},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        for (size_t step = 1; step <= 5; step++) {
            char out[64];
            size_t n = filter(cases[i].in, strlen(cases[i].in), step, out);
            assert_int_equal(n, strlen(cases[i].out));
            assert_memory_equal(out, cases[i].out, n);
        }
}

// Nothing waits that could not change: a complete sequence leaves with its last byte.
static void test_utf8_holds_little(void **unused)
{
    struct nb_utf8 u = {0};
    char out[NB_UTF8_OUT(4)];

    assert_int_equal(nb_utf8_push(&u, "\xf0\x9f\x98", 3, out), 0);
    assert_int_equal(nb_utf8_push(&u, "\x80", 1, out), 4);
    assert_int_equal(nb_utf8_finish(&u, out), 0);
}

// On random bytes: the output is valid and does not depend on the cuts.
static void test_utf8_random(void **unused)
{
    char in[512], once[NB_UTF8_OUT(512)], twice[NB_UTF8_OUT(NB_UTF8_OUT(512))];

    srand(1);
    for (int round = 0; round < 500; round++) {
        for (size_t i = 0; i < sizeof(in); i++)
            in[i] = (char)(rand() % 3 ? 0x80 + rand() % 128 : rand() % 256);
        size_t n = filter(in, sizeof(in), 1 + (size_t)rand() % 7, once);
        assert_true(n <= NB_UTF8_OUT(sizeof(in)));
        assert_int_equal(filter(once, n, 1 + (size_t)rand() % 7, twice), n);
        assert_memory_equal(once, twice, n);
        assert_int_equal(filter(in, sizeof(in), sizeof(in), twice), n);
        assert_memory_equal(once, twice, n);
    }
}

static struct nb_stop *stop_of(const char *const *strings)
{
    struct nb_str s[NB_STOP_STRINGS_MAX];
    struct nb_stop *stop = NULL;
    size_t n = 0;

    for (; strings[n]; n++)
        s[n] = (struct nb_str){strings[n], strlen(strings[n])};
    assert_int_equal(nb_stop_create(s, n, &stop), 0);
    return stop;
}

// Feeds text in steps; returns what came out, and whether a stop string was found.
static bool run_stop(const char *const *strings, const char *in, size_t step, char *out)
{
    struct nb_stop *stop = stop_of(strings);
    size_t len = strlen(in), n = 0, written;
    bool found = false;

    for (size_t i = 0; i < len && !found; i += step) {
        found = nb_stop_push(stop, in + i, len - i < step ? len - i : step, out + n, &written);
        n += written;
    }
    n += nb_stop_finish(stop, out + n);
    out[n] = '\0';
    nb_stop_destroy(stop);
    return found;
}

static void test_stop_cases(void **unused)
{
    static const struct {
        const char *strings[4], *in, *out;
        bool found;
    } cases[] = {
        {{"END"}, "text END more", "text ", true},
        {{"END"}, "text EN", "text EN", false},
        {{"END"}, "EENEND", "EEN", true},
        {{"abab", "ba"}, "xabac", "xa", true},
        {{"aab"}, "aaaaab", "aaa", true},
        {{"abcd", "c"}, "abce", "ab", true},
        {{"bc", "abc"}, "xabc", "x", true}, // both end here: the longer one counts
        {{"\n\n", "User:"}, "one\nUse\nUser:", "one\nUse\n", true},
        {{NULL}, "anything", "anything", false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        for (size_t step = 1; step <= 6; step++) {
            char out[64 + NB_STOP_BYTES_MAX];
            assert_int_equal(run_stop(cases[i].strings, cases[i].in, step, out), cases[i].found);
            assert_string_equal(out, cases[i].out);
        }
}

// Only the longest possible beginning of a stop string waits.
static void test_stop_holds_little(void **unused)
{
    const char *const strings[] = {"\nUser:", NULL};
    struct nb_stop *stop = stop_of(strings);
    char out[NB_STOP_OUT(16)];
    size_t n;

    assert_false(nb_stop_push(stop, "hi\nUs", 5, out, &n));
    assert_int_equal(n, 2);
    assert_false(nb_stop_push(stop, "e", 1, out, &n));
    assert_int_equal(n, 0);
    assert_false(nb_stop_push(stop, "d", 1, out, &n));
    assert_int_equal(n, 5);
    assert_true(nb_stop_push(stop, "\nUser: x", 8, out, &n));
    assert_int_equal(n, 0);
    assert_true(nb_stop_push(stop, "later", 5, out, &n));
    assert_int_equal(n, 0);
    assert_int_equal(nb_stop_finish(stop, out), 0);
    nb_stop_destroy(stop);
}

// Against the definition: the stop string that ends first, and of those the longest.
static bool find_naively(const char *const *strings, const char *in, char *out)
{
    for (size_t end = 1; end <= strlen(in); end++) {
        size_t longest = 0;
        for (size_t i = 0; strings[i]; i++) {
            size_t len = strlen(strings[i]);
            if (len <= end && len > longest && memcmp(in + end - len, strings[i], len) == 0)
                longest = len;
        }
        if (longest) {
            sprintf(out, "%.*s", (int)(end - longest), in);
            return true;
        }
    }
    memcpy(out, in, strlen(in) + 1);
    return false;
}

static void test_stop_random(void **unused)
{
    srand(2);
    for (int round = 0; round < 20000; round++) {
        char text[3][8] = {"", "", ""}, in[40] = "", expected[64], out[64 + NB_STOP_BYTES_MAX];
        const char *strings[4] = {text[0], text[1], text[2], NULL};
        for (size_t i = 0; i < 3; i++)
            for (size_t k = 0, len = 2 + (size_t)rand() % 5; k < len; k++)
                text[i][k] = "ab"[rand() % 2];
        for (size_t k = 0; k < sizeof(in) - 1; k++)
            in[k] = "aabbc"[rand() % 5];
        bool found = find_naively(strings, in, expected);
        assert_int_equal(run_stop(strings, in, 1 + (size_t)rand() % 9, out), found);
        assert_string_equal(out, expected);
    }
}

static void test_stop_limits(void **unused)
{
    static char many[NB_STOP_BYTES_MAX + 1];
    struct nb_str s[NB_STOP_STRINGS_MAX + 1];
    struct nb_stop *stop = NULL;

    memset(many, 'a', sizeof(many));
    for (size_t i = 0; i <= NB_STOP_STRINGS_MAX; i++)
        s[i] = (struct nb_str){many, NB_STOP_BYTES_MAX};
    assert_int_equal(nb_stop_create(s, NB_STOP_STRINGS_MAX + 1, &stop), -EINVAL);
    s[3].len = 0;
    assert_int_equal(nb_stop_create(s, 4, &stop), -EINVAL);
    s[3].len = sizeof(many);
    assert_int_equal(nb_stop_create(s, 4, &stop), -EINVAL);
    assert_null(stop);
    assert_int_equal(nb_stop_create(s, 3, &stop), 0);
    char out[NB_STOP_OUT(sizeof(many))];
    size_t n;
    assert_true(nb_stop_push(stop, many, sizeof(many), out, &n));
    assert_int_equal(n, 0);
    nb_stop_destroy(stop);
    nb_stop_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_cases),        cmocka_unit_test(test_utf8_holds_little),
        cmocka_unit_test(test_utf8_random),       cmocka_unit_test(test_stop_cases),
        cmocka_unit_test(test_stop_holds_little), cmocka_unit_test(test_stop_random),
        cmocka_unit_test(test_stop_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

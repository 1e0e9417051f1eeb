// The index of n-grams beside a search through the whole log, on logs of any kind.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/ngrams.h"
#include "engine/sampler.h"

#define MOST   8
#define LENGTH 3000
#define LATEST 4 // places of the same n-gram that are looked at for certain, whatever collides

static uint32_t matching(const int32_t *log, uint32_t place, uint32_t length)
{
    uint32_t n = 0;
    while (n < NB_NGRAM_MAX && n < place && log[place - 1 - n] == log[length - 1 - n])
        n++;
    return n;
}

// The longest match of the `latest` places with one.
static uint32_t search(const int32_t *log, uint32_t length, uint32_t latest)
{
    uint32_t best = 0;
    for (uint32_t place = length - 1; place >= NB_NGRAM_MIN && latest; place--) {
        uint32_t n = matching(log, place, length);
        latest -= n >= NB_NGRAM_MIN;
        best = n >= NB_NGRAM_MIN && n > best ? n : best;
    }
    return best;
}

// What was found follows a place where so much matches, and no later one is as good.
static void assert_follows(const int32_t *log, uint32_t length, uint32_t matched,
                           const int32_t *found)
{
    for (uint32_t place = length - 1; place >= NB_NGRAM_MIN; place--) {
        uint32_t i = 0;
        if (matching(log, place, length) != matched)
            continue;
        while (i < MOST &&
               found[i] == (place + i < length ? log[place + i] : found[place + i - length]))
            i++;
        assert_int_equal(i, MOST);
        return;
    }
    fail();
}

static void assert_found(struct nb_ngrams *index, const int32_t *log, uint32_t length)
{
    int32_t found[MOST];
    memset(found, 0xee, sizeof(found));
    uint32_t matched = nb_ngrams_find(index, log, length, found, MOST);
    if (length < NB_NGRAM_MIN) {
        assert_int_equal(matched, 0);
        return;
    }
    assert_true(matched >= search(log, length, LATEST));
    assert_true(matched <= search(log, length, UINT32_MAX));
    if (matched)
        assert_follows(log, length, matched, found);
    else
        assert_int_equal(found[0], (int32_t)0xeeeeeeee);
}

// Tokens of an alphabet, and now and then a copy of what was before.
static void grow_log(int32_t *log, uint32_t *length, uint32_t n, uint32_t alphabet, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++, ++*length) {
        uint64_t r = nb_random(seed, *length);
        log[*length] = (int32_t)(r % alphabet);
        if (*length > 40 && (r >> 32) % 4 == 0)
            log[*length] = log[*length - 1 - (r >> 40) % 40];
    }
}

static void finds_what_a_search_finds(void **state)
{
    static const uint32_t alphabets[] = {1, 2, 3, 10, 1000, 49152};
    static int32_t log[LENGTH];
    for (size_t a = 0; a < sizeof(alphabets) / sizeof(*alphabets); a++) {
        struct nb_ngrams index = {0};
        for (uint32_t length = 0; length < LENGTH;) {
            assert_found(&index, log, length);
            // Some tokens at a time, so that places are put in late as well.
            uint32_t n = 1 + (uint32_t)(nb_random(a, length) % 7);
            grow_log(log, &length, n < LENGTH - length ? n : LENGTH - length, alphabets[a], a);
        }
        nb_ngrams_finish(&index);
    }
}

static void forgets_what_is_cut(void **state)
{
    static int32_t log[LENGTH];
    struct nb_ngrams index = {0};
    uint32_t length = 0;
    for (uint32_t i = 0; i < 400; i++) {
        uint64_t r = nb_random(77, i);
        uint32_t n = (uint32_t)(r % 60), room = LENGTH - length;
        grow_log(log, &length, n < room ? n : room, 4, i);
        assert_found(&index, log, length);
        uint32_t base = (r >> 32) % 3 ? length - length / 8 : (uint32_t)((r >> 40) % (length + 1));
        nb_ngrams_cut(&index, log, base);
        memset(log + base, 0x55, (length - base) * sizeof(*log)); // what is cut is read no more
        length = base;
        assert_found(&index, log, length);
    }
    nb_ngrams_finish(&index);
    nb_ngrams_cut(&index, log, 0);
    assert_null(index.head);
}

static void goes_on_periodically(void **state)
{
    int32_t log[] = {9, 8, 1, 2, 1, 2, 1}, found[MOST];
    const int32_t wanted[MOST] = {2, 1, 2, 1, 2, 1, 2, 1};
    struct nb_ngrams index = {0};
    assert_int_equal(nb_ngrams_find(&index, log, 7, found, MOST), 3);
    assert_memory_equal(found, wanted, sizeof(wanted));
    nb_ngrams_finish(&index);
}

// Logs that would make a search through them slow: a million tokens with an answer at each. One of
// quadratic time would not end within the test's.
static void hostile_logs_are_no_slower(void **state)
{
    const uint32_t length = 1000000;
    int32_t *log = calloc(length, sizeof(*log)), found[MOST];
    assert_non_null(log);
    for (uint32_t period = 1; period <= 20; period += 19) {
        struct nb_ngrams index = {0};
        for (uint32_t i = 0; i < length; i++)
            log[i] = (int32_t)(i % period ? 7 : i / 5000); // one trigram nearly everywhere
        for (uint32_t n = 1; n <= length; n++)
            (void)nb_ngrams_find(&index, log, n, found, MOST);
        assert_true(nb_ngrams_find(&index, log, length, found, MOST) > 0);
        // At most 12 bytes a token, and what a small one takes.
        assert_true(index.capacity < 2 * length && index.heads < 4 * length);
        nb_ngrams_finish(&index);
    }
    free(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_a_search_finds),
        cmocka_unit_test(forgets_what_is_cut),
        cmocka_unit_test(goes_on_periodically),
        cmocka_unit_test(hostile_logs_are_no_slower),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// The journal of a job: torn and spoiled at every byte, it is what was whole before, and goes on.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xxhash.h>

#include "quant/journal.h"

#define RECORDS 5

static const uint8_t key[NB_JOURNAL_KEY] = "the work";

struct seen {
    uint32_t n, spoiled; // the record of that number is said to be untrue; 0: none
    char data[RECORDS + 2][64];
};

static int on_record(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct seen *s = user;
    assert_int_equal(kind, s->n + 1);
    if (s->spoiled == kind)
        return 1;
    assert_true(bytes < sizeof(s->data[0]));
    memcpy(s->data[s->n], data, bytes);
    s->data[s->n++][bytes] = 0;
    return 0;
}

static struct nb_journal *open_journal(int fd, struct seen *ret_seen)
{
    struct nb_journal *j = NULL;
    struct nb_error error;
    assert_int_equal(nb_journal_open(fd, key, on_record, ret_seen, &j, &error), 0);
    return j;
}

static void append(struct nb_journal *j, uint32_t kind)
{
    static const char text[] = "what a record says is of any length";
    assert_int_equal(nb_journal_append(j, kind, text, 7 * (kind - 1)), 0);
}

static int make(void)
{
    struct seen s = {0};
    int fd = memfd_create("journal", MFD_CLOEXEC);
    struct nb_journal *j = open_journal(fd, &s);
    for (uint32_t i = 1; i <= RECORDS; i++)
        append(j, i);
    assert_int_equal(nb_journal_sync(j, &fd, 1), 0);
    nb_journal_close(j);
    return fd;
}

static uint32_t count(int fd)
{
    struct seen s = {0};
    nb_journal_close(open_journal(fd, &s));
    return s.n;
}

// Opens it, goes on with the record after the last one, and finds that again.
static uint32_t go_on(int fd)
{
    struct seen s = {0};
    struct nb_journal *j = open_journal(fd, &s);
    append(j, s.n + 1);
    nb_journal_close(j);
    assert_int_equal(count(fd), s.n + 1);
    return s.n;
}

static int copy(int from, off_t size)
{
    char bytes[1024];
    int fd = memfd_create("copy", MFD_CLOEXEC);
    assert_true(size <= (off_t)sizeof(bytes));
    assert_int_equal(pread(from, bytes, (size_t)size, 0), size);
    assert_int_equal(pwrite(fd, bytes, (size_t)size, 0), size);
    return fd;
}

static void is_read_as_it_was_written(void **state)
{
    struct seen s = {0};
    int fd = make();
    nb_journal_close(open_journal(fd, &s));
    assert_int_equal(s.n, RECORDS);
    assert_string_equal(s.data[0], "");
    assert_string_equal(s.data[2], "what a record ");
    close(fd);
}

static void a_torn_end_is_dropped(void **state)
{
    int whole = make();
    const off_t size = lseek(whole, 0, SEEK_END);
    uint32_t least = 0;
    for (off_t end = 0; end <= size; end++) {
        int fd = copy(whole, end);
        uint32_t n = go_on(fd);
        assert_true(n >= least && n <= RECORDS);
        assert_true(n < RECORDS || end == size);
        least = n;
        close(fd);
    }
    assert_int_equal(least, RECORDS);
    close(whole);
}

static void a_spoiled_byte_ends_it(void **state)
{
    int whole = make();
    const off_t size = lseek(whole, 0, SEEK_END);
    for (off_t at = 0; at < size; at++) {
        int fd = copy(whole, size);
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_true(go_on(fd) < RECORDS);
        close(fd);
    }
    close(whole);
}

static void an_untrue_record_ends_it(void **state)
{
    struct seen s = {.spoiled = 3};
    int fd = make();
    nb_journal_close(open_journal(fd, &s));
    assert_int_equal(s.n, 2);
    assert_int_equal(count(fd), 2); // the others are gone for good
    close(fd);
}

static void other_work_is_refused(void **state)
{
    static const uint8_t other[NB_JOURNAL_KEY] = "other work";
    struct seen s = {0};
    struct nb_journal *j = NULL;
    struct nb_error error;
    int fd = make();
    assert_int_equal(nb_journal_open(fd, other, on_record, &s, &j, &error), -ESTALE);
    assert_non_null(strstr(error.text, "another model, recipe or release"));
    assert_null(j);
    assert_int_equal(count(fd), RECORDS);
    close(fd);
}

static void a_file_that_cannot_be_read_is_no_journal(void **state)
{
    struct nb_error error;
    struct nb_journal *j = NULL;
    int fd = make(), closed = dup(fd);
    close(closed);
    assert_int_equal(nb_journal_open(closed, key, on_record, NULL, &j, &error), -EBADF);
    assert_int_equal(count(fd), RECORDS);
    close(fd);
}

static void places_are_hashed_as_one(void **state)
{
    enum { BYTES = 3 << 20 };
    static uint8_t data[BYTES];
    uint64_t found;
    int fd = memfd_create("file", MFD_CLOEXEC);
    for (uint32_t i = 0; i < BYTES; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    assert_int_equal(pwrite(fd, data + 5, BYTES - 5, 5), BYTES - 5);
    const struct nb_journal_place all = {5, BYTES - 5}, past = {BYTES - 4, 5},
                                  two[] = {{5, 7}, {12, BYTES - 12}};
    assert_int_equal(nb_journal_hash(fd, &all, 1, &found), 0);
    assert_true(found == XXH3_64bits(data + 5, BYTES - 5));
    assert_int_equal(nb_journal_hash(fd, two, 2, &found), 0);
    assert_true(found == XXH3_64bits(data + 5, BYTES - 5));
    assert_int_equal(nb_journal_hash(fd, &past, 1, &found), -EIO);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_read_as_it_was_written),
        cmocka_unit_test(a_torn_end_is_dropped),
        cmocka_unit_test(a_spoiled_byte_ends_it),
        cmocka_unit_test(an_untrue_record_ends_it),
        cmocka_unit_test(other_work_is_refused),
        cmocka_unit_test(a_file_that_cannot_be_read_is_no_journal),
        cmocka_unit_test(places_are_hashed_as_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

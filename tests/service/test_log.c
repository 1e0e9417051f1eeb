// The log, while nobody reads stderr: whoever writes a line goes on, and what was lost is counted.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/log.h"

#define N 1000

static void count(const char *text, unsigned *read_lines, unsigned *dropped)
{
    *read_lines = *dropped = 0;
    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        unsigned n;
        if (sscanf(line, "nibbled: %u lines were not written", &n) == 1)
            *dropped += n;
        else
            ++*read_lines;
    }
}

static void nobody_waits_for_a_reader(void **state)
{
    int ends[2], before = dup(STDERR_FILENO);
    char filler[4096] = "", text[1 << 17] = "";
    size_t len = 0;
    unsigned read_lines = 0, dropped = 0;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(ends[1], filler, sizeof(filler)) > 0)
        ;
    assert_int_equal(fcntl(ends[1], F_SETFL, 0), 0);
    assert_int_equal(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    for (int i = 0; i < N; i++)
        nb_log(LOG_INFO, "line %d.", i);
    // Whether the log's thread begins its first line before, among or after the dropped ones is the
    // scheduler's affair: the count may come in parts. Every line is either read or counted.
    while (read_lines + dropped < N) {
        ssize_t n = read(ends[0], filler, sizeof(filler));
        assert_true(n > 0);
        for (ssize_t i = 0; i < n && len + 1 < sizeof(text); i++)
            if (filler[i])
                text[len++] = filler[i];
        count(text, &read_lines, &dropped);
    }
    assert_int_equal(dup2(before, STDERR_FILENO), STDERR_FILENO);
    assert_non_null(strstr(text, "nibbled: line 0.\n"));
    assert_int_equal(read_lines + dropped, N);
    assert_in_range(dropped, N - 300, N - 200);
    nb_log(LOG_INFO, "the last line");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nobody_waits_for_a_reader)};
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}

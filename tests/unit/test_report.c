// Intervals beside published tables, and charts beside what they were told to draw.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/report/chart.h"
#include "tools/report/energy.h"
#include "tools/report/labels.h"
#include "tools/report/stats.h"

static void near(double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance))
        fail_msg("%.12g is not %.12g", a, b);
}

// Published quantiles (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
static void test_student(void **state)
{
    static const struct {
        double p, df, t;
    } rows[] = {{0.975, 1, 12.706}, {0.975, 2, 4.303},   {0.975, 10, 2.228},
                {0.95, 5, 2.015},   {0.975, 100, 1.984}, {0.995, 30, 2.750}};
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        near(stats_t_quantile(rows[i].p, rows[i].df), rows[i].t, 5e-4);
}

static void test_means(void **state)
{
    const double values[] = {1, 2, 3, 6};
    (void)state;
    struct stats_interval i = stats_of_mean(values, 4);
    near(stats_error(values, 4), sqrt(14.0 / 3 / 4), 1e-12);
    near(i.low, 3 - 3.182446 * sqrt(14.0 / 12), 1e-5);
    near(i.high, 3 + 3.182446 * sqrt(14.0 / 12), 1e-5);
    assert_true(isnan(stats_of_mean(values, 1).low));
    near(stats_cut(i, 0, 5).low, 0, 0);
    near(stats_cut(i, 0, 5).high, 5, 0);
    assert_true(isnan(stats_cut(stats_of_mean(values, 1), 0, 5).high));
}

// Newcombe (1998), table I: Wilson's interval of 81 of 263, 15 of 148, 0 of 20, 1 of 29.
static void test_shares(void **state)
{
    static const struct {
        size_t k, n;
        double low, high;
    } rows[] = {{81, 263, 0.2553, 0.3662},
                {15, 148, 0.0624, 0.1605},
                {0, 20, 0, 0.1611},
                {1, 29, 0.0061, 0.1718}};
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct stats_interval found = stats_wilson(rows[i].k, rows[i].n);
        near(found.low, rows[i].low, 5e-5);
        near(found.high, rows[i].high, 5e-5);
    }
    assert_true(isnan(stats_wilson(0, 0).low));
}

// The exact binomial tails, by hand: 2 · (1 + 10 + 45) / 1024 of 2 and 8; all heads of 5.
static void test_pairs(void **state)
{
    (void)state;
    near(stats_mcnemar(2, 8), 112.0 / 1024, 1e-12);
    near(stats_mcnemar(8, 2), 112.0 / 1024, 1e-12);
    near(stats_mcnemar(0, 5), 2.0 / 32, 1e-12);
    near(stats_mcnemar(3, 3), 1, 1e-12);
    near(stats_mcnemar(0, 0), 1, 0);
    struct stats_interval i = stats_of_paired(8, 2, 98); // (6 ± z · sqrt(11 - 36 / 100)) / 100
    near(i.low, (6 - 1.959964 * sqrt(11 - 0.36)) / 100, 1e-6);
    near(i.high, (6 + 1.959964 * sqrt(11 - 0.36)) / 100, 1e-6);
}

static void test_spearman(void **state)
{
    const double a[] = {1, 2, 3, 4, 5}, b[] = {5, 6, 7, 8, 7}, same[] = {1, 1, 1, 1, 1};
    const uint32_t twice[] = {2, 1, 1, 1, 0};
    const double a5[] = {1, 1, 2, 3, 4}, b5[] = {5, 5, 6, 7, 8};
    struct stats_ranks *r = stats_ranks_create(a, b, 5), *flat = stats_ranks_create(a, same, 5);
    struct stats_ranks *drawn = stats_ranks_create(a5, b5, 5);
    (void)state;
    near(stats_spearman(r, NULL), 0.820782681668, 1e-9); // scipy.stats.spearmanr's example
    assert_true(isnan(stats_spearman(flat, NULL)));
    near(stats_spearman(r, twice), stats_spearman(drawn, NULL), 1e-12);
    stats_ranks_destroy(r);
    stats_ranks_destroy(flat);
    stats_ranks_destroy(drawn);
    stats_ranks_destroy(NULL);
}

static double weighted_mean(void *user, const uint32_t *weights)
{
    const double *values = user;
    double sum = 0;
    for (size_t i = 0; i < 50; i++)
        sum += weights[i] * values[i];
    return sum / 50;
}

// A bootstrap of a mean comes to the normal interval, and to the same for the same seed.
static void test_bootstrap(void **state)
{
    double values[50];
    (void)state;
    for (size_t i = 0; i < 50; i++)
        values[i] = (double)(i * 37 % 50);
    struct stats_interval one = stats_bootstrap(50, 1, weighted_mean, values);
    struct stats_interval same = stats_bootstrap(50, 1, weighted_mean, values);
    struct stats_interval other = stats_bootstrap(50, 2, weighted_mean, values);
    assert_true(one.low == same.low && one.high == same.high);
    assert_true(one.low != other.low || one.high != other.high);
    near(one.low, 24.5 - 1.96 * 2.04, 0.35);
    near(one.high, 24.5 + 1.96 * 2.04, 0.35);
    assert_true(isnan(stats_bootstrap(1, 1, weighted_mean, values).low));
}

// --- Charts

static bool overlaps(const struct label_box *a, const struct label_box *b)
{
    return a->left < b->right && b->left < a->right && a->top < b->bottom && b->top < a->bottom;
}

// Thirty names around one place: no two lie on each other, and all in the frame.
static void test_labels(void **state)
{
    enum { N = 30 };
    struct label labels[N];
    struct label_box points[N], frame = {0, 0, 860, 480};
    (void)state;
    for (int i = 0; i < N; i++) {
        double x = 380 + i * 7 % 60, y = 200 + i * 13 % 50;
        labels[i] = (struct label){.x = x, .y = y, .width = 90, .height = 16};
        points[i] = (struct label_box){x - 6, y - 6, x + 6, y + 6};
    }
    labels_place(&frame, points, N, labels, N);
    for (int i = 0; i < N; i++) {
        assert_true(labels[i].box.left >= 0 && labels[i].box.right <= 860);
        assert_true(labels[i].box.top >= 0 && labels[i].box.bottom <= 480);
        for (int k = 0; k < N; k++) {
            assert_false(k != i && overlaps(&labels[i].box, &labels[k].box));
            assert_false(overlaps(&labels[i].box, &points[k]));
        }
    }
}

static void scratch(char path[64], const char *name)
{
    snprintf(path, 64, "/tmp/nibble-report-%ld-%s", (long)getpid(), name);
}

static void test_chart(void **state)
{
    const struct chart_point points[] = {
        {10, 0.5, 0.4, 0.6, "a"}, {100, 0.05, -0.1, 0.1, "b"}, {40, NAN, NAN, NAN, "no figure"}};
    const struct chart_series series = {"one", points, 3, false};
    struct chart c = {.title = "t", .x = {"x", true}, .y = {"y", true}, .series = &series, .n = 1};
    struct chart_frame svg, png;
    char path[64];
    (void)state;
    scratch(path, "chart.svg");
    assert_int_equal(chart_write(&c, path, &svg), 0);
    assert_int_equal(unlink(path), 0);
    scratch(path, "chart.png");
    assert_int_equal(chart_write(&c, path, &png), 0);
    assert_int_equal(unlink(path), 0);
    assert_memory_equal(&svg, &png, sizeof(svg));
    // Equal ratios are equal distances, and values grow to the right and up.
    near(chart_x(&c, &svg, 20) - chart_x(&c, &svg, 10),
         chart_x(&c, &svg, 80) - chart_x(&c, &svg, 40), 1e-9);
    assert_true(chart_y(&c, &svg, 0.5) < chart_y(&c, &svg, 0.05));
    near(chart_y(&c, &svg, -0.1), svg.bottom, 0);
    assert_int_equal(chart_write(&c, "/nonexistent/chart.svg", NULL), -EIO);
    assert_int_equal(chart_write(&c, "/nonexistent/chart.png", NULL), -EIO);
}

static void test_no_chart(void **state)
{
    const struct chart_point below = {1, -1, NAN, NAN, NULL}, none = {1, NAN, NAN, NAN, NULL};
    struct chart_series series = {"one", &none, 1, false};
    struct chart c = {.title = "t", .x = {"x", false}, .y = {"y", true}, .series = &series, .n = 1};
    char path[64];
    (void)state;
    scratch(path, "no.png");
    assert_int_equal(chart_write(&c, path, NULL), -EINVAL);
    series.points = &below;
    assert_int_equal(chart_write(&c, path, NULL), -EINVAL);
    c.y.log = false;
    c.n = CHART_SERIES + 1;
    assert_int_equal(chart_write(&c, path, NULL), -EINVAL);
    assert_int_equal(access(path, F_OK), -1);
}

// --- Energy

static void put(const char *root, const char *name, const char *value)
{
    char path[256];
    snprintf(path, sizeof(path), "%.150s/%s", root, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(value, file);
    fclose(file);
}

static void test_energy(void **state)
{
    static const char *const packages[] = {"intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"};
    char root[64], path[192];
    struct energy e;
    (void)state;
    scratch(root, "rapl");
    energy_begin(&e, root);
    assert_true(energy_end(&e) < 0);
    assert_non_null(strstr(e.reason, "No such file"));
    assert_int_equal(mkdir(root, 0700), 0);
    energy_begin(&e, root);
    assert_true(energy_end(&e) < 0);
    assert_non_null(strstr(e.reason, "has no intel-rapl:0"));
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", root, packages[i]);
        assert_int_equal(mkdir(path, 0700), 0);
        put(path, "max_energy_range_uj", "10000000\n");
        put(path, "energy_uj", "9000000\n");
    }
    energy_begin(&e, root);
    snprintf(path, sizeof(path), "%s/intel-rapl:0", root);
    put(path, "energy_uj", "9500000\n"); // half a joule
    snprintf(path, sizeof(path), "%s/intel-rapl:1", root);
    put(path, "energy_uj", "2000000\n"); // three, over the end
    near(energy_end(&e), 3.5, 1e-9);
    snprintf(path, sizeof(path), "rm -r %s", root);
    assert_int_equal(system(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_student),  cmocka_unit_test(test_means),
        cmocka_unit_test(test_shares),   cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_spearman), cmocka_unit_test(test_bootstrap),
        cmocka_unit_test(test_labels),   cmocka_unit_test(test_chart),
        cmocka_unit_test(test_no_chart), cmocka_unit_test(test_energy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

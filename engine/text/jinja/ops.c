// Arithmetic and concatenation, by Python's rules. Integers have 64 bits: what does not fit fails.
#include <errno.h>
#include <math.h>

#include "engine/text/jinja/builtins.h"

static const char *op_name(unsigned op, char out[3])
{
    out[0] = (char)op;
    out[1] = (char)(op >> 8);
    out[2] = '\0';
    return out;
}

static _Noreturn void unsupported(struct nb_jrun *r, unsigned op, struct nb_jv a, struct nb_jv b)
{
    char name[3];

    if (a.kind == NB_J_UNDEFINED || b.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, a.kind == NB_J_UNDEFINED ? a : b);
    if (op == '+' && a.kind == NB_J_STR)
        nb_jfail(r->m, -EINVAL, "can only concatenate str (not \"%s\") to str", nb_jv_type(b));
    nb_jfail(r->m, -EINVAL, "unsupported operand type(s) for %s: '%s' and '%s'", op_name(op, name),
             nb_jv_type(a), nb_jv_type(b));
}

static _Noreturn void overflow(struct nb_jrun *r)
{
    nb_jfail(r->m, -EINVAL, "an integer does not fit 64 bits");
}

static void check_divisor(struct nb_jrun *r, bool zero)
{
    if (zero)
        nb_jfail(r->m, -EINVAL, "division by zero");
}

static int64_t int_power(struct nb_jrun *r, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    while (exponent > 0) {
        if (exponent & 1 && __builtin_mul_overflow(result, base, &result))
            overflow(r);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base))
            overflow(r);
    }
    return result;
}

static struct nb_jv of_ints(struct nb_jrun *r, unsigned op, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool over = false;

    switch (op) {
    case '+':
        over = __builtin_add_overflow(a, b, &result);
        break;
    case '-':
        over = __builtin_sub_overflow(a, b, &result);
        break;
    case '*':
        over = __builtin_mul_overflow(a, b, &result);
        break;
    case '/':
        check_divisor(r, b == 0);
        return nb_jv_float((double)a / (double)b);
    case '%':
        check_divisor(r, b == 0);
        result = b == -1 ? 0 : a % b;
        result += result && (result < 0) != (b < 0) ? b : 0;
        break;
    case NB_JOP('/', '/'):
        check_divisor(r, b == 0);
        over = a == INT64_MIN && b == -1;
        result = over ? 0 : a / b;
        result -= !over && a % b && (a < 0) != (b < 0);
        break;
    default:
        if (b < 0)
            return nb_jv_float(pow((double)a, (double)b));
        result = int_power(r, a, b);
    }
    if (over)
        overflow(r);
    return nb_jv_int(result);
}

static double float_mod(double a, double b)
{
    double m = fmod(a, b);

    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

static struct nb_jv of_floats(struct nb_jrun *r, unsigned op, double a, double b)
{
    switch (op) {
    case '+':
        return nb_jv_float(a + b);
    case '-':
        return nb_jv_float(a - b);
    case '*':
        return nb_jv_float(a * b);
    case '/':
        check_divisor(r, b == 0);
        return nb_jv_float(a / b);
    case '%':
        check_divisor(r, b == 0);
        return nb_jv_float(float_mod(a, b));
    case NB_JOP('/', '/'):
        check_divisor(r, b == 0);
        return nb_jv_float(floor(a / b));
    default:
        check_divisor(r, a == 0 && b < 0);
        if (a < 0 && b != floor(b))
            nb_jfail(r->m, -EINVAL, "a power that is a complex number");
        return nb_jv_float(pow(a, b));
    }
}

// Markup escapes what is added to it.
static struct nb_jv add_strings(struct nb_jrun *r, struct nb_jv a, struct nb_jv b)
{
    const struct nb_jstr *x = a.s, *y = b.s;

    if (!x->markup && !y->markup)
        return nb_jv_str(nb_jstr_concat(r->m, x, y));
    x = nb_jescape(r->m, a);
    y = nb_jescape(r->m, b);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jstr_concat(r->m, x, y), true));
}

static struct nb_jv add_lists(struct nb_jrun *r, struct nb_jv a, struct nb_jv b)
{
    struct nb_jlist *l = nb_jlist_new(r->m);

    for (size_t i = 0; i < a.list->n; i++)
        nb_jlist_add(r->m, l, a.list->v[i]);
    for (size_t i = 0; i < b.list->n; i++)
        nb_jlist_add(r->m, l, b.list->v[i]);
    return a.kind == NB_J_LIST ? nb_jv_list(l) : nb_jv_tuple(l);
}

static struct nb_jv repeat(struct nb_jrun *r, struct nb_jv v, int64_t times)
{
    struct nb_jbuild b;
    struct nb_jlist *l;

    times = times < 0 ? 0 : times;
    if (v.kind == NB_J_STR) {
        nb_jbuild_init(&b, r->m);
        nb_jbuild_fill(&b, v.s, (size_t)times);
        return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), v.s->markup));
    }
    l = nb_jlist_new(r->m);
    for (int64_t k = 0; v.list->n && k < times; k++)
        for (size_t i = 0; i < v.list->n; i++)
            nb_jlist_add(r->m, l, v.list->v[i]);
    return v.kind == NB_J_LIST ? nb_jv_list(l) : nb_jv_tuple(l);
}

static bool is_sequence(struct nb_jv v)
{
    return v.kind == NB_J_STR || v.kind == NB_J_LIST || v.kind == NB_J_TUPLE;
}

struct nb_jv nb_jbinary(struct nb_jrun *r, unsigned op, struct nb_jv a, struct nb_jv b)
{
    nb_jstep(r->m, 1);
    if (nb_jv_is_number(a) && nb_jv_is_number(b)) {
        struct nb_jv v = nb_jv_is_int(a) && nb_jv_is_int(b)
                             ? of_ints(r, op, nb_jv_as_int(a), nb_jv_as_int(b))
                             : of_floats(r, op, nb_jv_as_float(a), nb_jv_as_float(b));
        v.client = a.client || b.client;
        return v;
    }
    if (op == '%' && a.kind == NB_J_STR)
        return nb_jv_str(nb_jpercent(r, a.s, b));
    if (op == '+' && a.kind == b.kind && a.kind == NB_J_STR)
        return add_strings(r, a, b);
    if (op == '+' && a.kind == b.kind && is_sequence(a))
        return add_lists(r, a, b);
    if (op == '*' && is_sequence(a) && nb_jv_is_int(b))
        return repeat(r, a, nb_jv_as_int(b));
    if (op == '*' && is_sequence(b) && nb_jv_is_int(a))
        return repeat(r, b, nb_jv_as_int(a));
    unsupported(r, op, a, b);
}

struct nb_jv nb_junary(struct nb_jrun *r, unsigned op, struct nb_jv a)
{
    struct nb_jv v = a;

    if (a.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, a);
    if (!nb_jv_is_number(a))
        nb_jfail(r->m, -EINVAL, "bad operand type for unary %c: '%s'", (int)op, nb_jv_type(a));
    if (a.kind == NB_J_FLOAT)
        v.f = op == '-' ? -a.f : a.f;
    else {
        v.kind = NB_J_INT;
        v.i = nb_jv_as_int(a);
        if (op == '-' && __builtin_sub_overflow((int64_t)0, v.i, &v.i))
            overflow(r);
    }
    return v;
}

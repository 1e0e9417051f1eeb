// Code points and their classes; the table is in unicode_data.c.
#include "engine/text/unicode.h"

static size_t sequence_length(uint8_t lead)
{
    return lead < 0x80   ? 1
           : lead < 0xc0 ? 0
           : lead < 0xe0 ? 2
           : lead < 0xf0 ? 3
           : lead < 0xf8 ? 4
                         : 0;
}

uint32_t nb_unicode_decode(const char *s, size_t n, size_t *ret_used)
{
    uint8_t lead = (uint8_t)s[0];
    size_t len = sequence_length(lead);

    *ret_used = 1;
    if (len == 1)
        return lead;
    if (len == 0 || len > n)
        return NB_UNICODE_REPLACEMENT;
    uint32_t cpt = lead & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if (((uint8_t)s[i] & 0xc0) != 0x80)
            return NB_UNICODE_REPLACEMENT;
        cpt = cpt << 6 | ((uint8_t)s[i] & 0x3f);
    }
    if (cpt > 0x10ffff)
        return NB_UNICODE_REPLACEMENT;
    *ret_used = len;
    return cpt;
}

size_t nb_unicode_encode(uint32_t cpt, char out[4])
{
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t len = cpt < 0x80 ? 1 : cpt < 0x800 ? 2 : cpt < 0x10000 ? 3 : 4;

    for (size_t i = len - 1; i > 0; i--, cpt >>= 6)
        out[i] = (char)(0x80 | (cpt & 0x3f));
    out[0] = (char)(lead[len] | cpt);
    return len;
}

enum nb_unicode_class nb_unicode_class(uint32_t cpt)
{
    uint32_t key = cpt << 4 | 0xf, lo = 0, hi = nb_unicode_run_count;

    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (nb_unicode_runs[mid] <= key)
            lo = mid;
        else
            hi = mid;
    }
    return (enum nb_unicode_class)(nb_unicode_runs[lo] & 0xf);
}

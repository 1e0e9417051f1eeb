// One string looked for in a stream of bytes.
#include "engine/text/pattern.h"

#include <string.h>

static uint16_t advance(const struct nb_pattern *p, uint16_t matched, char byte)
{
    while (matched > 0 && p->text[matched] != byte)
        matched = p->fallback[matched - 1];
    return p->text[matched] == byte ? matched + 1 : 0;
}

void nb_pattern_init(struct nb_pattern *p, struct nb_str text)
{
    *p = (struct nb_pattern){.len = (uint16_t)text.len};
    memcpy(p->text, text.data, text.len);
    for (uint16_t k = 1; k < p->len; k++)
        p->fallback[k] = advance(p, p->fallback[k - 1], p->text[k]);
}

bool nb_pattern_push(struct nb_pattern *p, char byte)
{
    p->matched = advance(p, p->matched, byte);
    return p->matched == p->len;
}

// Seeds for fuzz_template: a template, a NUL, a conversation. Together they name every statement,
// filter, test and method.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/seeds.h"

#define MESSAGES                                                                                   \
    "{\"messages\":[{\"role\":\"system\",\"content\":\" Be \"},{\"role\":\"user\",\"content\":"    \
    "\"a<|im_end|>\\u00e9 b\\nc\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{"     \
    "\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1.5,\"y\":[true,null]}}}]}],\"tools\":[{"   \
    "\"function\":{\"name\":\"f\",\"parameters\":{}}}],\"variables\":{\"n\":7,\"s\":\"Ab cD\"}}"

static const struct {
    const char *name, *text; // a template, a NUL, a conversation
} seeds[] = {
    {"turns", "{% for m in messages %}<|im_start|>{{ m.role + '\n' + (m.content or '')|trim }}"
              "{{ '<|im_end|>' ~ loop.index ~ loop.last ~ loop.previtem }}\n{% endfor %}"
              "{%- if add_generation_prompt -%} <|im_start|>assistant {%- endif %}\0" MESSAGES},
    {"statements",
     "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% macro f(x, y=3) %}{{ x }}{{ varargs }}"
     "{{ kwargs }}{{ caller() }}{% endmacro %}{% call(z) f(1, *[2], **{'q': 3}) %}c{% endcall %}"
     "{% filter upper %}a{% endfilter %}{% raw %}{{ }}{% endraw %}{# c #}{% with a = 1 %}{{ a }}"
     "{% endwith %}{% set b | lower %}B{% endset %}{% for i in range(9) if i is odd recursive %}"
     "{% if i > 5 %}{% break %}{% elif i < 2 %}{% continue %}{% else %}{{ loop([1]) }}{% endif %}"
     "{% else %}e{% endfor %}{% generation %}g{% endgeneration %}\0" MESSAGES},
    {"expressions",
     "{{ 1 + 2 * 3 - 4 / 5 // 6 % 7 ** 2 }}{{ 'a' 'b' ~ [1, (2,), {'k': 3}][0:2:1] }}{{ n < 9 <= 9 "
     "and not s in 'x' or n is not divisibleby 3 if true else none }}{{ s[::-1] ~ s[-1] ~ n.x }}"
     "{{ '%5.2f|%-5s|%x|%r' % (1.5, 'a', 255, s) }}{{ '{:>5}{a[0]!r:{w}}'.format(1, a=[s], w=9) "
     "}}\0" MESSAGES},
    {"filters",
     "{{ s|upper|lower|title|capitalize|trim|replace('a', 'b', 1)|indent(2, true)|truncate(3, "
     "true, "
     "'', 0)|center(9)|e|striptags|urlencode|wordcount }}{{ [3, 1, 2]|sort(true)|unique|list|sum }}"
     "{{ messages|map(attribute='role')|join(',') }}{{ messages|selectattr('role', '==', 'user')|"
     "rejectattr('q')|list|tojson(indent=2) }}{{ {'b': 1, 'a': 2}|dictsort|items }}{{ tools|first|"
     "tojson(sort_keys=true, separators=(',', ':')) }}{{ range(7)|batch(3, 0)|list ~ range(7)|"
     "slice(3)|list }}{{ messages|groupby('role')|length }}{{ '1.5'|float|round(1)|int|abs "
     "}}\0" MESSAGES},
    {"methods",
     "{{ s.split() ~ s.rsplit(' ', 1) ~ s.splitlines() ~ s.partition(' ') ~ s.strip('A') }}"
     "{{ s.startswith(('A', 'b')) ~ s.endswith('D') ~ s.find('c') ~ s.rfind('c') ~ s.count('') }}"
     "{{ s.zfill(9) ~ s.ljust(9, '.') ~ s.swapcase() ~ s.isalnum() ~ ','.join(['a', s]) }}"
     "{{ tools[0].function.items()|list ~ tools[0].get('q', 1) ~ [1, 2].index(2) }}"
     "{{ cycler(1, 2).next() ~ joiner()() ~ strftime_now('%Y') ~ dict(a=1) }}"
     "{{ raise_exception('x' ~ s) }}\0" MESSAGES},
};

void write_template_seeds(const char *dir)
{
    for (size_t i = 0; i < sizeof(seeds) / sizeof(*seeds); i++) {
        size_t len = strlen(seeds[i].text) + 1;
        int fd = seed_create(dir, "fuzz_template", seeds[i].name);
        len += strlen(seeds[i].text + len);
        seed_check(write(fd, seeds[i].text, len) == (ssize_t)len ? 0 : -EIO, seeds[i].name);
        close(fd);
    }
}

"""Conversations that every template is tried on, and small templates that are tried on one context."""

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi there"}
MORE = {"role": "user", "content": "And more?"}
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather in a city. Says \"rain\" or <sun>.",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "A city's name"},
            "days": {"type": "integer", "description": "How many days", "default": 3},
            "units": {"type": "string", "enum": ["metric", "imperial"]}}}}},
    {"type": "function", "function": {
        "name": "add", "description": "Adds numbers", "parameters": {"type": "object", "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}},
            "options": {"type": "object", "properties": {"exact": {"type": "boolean"}}}}}}},
]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function",
     "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}]}
CALL_TEXT = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call00001", "type": "function",
     "function": {"name": "get_weather", "arguments": "{\"city\": \"Bern\"}"}},
    {"id": "call00002", "type": "function", "function": {"name": "add", "arguments": "{\"numbers\": [1, 2.5]}"}}]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "rain & \"wind\""}
RESULT_2 = {"role": "tool", "tool_call_id": "call00002", "name": "add", "content": "{\"sum\": 3.5}"}

CONVERSATIONS = {
    "one": {"messages": [HELLO]},
    "system": {"messages": [SYSTEM, HELLO]},
    "turns": {"messages": [SYSTEM, HELLO, HI, MORE]},
    "turns without system": {"messages": [HELLO, HI, MORE, HI, HELLO]},
    "no prompt": {"messages": [SYSTEM, HELLO, HI], "add_generation_prompt": False},
    "prompt after assistant": {"messages": [HELLO, HI]},
    "empty content": {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""},
                                   {"role": "assistant", "content": ""}, HELLO]},
    "null content": {"messages": [HELLO, {"role": "assistant", "content": None}, MORE]},
    "blanks": {"messages": [{"role": "system", "content": "  Be brief. \n"},
                            {"role": "user", "content": "\n\n two\n\nlines \t"}, {"role": "assistant", "content": " Yes.\n"},
                            MORE]},
    "consecutive": {"messages": [HELLO, MORE, HI, HI, HELLO]},
    "system late": {"messages": [HELLO, HI, SYSTEM, MORE]},
    "system alone": {"messages": [SYSTEM]},
    "no messages": {"messages": []},
    "unicode": {"messages": [{"role": "user", "content": "naïve 你好 👍🏽 İstanbul ß\u2028\u00a0x"},
                             {"role": "assistant", "content": "é<|im_end|>\\n'\"`{{ x }}"}, HELLO]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]}]},
    "image": {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]},
    "tools": {"messages": [SYSTEM, HELLO], "tools": TOOLS},
    "tools without system": {"messages": [HELLO], "tools": TOOLS},
    "empty tools": {"messages": [HELLO], "tools": []},
    "call": {"messages": [SYSTEM, HELLO, CALL, RESULT], "tools": TOOLS},
    "call and answer": {"messages": [HELLO, CALL, RESULT, {"role": "assistant", "content": "It rains."}, MORE], "tools": TOOLS},
    "two calls": {"messages": [HELLO, CALL_TEXT, RESULT, RESULT_2], "tools": TOOLS},
    "call, no tools": {"messages": [HELLO, CALL, RESULT, MORE]},
    "result of object": {"messages": [HELLO, CALL, RESULT | {"content": {"a": [1, None, True, 1.5], "b": "x"}}], "tools": TOOLS},
    "reasoning": {"messages": [HELLO, HI | {"reasoning_content": "They greet.\nI greet."}, MORE]},
    "reasoning and call": {"messages": [HELLO, CALL | {"reasoning_content": "I need it."}, RESULT,
                                        HI | {"reasoning_content": "So."}], "tools": TOOLS, "add_generation_prompt": False},
    "think in content": {"messages": [HELLO, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi."}, MORE]},
    "thinking": {"messages": [SYSTEM, HELLO], "variables": {"enable_thinking": True, "thinking": True}},
    "no thinking": {"messages": [HELLO], "variables": {"enable_thinking": False, "thinking": False,
                                                       "reasoning_effort": "low"}},
    "documents": {"messages": [HELLO], "documents": [{"title": "A", "text": "One text.", "doc_id": "1"},
                                                     {"title": "B", "text": "Another."}]},
    "developer": {"messages": [{"role": "developer", "content": "Obey."}, HELLO]},
    "role unknown": {"messages": [HELLO, {"role": "critic", "content": "Bad."}]},
    "no content": {"messages": [HELLO, {"role": "assistant"}, MORE]},
    "number as content": {"messages": [{"role": "user", "content": 42}]},
}

CONTEXT = {"messages": [SYSTEM, HELLO, HI], "variables": {
    "s": "Hello World", "u": "Straße ÀÉ ǆ ﬁ ΑΣ", "e": "", "w": "  \n a  b\tc \n", "n": 7, "m": -7, "f": 2.5, "z": 0, "t": True,
    "l": [3, 1, 2], "names": ["b", "A", "c", "a"], "nested": [[1, 2], [3]], "nothing": None,
    "d": {"b": 1, "a": "x", "C": None, "items": 3}, "people": [
        {"name": "Bo", "age": 30, "tags": ["x"]}, {"name": "al", "age": 25, "tags": []}, {"name": "Cy", "age": 30}],
    "html": "<a href=\"x\">'&'</a>", "big": 9007199254740993, "floats": [1.0, 1e16, 1e-5, 0.1, 123456789.125, -0.0, 1e22, 5e-324],
    "odd": "a\u0000b\u0007\\'\"\u200b\u00ad", "long": "word " * 30}}

SNIPPETS = """
{{ s }}|{{ n }}|{{ f }}|{{ t }}|{{ nothing }}|{{ missing }}|{{ l }}|{{ d }}|{{ nested }}
{{ u }} {{ odd|tojson }} {{ [odd] }} {{ ["it's", 'a "q"', "both ' and \\"", u] }}
{{ floats }} {{ floats|tojson }} {{ floats|map('string')|join(' ') }}
{{ big }} {{ big + 1 }} {{ big * 2.0 }} {{ 10 ** 3 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 / 2 }} {{ 6 / 3 }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ (1 + 2) * 3 }} {{ 1 - 1 - 1 }} {{ 2 * 3 % 4 }} {{ +n }} {{ -n }} {{ - -n }} {{ 1 - -1 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 9223372036854775807 }} {{ -9223372036854775807 }}
{{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5e-3 }} {{ 1_0.5 }}
{{ 'a' 'b' "c" }} {{ 'a\\nb\\tc\\x41\\u00e9\\101\\q\\\\' }} {{ 'a' + 'b' }} {{ 'a' ~ 1 ~ none ~ 2.0 ~ true }} {{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (2,) }}
{{ 'a' - 'b' }}
{{ none + 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'a' == 1 }} {{ 1 != 2 != 1 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [1] < (1,) }}
{{ 'ell' in s }} {{ 'x' not in s }} {{ 1 in l }} {{ 'a' in d }} {{ 'q' in d }} {{ 2 in (1, 2) }} {{ 3 in range(5) }} {{ 'a' in missing }}
{{ 1 in s }}
{{ 1 in n }}
{{ [1] in d }}
{{ not true }} {{ not n }} {{ true and 'x' }} {{ '' or 'y' }} {{ none and 1 }} {{ 0 or [] or 'z' }} {{ not 1 == 2 }} {{ n and not z }}
{{ 'a' if t else 'b' }} {{ 'a' if z else 'b' }} {{ 'a' if z }}| {{ ('a' if z) is defined }} {{ 1 if z else 2 if z else 3 }}
{{ ('a' if z) + 'b' }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[:-3] }} {{ s[::-1] }} {{ s[::2] }} {{ s[8:2:-2] }} {{ s[100:] }} {{ s[-100:3] }} {{ s[5] }}|{{ s[99] }}|
{{ u[0:6] }} {{ u[::-1] }} {{ u[-4:] }} {{ u|length }} {{ u|upper }} {{ u|lower }} {{ u|title }} {{ u|capitalize }} {{ s.swapcase() }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:1] }} {{ (1, 2, 3)[1:] }} {{ l[5] }}| {{ l['x'] }}| {{ range(10)[2:5]|list }} {{ range(5)[-1] }}
{{ nothing[1:] }}
{{ n[1:] }}
{{ d[1:] }}
{{ missing[1:] }}
{{ l[::0] }}
{{ l['a':] }}
{{ d.a }} {{ d['a'] }} {{ d.b }} {{ d.zzz }}| {{ d['zzz'] }}| {{ d.items is callable }} {{ d['items'] }} {{ d.get('a') }} {{ d.get('q') }} {{ d.get('q', 5) }}
{{ d.zzz.yyy }}
{{ missing.x }}
{{ missing['x'] }}
{{ missing() }}
{{ missing + 1 }}
{{ 1 + missing }}
{{ -missing }}
{{ missing < 1 }}
{{ missing == missing2 }} {{ missing == none }} {{ missing is none }} {{ missing != 1 }} {{ missing|length }} {{ missing|list }} {{ missing|string }}| {{ not missing }}
{% for x in missing %}x{% else %}none{% endfor %}
{% for x in nothing %}x{% endfor %}
{% for x in n %}x{% endfor %}
{{ nothing.x }}| {{ nothing['x'] }}| {{ n.x }}|
{{ nothing.x.y }}
{{ nothing() }}
{{ n() }}
{{ 's'() }}
{{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }} {{ d.keys() }} {{ d.values() }} {{ d.items() }} {{ d|items|list }} {{ d|list }} {{ d|length }}
{{ d.items()[0] }}| {{ 'a' in d.keys() }} {{ ('a', 'x') in d.items() }} {{ d.items()|length }} {{ d.keys() is sequence }} {{ d.copy() }}
{{ l.append(4) }}
{{ l.pop() }}
{{ d.update({}) }}
{{ d.pop('a') }}
{{ d.clear() }}
{{ l.index(2) }} {{ l.count(1) }} {{ (1, 2, 1).count(1) }} {{ (1, 2).index(2) }} {{ l.copy() }}
{{ l.index(9) }}
{{ s.__class__ }}
{{ s.__class__.x }}
{{ d.__class__|string }}|
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.capitalize() }} {{ "they're bill's".title() }} {{ "they're bill-x (y".title() }} {{ s.casefold() }}
{{ w.strip() }}|{{ w.lstrip() }}|{{ w.rstrip() }}|{{ s.strip('Hd') }}|{{ s.lstrip('elH') }}|{{ s.rstrip('dl') }}|{{ w.strip(none) }}|{{ 'äxä'.strip('ä') }}
{{ s.strip(1) }}
{{ s.split() }} {{ w.split() }} {{ s.split('o') }} {{ s.split('o', 1) }} {{ w.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a,b,,c'.split(',') }} {{ s.split(sep='l', maxsplit=1) }}
{{ s.split('') }}
{{ s.rsplit('o', 1) }} {{ s.rsplit() }} {{ w.rsplit(none, 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'a,b,c'.rsplit(',') }} {{ 'a  b  c '.rsplit(maxsplit=1) }}
{{ 'a\\nb\\r\\nc\\n'.splitlines() }} {{ 'a\\n\\nb'.splitlines(true) }} {{ ''.splitlines() }} {{ 'x\\u2028y\\x0bz'.splitlines() }}
{{ s.startswith('He') }} {{ s.startswith(('x', 'H')) }} {{ s.endswith('ld') }} {{ s.endswith(('x', 'd')) }} {{ s.startswith('W', 6) }} {{ s.endswith('o', 0, 5) }} {{ s.startswith('') }}
{{ s.startswith(1) }}
{{ s.startswith(['H']) }}
{{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ s.replace('', '-') }} {{ s.replace('xyz', '') }} {{ s.replace('o', '') }} {{ ''.replace('', 'x') }} {{ u.replace('', '.') }}
{{ s.find('o') }} {{ s.find('z') }} {{ s.rfind('o') }} {{ s.index('W') }} {{ s.count('l') }} {{ s.count('') }} {{ u.find('À') }} {{ s.find('o', 5) }} {{ s.find('') }} {{ s.rfind('') }} {{ s.rindex('l') }}
{{ s.index('z') }}
{{ ', '.join(names) }} {{ ''.join(['a']) }} {{ '-'.join('abc') }} {{ ','.join([]) }} {{ ' '.join(d) }}
{{ ','.join(l) }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'abc'.center(9, '*') }} {{ 'abc'.center(8) }}| {{ 'ab'.ljust(4, '.') }} {{ 'ab'.rjust(4) }} {{ 'ab'.center(5, '-') }} {{ 'a\\tb'.expandtabs(4) }}
{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' \\n'.isspace() }} {{ ''.isdigit() }} {{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ 'Ab Cd'.istitle() }} {{ 'a_1'.isidentifier() }} {{ '1a'.isidentifier() }} {{ 'a'.isascii() }} {{ '1.5'.isdigit() }} {{ '٣'.isdigit() }}
{{ s.removeprefix('Hello ') }} {{ s.removesuffix('World') }} {{ s.removeprefix('x') }} {{ s.partition(' ') }} {{ s.rpartition('o') }} {{ s.partition('z') }} {{ s.rpartition('z') }}
{{ '{} {}'.format(1, 'a') }} {{ '{1} {0}'.format(1, 2) }} {{ '{a} {b[0]} {c.a}'.format(a=1, b=l, c=d) }} {{ '{{}}'.format() }} {{ '{:>5}|{:<5}|{:^5}|{:*^7}'.format(1, 'a', 'b', 'c') }}
{{ '{:05d} {:+} {:,} {:x} {:#x} {:b} {:o} {:.2f} {:e} {:g} {:%} {:10.3f}|'.format(42, 5, 1234567, 255, 255, 5, 8, 3.14159, 12345.678, 0.0001, 0.25, 2.5) }}
{{ '{!r} {!s} {:{}}|'.format('a', 'b', 'c', 5) }} {{ '{0!r:>6}'.format('x') }} {{ '{:.3}'.format('abcdef') }} {{ '{:_}'.format(1234567) }} {{ '{:,.2f}'.format(12345.678) }} {{ '{a}'.format_map({'a': 3}) }}
{{ '{}'.format() }}
{{ '{a}'.format(b=1) }}
{{ '{'.format(1) }}
{{ '}'.format(1) }}
{{ '{:d}'.format('x') }}
{{ '%s and %s' % (1, 'b') }} {{ '%d%%' % 5 }} {{ '%05.1f|%-5s|%5s|%x|%r' % (3.14159, 'a', 'b', 255, 'q') }} {{ '%(a)s %(b)s' % d }} {{ '%s' % 'x' }} {{ '%s' % [1, 2] }} {{ '%+d % d' % (5, 5) }} {{ '%*d' % (5, 3) }} {{ '%.2s' % 'abc' }} {{ '%e %G' % (12345.6789, 0.00001) }}
{{ '%s' % missing }}| {{ '%s %s'|format(1, 2) }} {{ '%(x)s'|format(x=3) }} {{ '%c' % 'x' if false else '' }}
{{ '%s %s' % 1 }}
{{ '%s' % (1, 2) }}
{{ '%d' % 'a' }}
{{ '%q' % 1 }}
{{ '%' % 1 }}
{{ 'x' % 1 }}
{{ -5|abs }} {{ f|abs }} {{ (-2.5)|abs }} {{ l|sum }} {{ l|sum(start=10) }} {{ people|sum('age') }} {{ []|sum }} {{ people|sum(attribute='age', start=1.5) }}
{{ names|sum }}
{{ 2.5|round }} {{ 3.5|round }} {{ 2.567|round(2) }} {{ 2.567|round(1, 'floor') }} {{ 2.1|round(0, 'ceil') }} {{ 1234|round(-2) }} {{ 7|round }} {{ 2.675|round(2) }} {{ -2.5|round|int }}
{{ 2.5|round(1, 'x') }}
{{ 'x'|round }}
{{ '42'|int }} {{ '4x'|int }} {{ '4x'|int(9) }} {{ '0x1f'|int(base=16) }} {{ '1f'|int(0, 16) }} {{ 3.9|int }} {{ '3.9'|int }} {{ none|int }} {{ ' 5 '|int }} {{ true|int }} {{ '1e3'|int }} {{ '11'|int(base=2) }} {{ 'inf'|int }} {{ []|int }}
{{ '2.5'|float }} {{ 'x'|float }} {{ 'x'|float(1.5) }} {{ 3|float }} {{ '1e3'|float }} {{ none|float }} {{ 'nan'|float }} {{ '-inf'|float }}
{{ missing|int }}
{{ missing|float }}
{{ s|upper }} {{ s|lower }} {{ s|title }} {{ s|capitalize }} {{ 'a-b (c) [d] {e} <f'|title }} {{ 5|upper }} {{ none|lower }} {{ ['a']|upper }}
{{ w|trim }}|{{ s|trim('Hd') }}|{{ s|trim(chars='dlo') }}|{{ 5|trim }}|{{ s|center(20) }}|{{ 'x'|center(4) }}|
{{ s|replace('o', '0') }} {{ s|replace('o', '0', 1) }} {{ s|replace('l', 1) }} {{ 12321|replace(2, 'x') }} {{ s|replace('', '-') }}
{{ s|replace('o') }}
{{ names|join }} {{ names|join(', ') }} {{ l|join('-') }} {{ people|join(', ', attribute='name') }} {{ s|join('.') }} {{ []|join }} {{ [none, 1.5, true]|join(' ') }} {{ d|join }} {{ l|join(1) }}
{{ n|join }}
{{ s|first }} {{ s|last }} {{ l|first }} {{ l|last }} {{ []|first }}| {{ []|last }}| {{ ''|first }}| {{ d|first }} {{ d|last }} {{ range(3)|last }}
{{ ([]|first).x }}
{{ n|first }}
{{ l|select|last }}
{{ s|length }} {{ l|count }} {{ d|length }} {{ range(7)|length }} {{ ''|length }} {{ (1, 2)|length }}
{{ n|length }}
{{ none|length }}
{{ l|select|length }}
{{ s|list }} {{ d|list }} {{ range(3)|list }} {{ l|list }} {{ (1, 2)|list }} {{ s|reverse }} {{ l|reverse|list }} {{ u|reverse }} {{ range(3)|reverse|list }} {{ d|reverse|list }}
{{ n|list }}
{{ l|sort }} {{ names|sort }} {{ names|sort(case_sensitive=true) }} {{ l|sort(reverse=true) }} {{ people|sort(attribute='age')|map(attribute='name')|list }} {{ people|sort(attribute='age,name')|map(attribute='name')|list }} {{ people|sort(true, attribute='name')|map(attribute='name')|join }} {{ d|sort }}
{{ [1, 'a']|sort }}
{{ [none, 1]|sort }}
{{ d|dictsort }} {{ d|dictsort(true) }} {{ {'b': 2, 'a': 3}|dictsort(by='value') }} {{ {'b': 2, 'a': 3}|dictsort(reverse=true) }} {{ {'B': 1, 'a': 1}|dictsort(false, 'key') }}
{{ d|dictsort(by='x') }}
{{ l|dictsort }}
{{ missing|dictsort }}
{{ names|unique|list }} {{ names|unique(true)|list }} {{ [1, 1.0, true, 2]|unique|list }} {{ people|unique(attribute='age')|map(attribute='name')|list }}
{{ l|min }} {{ l|max }} {{ names|min }} {{ names|max }} {{ names|max(case_sensitive=true) }} {{ people|min(attribute='age') }} {{ []|min }}| {{ s|max }}
{{ [1, 'a']|max }}
{{ missing|default('x') }} {{ ''|default('x') }} {{ ''|default('x', true) }} {{ none|default('x') }} {{ none|d('x', boolean=true) }} {{ missing|d }}| {{ d.q|default(d.b) }} {{ 0|default(5, true) }}
{{ missing.x|default('y') }}
{{ l|map('string')|list }} {{ names|map('upper')|join }} {{ people|map(attribute='age')|list }} {{ people|map(attribute='tags', default='none')|list }} {{ people|map(attribute='zip')|list }} {{ people|map(attribute='tags.0')|list }} {{ ['1', '2']|map('int')|sum }} {{ names|map('replace', 'a', 'x')|list }} {{ nested|map(attribute=0)|list }} {{ nested|map('join', '+')|list }}
{{ l|map|list }}
{{ l|map('nofilter')|list }}
{{ missing|map('upper')|list }} {{ []|map('nofilter')|list }}
{{ l|select('odd')|list }} {{ l|reject('odd')|list }} {{ l|select('>', 1)|list }} {{ [0, 1, '', 'a', none]|select|list }} {{ [0, 1, '', 'a', none]|reject|list }} {{ l|select('divisibleby', 2)|list }} {{ l|select('in', [1, 2])|list }}
{{ people|selectattr('age', '==', 30)|map(attribute='name')|list }} {{ people|selectattr('tags')|map(attribute='name')|list }} {{ people|rejectattr('tags')|map(attribute='name')|list }} {{ people|selectattr('tags', 'defined')|list|length }} {{ people|rejectattr('age', 'equalto', 30)|list|length }} {{ people|selectattr('name', 'in', ['Bo'])|list|length }} {{ people|selectattr('tags', 'undefined')|list|length }}
{{ l|select('notest')|list }}
{{ people|selectattr|list }}
{{ people|groupby('age') }}
{% for age, group in people|groupby('age') %}{{ age }}:{{ group|map(attribute='name')|join(',') }};{% endfor %}
{% for g in people|groupby('tags', default=['q']) %}{{ g.grouper }}{{ g.list|length }}{% endfor %}
{% for g in names|groupby(0) %}{{ g.grouper }}={{ g.list }} {% endfor %}
{{ range(7)|batch(3)|list }} {{ range(7)|batch(3, 'x')|list }} {{ range(7)|slice(3)|list }} {{ range(7)|slice(3, 'x')|list }} {{ []|batch(2)|list }} {{ l|slice(5)|list }}
{{ l|slice(0)|list }}
{{ 'a\\nb\\n\\nc'|indent }}|{{ 'a\\nb'|indent(2, true) }}|{{ 'a\\n\\nb'|indent(2, blank=true) }}|{{ 'a\\nb'|indent('>> ') }}|{{ 'a\\n'|indent }}|{{ ''|indent(first=true) }}|{{ 'a\\r\\nb'|indent(width=1) }}|
{{ long|truncate(20) }} {{ long|truncate(20, true) }} {{ long|truncate(20, end='!') }} {{ 'short'|truncate(3) }} {{ 'foo bar baz qux'|truncate(9) }} {{ 'foo bar baz qux'|truncate(11, leeway=0) }} {{ 'foo bar baz qux'|truncate(11, false, '...', 0) }}
{{ long|truncate(2) }}
{{ long|wordcount }} {{ "a-b c_d é 1"|wordcount }} {{ ''|wordcount }}
{{ html|escape }} {{ html|e }} {{ html|safe }} {{ html|e|e }} {{ html|e|forceescape }} {{ html|striptags }} {{ '<!-- x --> a  <b>b</b>'|striptags }} {{ 5|e }} {{ html|safe|upper }}
{{ (html|safe) + '<' }} {{ '<' + (html|safe) }} {{ '<' ~ (html|safe) ~ '>' }} {{ ('<b>'|safe).replace('b', '&') }} {{ ('%s'|safe) % '<' }} {{ ('{}'|safe).format('<') }} {{ [('<'|safe), '<']|join }} {{ ('<'|safe).join(['<', '>']) }} {{ ('<'|safe) * 2 }} {{ [('<'|safe)] }} {{ ('<'|safe)[0] + '<' }} {{ ('<'|safe) is escaped }}
{{ 'a b/c?d=é&~'|urlencode }} {{ {'a b': 'c/d', 'e': 1}|urlencode }} {{ [('x', 'y z')]|urlencode }} {{ {'class': 'a"b', 'id': none, 'x': 1}|xmlattr }} {{ {'a': 1}|xmlattr(false) }} {{ 5|urlencode }}
{{ {'a b': 1}|xmlattr }}
{{ 1|filesizeformat }} {{ 999|filesizeformat }} {{ 1000|filesizeformat }} {{ 1500000|filesizeformat }} {{ 1024|filesizeformat(true) }} {{ 123456789|filesizeformat(binary=true) }}
{{ d|tojson }} {{ l|tojson }} {{ none|tojson }} {{ true|tojson }} {{ 1.0|tojson }} {{ s|tojson }} {{ u|tojson }} {{ html|tojson }} {{ (1, 'a')|tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }}
{{ d|tojson(indent=2) }} {{ []|tojson(indent=2) }} {{ {}|tojson(indent=2) }} {{ nested|tojson(indent=4) }} {{ {'a': {'b': []}}|tojson(indent=1) }}
{{ d|tojson(sort_keys=true) }} {{ d|tojson(separators=(',', ':')) }} {{ u|tojson(ensure_ascii=true) }} {{ d|tojson(ensure_ascii=False, indent=2, sort_keys=True) }} {{ '👍\\x7f'|tojson(ensure_ascii=true) }} {{ l|tojson(indent='--') }} {{ l|tojson(indent=0) }}
{{ missing|tojson }}
{{ range(3)|tojson }}
{{ d.items()|tojson }}
{{ l|map('string')|tojson }}
{{ d|attr('items') is callable }} {{ d|attr('b') is defined }} {{ s|attr('upper')() }} {{ n|attr('q') is defined }}
{{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }} {{ n is number }} {{ n is integer }} {{ f is float }} {{ f is integer }} {{ t is boolean }} {{ t is integer }} {{ t is number }} {{ s is string }} {{ l is sequence }} {{ s is sequence }} {{ d is sequence }} {{ n is sequence }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ n is iterable }} {{ missing is iterable }} {{ missing is sequence }} {{ missing is callable }}
{{ missing is defined }} {{ s is defined }} {{ missing is undefined }} {{ nothing is none }} {{ nothing is not none }} {{ s is lower }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ n is eq 7 }} {{ n is equalto(7) }} {{ n is ne 7 }} {{ n is gt 5 }} {{ n is lessthan 5 }} {{ n is ge(7) }} {{ n is le 6 }} {{ n is in [7] }} {{ 'a' is in d }} {{ none is sameas none }} {{ 1 is sameas true }} {{ 'upper' is filter }} {{ 'q' is filter }} {{ 'odd' is test }} {{ range is callable }}
{{ s is not string }} {{ not s is string }} {{ n is not odd and t }} {{ n is odd or z }} {{ s is string is string }}
{{ 1 is odd is even }}
{{ 'a' is odd }}
{{ n is notest }}
{{ n|nofilter }}
{% if false %}{{ n|nofilter }}{% endif %}ok
{% if true %}{{ n|nofilter }}{% endif %}
{{ (n|nofilter) if false else 'ok' }}
{% for x in [] %}{{ n|nofilter }}{% endfor %}
{% if false %}{% for x in [] %}{{ n|nofilter }}{% endfor %}{% endif %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ loop.last }} {% else %}none{% endfor %}
{% for x in l if x > 5 %}{{ x }}{% else %}none{{ x }}{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}
{% for (a, b) in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for a, b in [1] %}{{ a }}{% endfor %}
{% for c in s %}{{ c }}.{% endfor %}{% for c in u %}{{ c }}.{% endfor %}
{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}|{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [] %}{% break %}{% else %}E{% endfor %}
{% break %}
{% for i in l %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}
{% for item in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ item.n }}{{ loop.depth }}{% if item.c %}<{{ loop(item.c) }}>{% endif %}{% endfor %}
{% for x in l %}{{ loop(l) }}{% endfor %}
{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}
{% set ns = namespace(a=1, b='x') %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}|{{ ns['a'] }}|
{% set ns = namespace({'q': 2}, r=3) %}{{ ns.q + ns.r }}{% set ns.items = [1] %}{{ ns.items }}
{% set ns = namespace() %}{{ ns.x.y }}
{% set d2 = {} %}{% set d2.x = 1 %}
{% set q.x = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = a, b %}{{ c }}{% set (e1, e2) = [5, 6] %}{{ e1 + e2 }}
{% set a, b = 1 %}
{% set block %}<{{ s }}>{% set inner = 1 %}{% endset %}{{ block }}{{ inner }}|{% set up | upper | replace('L', '_') %}{{ s }}{% endset %}{{ up }}
{% if t %}{% set y = 5 %}{% endif %}{{ y }}{% if z %}{% set q = 1 %}{% else %}{% set q = 2 %}{% endif %}{{ q }}
{% if z %}a{% elif n == 7 %}b{% elif t %}c{% else %}d{% endif %}{% if z %}a{% elif z %}b{% else %}{% if t %}e{% endif %}{% endif %}
{% with a = 1, b = n %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ c }}|{% with %}{% set q = 4 %}{{ q }}{% endwith %}{{ q }}{% set a = 2 %}{% with a = 1, b = a %}{{ b }}{% endwith %}
{% macro f(a, b=2, c=b) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=4, a=5) }} {{ f(1, c=9) }}|{{ f() }}|{{ f.name }}{{ f.arguments }}
{% macro f(a) %}{{ a.x }}{% endmacro %}{{ f() }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}
{% macro f(a) %}{{ varargs }}{{ kwargs }}{{ a }}{% endmacro %}{{ f(1, 2, 3, x=4) }} {{ f() }} {{ f(*l, **{'q': 1}) }}
{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 3, 'b': 4}) }}{{ f(1, *[2]) }}
{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}in {{ s }}{% endcall %}{% macro g() %}{% for i in l %}{{ caller(i, 2) }}{% endfor %}{% endmacro %}{% call(x, y=9) g() %}{{ x }}{{ y }};{% endcall %}
{% macro f() %}{{ caller }}{{ caller is defined }}{% endmacro %}{{ f() }}
{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}
{% macro f() %}{{ later }}{% endmacro %}{% set later = 3 %}{{ f() }}{% for later2 in [1] %}{{ f() }}{% endfor %}
{% macro f() %}{% set s = 1 %}{{ s }}{% endmacro %}{{ f() }}{{ s }}{% for q in l %}{% macro h() %}{{ q }}{% endmacro %}{{ h() }}{% endfor %}
{% macro f(x) %}{% for i in x %}{{ i }}{% endfor %}{% endmacro %}{{ f('ab') ~ f([1]) }}{{ f([]) is string }}{{ f('x')|upper }}
{% filter upper %}a{{ s }}{% endfilter %}{% filter replace('a', 'b')|trim %} aa {% endfilter %}{% call undefined_thing() %}{% endcall %}
{% filter upper %}a{% set q = 1 %}{{ q }}{% endfilter %}{{ q }}
{% generation %}{{ s }}{% set q = 1 %}{% endgeneration %}{{ q }}|
{% raw %}{{ x }}{% if %}{# c #}{% endraw %}{%- raw -%} a {%- endraw -%} b
{{ "}}" }} {{ '%}' }} {{ {'a': {'b': 1}} }} {{ {'a': {'b': 1}}['a']['b'] }} {{ "{%" }}
{{ {} }} {{ {'a': 1, } }} {{ [1, ] }} {{ (1, ) }} {{ () }} {{ (1) }} {{ 1, 2 }} {{ {1: 'a', 'b': 2}[1] }} {{ {(1, 2): 3}[(1, 2)] }} {{ {'a': 1, 'a': 2} }}
{{ {[1]: 2} }}
{{ range(3) }} {{ range(1, 3)|list }} {{ range(5, 0, -2)|list }} {{ range(0) }} {{ range(3)|sum }} {{ range(3) == range(0, 3) }} {{ range(1, 2, 3) }}
{{ range(100001) }}
{{ range() }}
{{ range('a') }}
{{ range(1, 2, 0) }}
{{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ dict({'a': 1}, b=2) }} {{ dict() }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}{% set j = joiner() %}{{ j() }}a{{ j() }}b{% set k = joiner('|') %}{{ k() }}{{ k() }}
{{ raise_exception('Own words: ' ~ n) }}
{% if n == 7 %}{{ raise_exception("two\\nlines") }}{% endif %}
{{ raise_exception() }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y, %H:%M') }} {{ strftime_now('%A %B %-d') }} {{ strftime_now('x') }}
{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token is defined }}{{ mask_token }}
{{ messages[0].role }} {{ messages[0]['content'] }} {{ messages|length }} {{ messages[-1].role == 'assistant' }} {{ tools is none }} {{ tools }} {{ documents }} {{ add_generation_prompt }}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ (messages|selectattr('role', 'ne', 'system')|first).content }} {% for m in messages %}{{ loop.previtem.role if loop.previtem else '-' }}{% endfor %}
{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ ns.last }}{{ messages[::-1][0].content }}
{% set x = '' %}{% set parts = s.split(' ') %}{{ parts[-1].lstrip('W') }}{{ (s.split('o')|last).strip() }}{{ '</think>' in s }}{{ s.split('</think>')[-1] }}
{{ s|upper|lower|title|replace('o', '0')|trim|length }} {{ -n|abs }} {{ (n + 1)|string ~ 'x' }} {{ n|string|length + 1 }} {{ 'a' ~ 'b'|upper }} {{ not n|string == '7' }}
{{ l is iterable and l is not string }} {{ d is mapping and 'a' in d }} {{ s.split()[0][1:].upper() }} {{ [1, [2, [3]]][1][1][0] }} {{ (1, 2)[0] }} {{ l|sort|first }}
{% set x %}{% endset %}{{ x|length }}{{ x == '' }}{% print s %}{% print s, n %}
{% block b %}{{ s }}{% endblock %}{% block c %}x{% endblock c %}
{% include 'x' %}
{% import 'x' as y %}
{% extends 'x' %}
{% from 'x' import y %}
{% do l.append(1) %}
{% unknown %}
{% if t %}x
{% for x in l %}x{% endif %}
{% if t %}{% endfor %}
{{ s
{{ s }
{% set %}
{% set 1 = 2 %}
{% set x + 1 = 2 %}
{% set true = 2 %}
{% for 1 in l %}{% endfor %}
{{ }}
{{ s. }}
{{ s[ }}
{{ (1 }}
{{ 1) }}
{{ [1) }}
{{ 'abc }}
{{ @ }}
{{ 1 2 }}
{{ a b }}
{{ s|}}
{{ f(1 2) }}
{{ f(a=1, 2) }}
{{ {1} }}
{{ {1: } }}
{# open
{% raw %} open
{% macro f(a=1, b) %}{% endmacro %}
{% macro f( %}{% endmacro %}
{% call s %}{% endcall %}
{% for x in %}{% endfor %}
{% if %}{% endif %}
{% else %}
{% endset %}
{{ 1 if }}
{{ not }}
{{ s is }}
{{ *l }}
{{ '\\xq' }}
{% set n = 5 %}{% for i in range(n) %}{{ '%02d' % i }}{{ ',' if not loop.last }}{% endfor %}
{% for m in messages %}{% if loop.first and m.role == 'system' %}{% set sys = m.content %}{{ sys }}{% endif %}{% endfor %}{{ sys is defined }}
{% for x in [1, 2] %}{% set outer = x %}{% for y in [3] %}{{ outer }}{{ y }}{% set outer = 9 %}{{ outer }}{% endfor %}{{ outer }}{% endfor %}
{% set l2 = l + [4] %}{{ l2 }}{{ l }}{% set l2 = l2 + [5] %}{{ l2|length }}
{{ '' }}{{ none if n else 1 }}{{ {'a': none}.a }}{{ {'a': none}.get('a', 1) }}{{ [none, missing, true, 1.0, 'a', {'x': [missing]}] }}
""".strip("\n")


SEVERAL = [
    "a\n\n", "\n", "", "x\r\ny\rz\n", "  {% if t %}\n    a\n  {% endif %}\n  b\n", "{% for i in l %}\n  {{ i }}\n{% endfor %}\n.\n",
    "a {#- c -#} b {# {{ x }} #} c\n  {# c #}\n d\n", "  {%+ if t %}z{% endif +%}\n w {%- if t -%}  q  {%- endif %}   r\n",
    "a\n{%- set b = 1 %}\n\nc {{- ' d ' -}} e\n    {{ s }}\n   {# comment #}\n  end\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\ny", " {%- raw -%} a {%- endraw -%} b", "{{ 'x\\\ny' }}", "{{ s\n  |upper\n}}\n{{\nn }}",
    "\t{% if t %}\tx\t{% endif %}\t\n\ty", "x{% if t %}\n\n y{% endif %}", "{% if t -%}\n\n  a\n\n{%- else -%}\n b\n{%- endif -%}\n\n c",
    "{% set x = {\n  'a': 1,\n  'b': [\n    2\n  ]\n} %}\n{{ x }}", "{{ {'a': '}}'}['a'] }}", "a{{+ s }}", "{{- s +}}", "{%-if t-%}x{%-endif-%}",
    "\u00a0{%- if t %}x{% endif -%}\u2003y", "{#-\n x\n-#}  z", "{# a +#}\n b", "{% raw -%}\n a {{ b }}\n{%- endraw %}\n c",
    "{% macro f(x) -%}\n  {{ x }}\n{%- endmacro -%}\n{{ f(1) }}\n{{ f(2) }}\n", "{{ s }}\n{{ n }}\n\n", "{% if t %}\n{% if t %}\nx\n{% endif %}\n{% endif %}\n",
]
SNIPPETS = SNIPPETS.split("\n") + SEVERAL

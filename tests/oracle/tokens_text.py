"""Text for comparing tokenizers: what breaks them, made here, the same at each run."""
import random

WORDS = ("the don't WE'LL it's naïve façade straße Ǆungla ΑΒΓ αβγ Привет мир ЁЖ שלום עולם مرحبا नमस्ते ক্ষেত্র "
         "สวัสดีครับ 你好，世界。 ひらがな カタカナ ｶﾀｶﾅ 한국어 조선말 ქართული Հայերեն አማርኛ ខ្មែរ "
         "a1b2 1234567 ٣٤٥ Ⅷ ½ x² 3.14 1,000,000 0xFF e-mail@host.org https://x.y/z?q=1&r=2 snake_case "
         "CamelCase HTTPServer iPhone McDonald's 'tis 'S 'LL 'Re ' '' ''s \"q\" (paren) [brk] {brc} <tag/> "
         "¡hola! ¿qué? «x» “y” — … $5 €6 £7 +−×÷ ≤≥ →⇒ № © ™ ~` ^ | \\ \\n %d #x !important").split()
EMOJI = "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ☃️ ❤ 1️⃣ 🫠 ⌚︎".split()
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", "\v", "\f", "\u00a0", "\u0085",
          "\u2003", "\u2028", "\u3000", "\u200b", "\u00ad", "\ufeff", " " * 17, "\n" * 9, "\r"]
CODE = """def f(x, *, y=0):\n\tif x >= 10 and not y:\n        return {'k': [1, 2.5e-3], "s": f"{x!r:>8}"}\n\n\n#include <a.h>
for (int i = 0; i < n; ++i) { a[i] += b->c->d ? 0x1F : ~0u; } // done\n    \n\nSELECT * FROM t WHERE a <> 'b';\r\n"""


def mixture(seed, n):
    """n words, spaces, emoji and single characters of all planes."""
    rng = random.Random(seed)
    parts = []
    for _ in range(n):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(WORDS))
        elif kind < 0.85:
            parts.append(rng.choice(SPACES))
        elif kind < 0.9:
            parts.append(rng.choice(EMOJI))
        elif kind < 0.97:
            parts.append(chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x3000, 0xd800),
                                         rng.randrange(0xe000, 0x20000)])))
        else:
            parts.append(rng.choice(CODE.split("\n")))
    return "".join(parts).encode()


def characters():
    """Every character that Unicode 15.1 might class, and a space before each fourth."""
    codes = [*range(0xd800), *range(0xe000, 0x32400), *range(0xe0000, 0xe0200)]
    return "".join((" " if c % 4 == 0 else "") + chr(c) for c in codes).encode()


def broken(seed, n):
    """About n bytes of words between which something is no UTF-8, often in their middle. Left out: four-byte forms past
    U+10FFFF, at which llama.cpp ends its process."""
    rng = random.Random(seed)
    kinds = [lambda: rng.randbytes(1).translate(None, bytes(range(0xf4, 0xf8))), lambda: bytes([rng.randrange(0x80, 0xc0)]),
             lambda: bytes([rng.randrange(0xc0, 0xf4)]), lambda: rng.choice(WORDS).encode(), lambda: b" ",
             lambda: rng.choice(WORDS).encode()[:rng.randrange(4)], lambda: rng.choice(WORDS).encode()[-1:]]
    return b"".join(rng.choice(kinds)() for _ in range(n // 2))


def canonical(data):
    """What byte-level BPE keeps of a text: invalid bytes are U+FFFD, overlong forms are the character."""
    out, i = b"", 0
    while i < len(data):
        lead = data[i]
        n = 1 if lead < 0x80 else 0 if lead < 0xc0 else 2 if lead < 0xe0 else 3 if lead < 0xf0 else 4 if lead < 0xf8 else 0
        tail = data[i + 1:i + n]
        if n == 0 or len(tail) < n - 1 or any(c & 0xc0 != 0x80 for c in tail):
            out += "\ufffd".encode()
            i += 1
            continue
        code = lead & (0xff >> (n + 1) if n > 1 else 0x7f)
        for c in tail:
            code = code << 6 | (c & 0x3f)
        out += chr(code).encode("utf-8", "surrogatepass")
        i += n
    return out

"""The library's check of JSON beside Python's own: on sound texts, spoiled a little at random, both say the same.

    test_json.py FILTER
"""
import json
import random
import struct
import subprocess
import sys

SEEDS = [b'[1, -0.5e+3, true, false, null, "a\\u00e9\\n\\"x", {"a": [{}], "b": ""}, [[2]], []]', b"[]",
         '["é😀", {"k": {"z": [1,2,{"y":"\\ud83d\\ude00"}]}}]'.encode(), b" [ 0 , -1 , 10.25 ] "]
BYTES = b'[]{}",:0123456789-+.eEtruefalsn\\/ \n\t\x00\x1f\x7f\xc3\xa9\xff'
CASES = 20000


def spoiled(rng):
    text = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(text) + 1)
        text[at:at + rng.randrange(3)] = bytes(rng.choice(BYTES) for _ in range(rng.randrange(2)))
    return bytes(text)


def is_array(text):
    def constant(name):  # NaN and its like
        raise ValueError(name)
    try:
        return isinstance(json.loads(text.decode(), parse_constant=constant), list)
    except ValueError:
        return False


rng = random.Random(5)
cases = [spoiled(rng) for _ in range(CASES)]
packed = b"".join(struct.pack("<I", len(text)) + text for text in cases)
out = subprocess.run([sys.argv[1]], input=packed, stdout=subprocess.PIPE, check=True).stdout
answers = struct.unpack(f"<{CASES}i", out)
sound = [is_array(text) for text in cases]
wrong = [text for text, r, s in zip(cases, answers, sound) if (r == 0) != s]
assert not wrong, wrong[:5]
assert 1000 < sum(sound) < CASES - 1000
print(sum(sound), "of", CASES, "are sound, for both")

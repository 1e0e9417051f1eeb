#!/usr/bin/env python3
"""draft_times.py [--device cpu] [--runs 5] [--tokens 200] [--only TEXT] [--drafter FILE] [MODEL]: tokens a second with speculative
decoding as it is by default ("measured") and without, of one client, on prose that is sampled, on an edit of code and on
a text that repeats itself; the log proposes, and the drafter, if there is one. Each run asks both, in turns, and their tokens must be the same. Medians; the ratio is the
median of the runs' own, of wall time and of the worker's processor time, which a busy machine changes less.
NIBBLE_TEST_NIBBLED, _WORKER and _CLI name the programs, as for the tests beside it."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from harness import Daemon
from start_times import MODEL, processor_time

CODE = '''def read_lines(path):
    with open(path) as f:
        return [line.rstrip("\\n") for line in f]

def write_lines(path, lines):
    with open(path, "w") as f:
        for line in lines:
            f.write(line + "\\n")

def count_words(path):
    counts = {}
    for line in read_lines(path):
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    return counts

def top_words(path, n):
    counts = count_words(path)
    return sorted(counts.items(), key=lambda item: -item[1])[:n]
'''
LINE = "The service answered a request of client 7 within 20 ms: 3 tokens, status 0.\n"
TEXTS = {
    "prose": ("Describe a walk along the sea in autumn, in several paragraphs.", "--temp", "0.8"),
    "code": ("Add a docstring to each function of this Python file and print the whole file again.\n\n" + CODE,),
    "repetitive": (LINE * 8, "--raw"),
}


class Client:
    def __init__(self, daemon, tokens):
        self.daemon, self.tokens = daemon, tokens
        self.environment = dict(os.environ, NIBBLE_SOCKET=str(daemon.runtime / "nibble.sock"))

    def nibble(self, *words):
        return subprocess.run([os.environ["NIBBLE_TEST_CLI"], *map(str, words)], env=self.environment, check=True,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout

    def ask(self, text, seed, when):
        """The answer, and its tokens a second by the clock and by the processor."""
        prompt, *options = TEXTS[text]
        before = processor_time(self.daemon)
        answer = json.loads(self.nibble("run", "m", prompt, *options, "--seed", seed, "-n", self.tokens,
                                        "--drafts", when, "--json"))
        speed = len(answer["tokens"]) / (processor_time(self.daemon) - before)
        return answer, (answer["timings"]["decode_tps"], speed)


def measure(client, text, runs):
    speeds, proposed, accepted = {"off": [], "measured": []}, 0, 0
    for when in speeds:  # what a first run pays for, and what the device takes is not known yet
        client.ask(text, 0, when)
    for run in range(1, runs + 1):
        answers = {}
        for when in sorted(speeds, reverse=run % 2):
            answers[when], speed = client.ask(text, run, when)
            speeds[when].append(speed)
        if answers["off"]["tokens"] != answers["measured"]["tokens"]:
            sys.exit(f"{text}, seed {run}: not the same tokens")
        proposed += answers["measured"]["timings"]["proposed_tokens"]
        accepted += answers["measured"]["timings"]["accepted_tokens"]
    pairs = list(zip(speeds["off"], speeds["measured"]))
    clock, processor = (statistics.median(on[i] / off[i] for off, on in pairs) for i in range(2))
    off, on = (statistics.median(s[0] for s in speeds[when]) for when in ("off", "measured"))
    print(f"{text:12} {off:8.1f} {on:8.1f} {clock:8.2f} {processor:10.2f} {proposed / runs:9.0f} {accepted / runs:9.0f}",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--only", choices=TEXTS)
    parser.add_argument("--drafter", help="a model of the same tokens")
    parser.add_argument("model", nargs="?", default=os.environ.get("NIBBLE_MODEL", MODEL))
    args = parser.parse_args()
    processor = next((line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    daemon = Daemon()
    client = Client(daemon, args.tokens)
    client.nibble("load", args.model, "--name", "m", "--device", args.device)
    if args.drafter:
        client.nibble("load", args.drafter, "--name", "d", "--draft-for", "m")
    print(f"{args.device} of {processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; tokens a second")
    print(f"{'':12} {'without':>8} {'with':>8} {'ratio':>8} {'processor':>10} {'proposed':>9} {'accepted':>9}", flush=True)
    for text in [args.only] if args.only else TEXTS:
        measure(client, text, args.runs)
    daemon.stop()
    daemon.finish()


if __name__ == "__main__":
    main()

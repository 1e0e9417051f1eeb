"""Speculative decoding as clients see it: the real model's bytes with and without, on every device, and after a death."""
from test_cli import MODEL, CliTest
from test_devices import LAVAPIPE
from test_embed import MINILM
from harness import *

# A model that goes on with this repeats it.
LINE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"
SAMPLED = [("--temp", "0.7", "--seed", str(seed)) for seed in (1, 2, 3)]
MEASURED, OFF, ALWAYS = (("--drafts", when) for when in ("measured", "off", "always"))


class Drafts(CliTest):
    device, n, prompt, sampled = "cpu", 80, LINE * 6, SAMPLED[:1] if SANITIZED else SAMPLED

    def setUp(self):
        super().setUp()
        self.nibble("load", MODEL, "--name", "m", "--device", self.device, "--context", "1024")

    def command(self, *options, prompt=None):
        length = () if "-n" in options else ("-n", str(self.n))
        return "run", "m", prompt or self.prompt, "--raw", "--ignore-eos", *options, *length

    def ask(self, *options, **prompt):
        return self.json(*self.command(*options, **prompt))

    def assert_same(self, a, b):
        for key in ("text", "tokens", "finish"):
            self.assertEqual(a[key], b[key])

    def accepted(self, answer):
        timings = answer["timings"]
        self.assertLessEqual(timings["accepted_tokens"], timings["proposed_tokens"])
        self.assertLess(timings["accepted_tokens"], timings["generated_tokens"])
        return timings["accepted_tokens"]

    def test_the_bytes_are_the_same(self):
        for sampling in [(), ("--repeat-penalty", "1.05", "--repeat-window", "64"), *self.sampled]:
            plain = self.ask(*OFF, *sampling)
            self.assertEqual(plain["timings"]["proposed_tokens"], 0)
            for when in (MEASURED, ALWAYS):
                drafted = self.ask(*when, *sampling)
                self.assert_same(drafted, plain)
                if when == ALWAYS and not sampling:
                    self.assertGreater(self.accepted(drafted), self.n // 2)  # it is not off

    def test_several_sessions_in_a_batch(self):
        asked = [(ALWAYS, ()), (MEASURED, SAMPLED[0]), (OFF, SAMPLED[1]), (ALWAYS, SAMPLED[2])]
        alone = [self.ask(*OFF, *sampling, prompt=self.prompt[i:]) for i, (_, sampling) in enumerate(asked)]
        together = [self.start(*self.command(*when, *sampling, prompt=self.prompt[i:]), "--json")
                    for i, (when, sampling) in enumerate(asked)]
        for process, wanted in zip(together, alone):
            self.assert_same(json.loads(self.finish(process)[0]), wanted)

    def test_ends_within_accepted_tokens(self):
        whole = self.ask(*OFF)
        before = self.json("status")["decode_tokens"]
        self.assert_same(self.ask(*ALWAYS), whole)
        # Counted are the tokens that came, but for the first, which is the prompt's.
        self.assertEqual(self.json("status")["decode_tokens"] - before, self.n - 1)
        for n in range(20, 30):
            answer = self.ask(*ALWAYS, "-n", str(n))
            self.assertEqual((answer["tokens"], answer["finish"]), (whole["tokens"][:n], "length"))
        for at in range(len(whole["text"]) // 2, len(whole["text"]) // 2 + 40, 9):
            stop = "--stop", whole["text"][at:at + 9]
            self.assert_same(self.ask(*ALWAYS, *stop), self.ask(*OFF, *stop))

    def test_the_worker_is_killed(self):
        for sampling in ((), *self.sampled[:1]):
            alone = self.ask(*OFF, *sampling)
            before = self.json("status")
            process = self.start(*self.command(*ALWAYS, *sampling), "--json")
            until(lambda: self.json("status")["decode_tokens"] > before["decode_tokens"] + 10, "tokens")
            os.kill(self.daemon.server(), signal.SIGKILL)
            self.assert_same(json.loads(self.finish(process)[0]), alone)
            self.assertEqual(self.json("status")["worker_restarts"], before["worker_restarts"] + 1)

    def test_what_is_told(self):
        self.assertRegex(self.nibble(*self.command(*ALWAYS, "-v"))[1], r", \d+ of \d+ proposed; length\]")
        self.assertNotIn("proposed", self.nibble(*self.command(*OFF, "-v"))[1])
        self.assertIn("--drafts is measured, off or always", self.fails(*self.command("--drafts", "on"), status=2))


class DraftsOfAModel(Drafts):
    """A drafter: here the model itself, which proposes what it will choose. The log has less to say of this prompt."""
    prompt, sampled = "Write a story about a fox and a crow.", SAMPLED[:1]

    def setUp(self):
        super().setUp()
        self.nibble("load", MODEL, "--name", "d", "--draft-for", "m")

    test_ends_within_accepted_tokens = test_what_is_told = None

    def test_the_bytes_are_the_same(self):
        for sampling in ((), *self.sampled):
            plain, drafted = (self.ask(*when, *sampling) for when in (OFF, ALWAYS))
            self.assert_same(drafted, plain)
            self.assertGreater(self.accepted(drafted), self.n // 2)

    def test_it_goes_and_comes(self):
        alone = self.ask(*OFF)
        self.nibble("unload", "d")
        self.assert_same(self.ask(*ALWAYS), alone)
        self.assertEqual([m["name"] for m in self.json("models")["models"]], ["m"])
        self.nibble("load", MODEL, "--name", "e", "--draft-for", "m")
        drafted = self.ask(*ALWAYS)
        self.assert_same(drafted, alone)
        self.assertGreater(self.accepted(drafted), self.n // 2)
        rows = {m["name"]: m for m in self.json("models")["models"]}
        self.assertEqual([(rows[n]["base"], rows[n]["is_drafter"]) for n in "me"], [("", False), ("m", True)])
        self.nibble("unload", "m")
        self.assertEqual(self.json("models")["models"], [])

    def test_refusals(self):
        student = self.daemon.dir.name + "/student.gguf"
        text = self.daemon.file("text.txt", b"One, two, three, four, five. " * 400)
        make = ("distill", MODEL, "--text", text, "--tokens", "0", "--length", "64", "--held-out", "1")
        self.assertIn("m has a drafter, d: unload that first", self.fails(*make, "-o", student, "--draft-for", "m"))
        self.assertIn("d is the drafter of m", self.fails(*make, "-o", student, "--draft-for", "d"))
        for words, line in [(("load", MODEL, "--name", "x", "--draft-for", "m"), "the model has a drafter: unload that first"),
                            (("load", MODEL, "--name", "x", "--draft-for", "d"), '"d" is a drafter itself'),
                            (("load", MODEL, "--name", "x", "--draft-for", "m", "--device", "cpu"), 'served as its base "m" is'),
                            (("run", "d", "hello"), '"d" drafts for "m": open that'),
                            (("run", "m", "hello", "--adapter", "d"), '"m" has no adapter "d"')]:
            self.assertIn(line, self.fails(*words))
        self.nibble("unload", "d")
        self.assertIn('a model "m" is loaded', self.fails(*make, "-o", self.daemon.dir.name + "/m.gguf", "--draft-for", "m"))
        self.assertIn("drafts are of models that generate", self.fails("load", MINILM, "--name", "x", "--draft-for", "m"))
        other = self.daemon.file("r.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", other, "Q4_0", "3"], check=True)
        self.assertIn("it has other tokens than the model", self.fails("load", other, "--name", "x", "--draft-for", "m"))


class ADrafterIsMade(CliTest):
    config = "[jobs]\nidle = 0\n"  # a busy machine has no idle time

    def test_of_a_loaded_model(self):
        model, text = self.daemon.file("r.gguf", b""), self.daemon.file("t.txt", b"It was the best of times. " * 60)
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", model, "Q4_0", "3"], check=True)
        out = model.with_name("small.gguf")
        make = "distill", model, "-o", out, "--text", text, "--tokens", "64", "--length", "16", "--batch", "32", "--held-out", "1"
        self.assertIn('no model "r" is loaded to draft for', self.fails(*make, "--draft-for", "r"))
        self.assertIn("--draft-for loads a student", self.fails(*make[:2], "--detach", *make[4:], "--draft-for", "r", status=2))
        self.nibble("load", model, "--name", "r", "--context", "128")
        err = self.nibble(*make, "--layers", "1", "--draft-for", "r")[1]
        self.assertIn("small proposes tokens for r from now on", err)
        row = next(m for m in self.json("models")["models"] if m["name"] == "small")
        self.assertEqual((row["base"], row["is_drafter"], row["layers"], row["type"]), ("r", True, 1, "Q8_0"))
        run = "run", "r", "Once", "--raw", "--ignore-eos", "-n", "60", "--temp", "1", "--seed", "5"
        plain, drafted = (self.json(*run, *when) for when in (OFF, ALWAYS))
        self.assertEqual(drafted["tokens"], plain["tokens"])
        self.assertGreater(drafted["timings"]["proposed_tokens"], 0)


class SwitchedOff(Drafts):
    """By the administrator, whatever a session asks for."""
    config = "[serving]\ndrafts = 0\n"
    n = 20

    def test_the_bytes_are_the_same(self):
        for when in (MEASURED, OFF, ALWAYS):
            self.assertEqual(self.ask(*when)["timings"]["proposed_tokens"], 0)

    test_several_sessions_in_a_batch = test_ends_within_accepted_tokens = None
    test_the_worker_is_killed = test_what_is_told = None


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class DraftsOnVulkan(Drafts):
    device, n, prompt, sampled = "vulkan0", 24, LINE * 3, SAMPLED[:1]

    def setUp(self):
        self.env = {"VK_DRIVER_FILES": str(LAVAPIPE), "VK_ICD_FILENAMES": str(LAVAPIPE)}
        super().setUp()

    test_several_sessions_in_a_batch = test_ends_within_accepted_tokens = test_what_is_told = None


class DraftsOnBoth(DraftsOnVulkan):
    """A model over two devices."""
    device, sampled = "vulkan0:10+cpu", []

    test_the_worker_is_killed = None

"""The chat at a terminal: the nibble command on a pseudo-terminal, as somebody types at it."""
import pty
import stat
import termios

from harness import *
from test_cli import MODEL, NIBBLE, CliTest

UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"
ANSWER = "}\r\n"  # a --json answer's end


class Terminal:
    """A command that has a terminal of its own, 80 by 24, in no locale."""

    def __init__(self, words, env, stdout=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def take():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(words, env=env, stdin=slave, stdout=stdout or slave, stderr=slave,
                                        preexec_fn=take)
        os.close(slave)
        self.shown = ""

    def until(self, text):
        """What was shown, up to that text."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            ready = select.select([self.master], [], [], max(0, end - time.monotonic()))[0]
            data = b""
            try:
                data = os.read(self.master, 65536) if ready else b""
            except OSError:  # EIO: nobody has it open any more
                pass
            if not data:
                raise AssertionError(f"in vain: {text!r} in {self.shown!r}")
            self.shown += data.decode(errors="replace")
        at = self.shown.index(text) + len(text)
        before, self.shown = self.shown[:at], self.shown[at:]
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def prompt(self):
        """A prompt, and the editor behind it: only then keys are its."""
        before = self.until("> ")
        until(lambda: not termios.tcgetattr(self.master)[3] & termios.ICANON, "a line editor")
        return before

    def end(self):
        try:
            return self.process.wait(PATIENCE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.master)


class Chat(CliTest):
    def setUp(self):
        super().setUp()
        self.nibble("load", MODEL, "--name", "smol", "--kv-bytes", "256Mi")

    def chat(self, *words, stdout=None, **env):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "XDG_"))}
        terminal = Terminal([NIBBLE, "run", "smol", *words, "--socket", self.daemon.runtime / "nibble.sock"],
                            dict(plain, **{"TERM": "xterm", "HOME": self.daemon.dir.name, **env}), stdout)
        self.addCleanup(lambda: terminal.process.poll() is None and terminal.process.kill())
        return terminal

    def ends(self, terminal):
        terminal.prompt()
        terminal.type(CTRL_D)
        self.assertEqual(terminal.end(), 0)

    def answer(self, terminal):
        terminal.until('{"text"')
        return json.loads('{"text"' + terminal.until(ANSWER))

    def sends(self, keys, message, *after):
        """These keys send this message: its answer is that of the same PROMPT."""
        terminal = self.chat("--json", "-n", "6")
        terminal.prompt()
        for part in (keys, *after):
            terminal.type(part)
            if after:
                time.sleep(0.2)  # keys of their own, not lines that wait
        got = self.answer(terminal)
        want = self.json("run", "smol", message, "-n", "6")
        self.assertEqual([got[k] for k in ("text", "tokens")], [want[k] for k in ("text", "tokens")])
        self.assertEqual(got["timings"]["prompt_tokens"], want["timings"]["prompt_tokens"])
        self.ends(terminal)

    def test_turns(self):
        """A second turn goes on from the first, whose tokens are not computed again."""
        terminal = self.chat("--json", "-n", "10")
        terminal.prompt()
        terminal.type("Hello.\r")
        first = self.answer(terminal)["timings"]
        terminal.prompt()
        terminal.type("What did I say?\r")
        second = self.answer(terminal)["timings"]
        self.assertEqual(first["cached_tokens"], 0)
        self.assertGreater(second["cached_tokens"], first["prompt_tokens"])
        self.ends(terminal)

    def test_letters(self):
        self.sends("Größe? 日本語 😀\r", "Größe? 日本語 😀")

    def test_paste(self):
        self.sends("\x1b[200~first line\rsecond\tline \x03\x04\r\x1b[201~", "first line\nsecond\tline ", "\r")

    def test_waiting_lines(self):
        """Lines that are there at once are one message, without a terminal that marks pastes too."""
        self.sends("eins\rzwei\rdrei\r", "eins\nzwei\ndrei")
        self.sends("eins\rzw", "eins\nzwei", "ei\r")

    def test_interrupted_line(self):
        self.sends("This is not sent." + CTRL_C, "Hello", "Hello\r")

    def test_interrupted_answer(self):
        terminal = self.chat("--ignore-eos")
        terminal.prompt()
        terminal.type("Tell me a long story.\r")
        terminal.until("[?2004l")
        until(lambda: self.json("status")["decode_tokens"] > 3, "an answer")
        terminal.type(CTRL_C)
        terminal.until("[cancelled]")
        self.ends(terminal)

    def test_history(self):
        first = self.chat("-n", "2")
        first.prompt()
        first.type("\x1b[200~one \\n\rtwo\x1b[201~")
        time.sleep(0.2)
        first.type("\r")
        first.until("[cut at the limit of 2 tokens]")
        self.ends(first)
        folder = pathlib.Path(self.daemon.dir.name, ".local/state/nibble")
        kept = folder / "history"
        self.assertEqual(kept.read_text(), "one \\\\n\\ntwo\n")
        self.assertEqual([stat.S_IMODE(f.stat().st_mode) for f in (folder, kept)], [0o700, 0o600])
        self.sends(UP, "one \\n\ntwo", "\r")

    def test_history_bounds(self):
        """A file that grew is cut to its newer half; what is no file of lines does no harm."""
        state = pathlib.Path(self.daemon.dir.name, "state-home")
        (state / "nibble").mkdir(parents=True)
        kept = state / "nibble/history"
        kept.write_bytes(b"".join(b"message %d of many\n" % i for i in range(100000)))
        self.ends(self.chat(XDG_STATE_HOME=str(state)))
        self.assertLessEqual(kept.stat().st_size, 1 << 19)
        self.assertTrue(kept.read_bytes().endswith(b"message 99999 of many\n"))
        kept.write_bytes(b"\0\xff\n\n\\")
        self.ends(self.chat(XDG_STATE_HOME=str(state)))
        kept.unlink()
        kept.mkdir()
        self.ends(self.chat(XDG_STATE_HOME=str(state)))
        self.ends(self.chat(XDG_STATE_HOME="/dev/null/nowhere"))

    def test_output_elsewhere(self):
        """Standard output that is no terminal carries answers alone."""
        path = self.daemon.file("answers", b"")
        with open(path, "wb") as out:
            terminal = self.chat("-n", "3", stdout=out)
            terminal.prompt()
            terminal.type("Hello\r")
            self.ends(terminal)
        self.assertEqual(path.read_text(), self.nibble("run", "smol", "Hello", "-n", "3")[0])

    def test_commands(self):
        terminal = self.chat("-n", "2")
        for typed, said in [("/help", "/forget"), ("/forget", "[nothing is left to forget]"),
                            ("Hello", "[cut at the limit of 2 tokens]"), ("/forget", "[the oldest turn is forgotten]"),
                            ("/clear", "[the conversation begins anew]")]:
            terminal.prompt()
            terminal.type(typed + "\r")
            terminal.until(said)
        terminal.prompt()
        terminal.type("/bye\r")
        self.assertEqual(terminal.end(), 0)

    def test_full_context(self):
        """It is said, the conversation stays, and the way out works."""
        self.nibble("unload", "smol")
        self.nibble("load", MODEL, "--name", "smol", "--context", "128")
        terminal = self.chat("--ignore-eos", "--system", "")
        terminal.prompt()
        terminal.type("Tell me a story.\r")
        terminal.until("[cut: the context of 128 tokens is full]")
        self.assertIn("/forget", terminal.prompt())
        terminal.type("Go on.\r")
        terminal.until("error: ")
        self.assertIn("/forget", terminal.prompt())
        terminal.type("/forget\r")
        terminal.until("forgotten]")
        terminal.prompt()
        terminal.type("Hello\r")
        terminal.until("[cut: the context of 128 tokens is full]")
        self.ends(terminal)

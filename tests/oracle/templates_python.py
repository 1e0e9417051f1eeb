"""Chat templates in Python: jinja2 in the settings that transformers uses, and our program beside it."""
import datetime
import json
import struct

import jinja2
import jinja2.ext
import jinja2.sandbox

from program import Program

NOW = 1732800000  # what strftime_now tells
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Raised(Exception):
    """What raise_exception said."""


class Generation(jinja2.ext.Extension):
    """{% generation %}: transformers makes a call of it, which leaves the text alone."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_passed"), [], [], body).set_lineno(line)

    def _passed(self, caller):
        return caller()


def raise_exception(message):
    raise Raised(str(message))


def strftime_now(form):
    return datetime.datetime.fromtimestamp(NOW).strftime(form)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env


ENVIRONMENT = environment()


def theirs(template, conversation):
    """("text", what) or ("raised", the template's own sentence) or ("error", Python's)."""
    names = TOKENS | conversation.get("variables", {})
    names |= {"messages": conversation["messages"], "tools": conversation.get("tools"),
              "documents": conversation.get("documents"),
              "add_generation_prompt": conversation.get("add_generation_prompt", True)}
    try:
        return "text", ENVIRONMENT.from_string(template).render(**names)
    except Raised as e:
        return "raised", str(e)
    except Exception as e:  # Python's own errors reach the caller as they are
        return "error", f"{type(e).__name__}: {e}"


class Ours(Program):
    """The program built from templates.c."""

    def render(self, conversation, raw=None):
        """(status, [(literal, text), ...])"""
        data = raw if raw is not None else json.dumps(conversation, ensure_ascii=False).encode()
        self.ask(struct.pack("<qI", NOW, len(data)), data)
        status, n = self.read("<iI")
        parts = []
        for _ in range(n):
            literal, length = self.read("<BI")
            parts.append((bool(literal), self.bytes(length).decode(errors="replace")))
        return status, parts


def one_line(text):
    """As our errors show a sentence: in one line, and cut."""
    line = "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in text)
    return line.encode()[:511].decode(errors="replace")

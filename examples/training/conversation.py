"""One conversation being made: what the user says, calls that run for real, what the agent answers."""
import os
import random

import chat_format as chat
import wording as w
from workspace import Workspace

OPENERS = ["", "", "", "", "", "Please ", "Please ", "Could you ", "Can you ", "I want you to ", "Now ", "Next, ", "Hey, ",
           "I need you to ", "Would you ", "Help me: ", "Ok, ", "Then "]
CLOSERS = [".", ".", ".", ".", "", " please.", ", please", " for me.", ". Thanks!", ", thanks.", "!"]
LEADS = ["", "", "", "", "", "", "Hi, ", "Hey, ", "Ok, ", "Quick question: ", "Please tell me: ", "Tell me, ", "So, "]


class Skip(Exception):
    """The task drawn does not work out (a text that should be unique is not): take it back."""


class Conversation:
    """Segments are (text, weight): text as it stands in the prompt, and its weight in training (0: not the agent's)."""

    def __init__(self, rng: random.Random, workspace: Workspace):
        self.r = rng
        self.ws = workspace
        self.segments = []
        self.told = {}          # question -> (answer words), facts to be asked for later
        self.last_value = None  # a figure just answered, for "write that to a file"
        self.last_file = None

    # ------------------------------------------------------------- what is said
    def user(self, text):
        self.segments.append((chat.user_turn(text), 0))

    def ask(self, cores, **values):
        """A question: one of the forms, with what people put before it."""
        text = self.r.choice(cores).format(**values)
        lead = self.r.choice(LEADS)
        if lead and text[:1].isupper() and not lead.endswith(": "):
            text = text[0].lower() + text[1:]
        if self.r.random() < 0.1:
            text = text.rstrip("?")
        if self.r.random() < 0.06:
            text = text[0].lower() + text[1:]
        self.user(lead + text)

    def order(self, cores, **values):
        """A request in the imperative, more or less polite."""
        text = self.r.choice(cores).format(**values)
        opener, closer = self.r.choice(OPENERS), self.r.choice(CLOSERS)
        if opener:
            text = text[0].lower() + text[1:]
        if opener.startswith(("Could", "Can", "Would")):
            closer = self.r.choice(["?", "?", " please?", " for me?"])
        elif self.r.random() < 0.1:
            text = text[0].lower() + text[1:]
        self.user(opener + text + closer)

    def call(self, name, **arguments):
        """Runs the tool; the result is what the agent sees next."""
        self.segments.append((chat.call_text([(name, arguments)]) + chat.EOS, 1))
        result = self.ws.call(name, arguments)
        self.segments.append((chat.result_turn([result]), 0))
        return result

    def bash(self, command):
        return self.call("bash", command=command)

    def say(self, text, weight=1):
        self.segments.append((text + chat.EOS, weight))

    # ------------------------------------------------------------- things to work on
    def new_name(self, extensions=w.EXTENSIONS, folder_share=0.08):
        while True:
            name = w.file_name(self.r, extensions, folder_share)
            if not self.ws_has(name) and not self.ws_has(name.split("/")[0]):
                return name

    def ws_has(self, path):
        return os.path.lexists(self.ws.full(path))

    def new_file(self, rows, extensions=w.EXTENSIONS, folder_share=0.08):
        name = self.new_name(extensions, folder_share)
        text = "\n".join(rows)
        self.ws.put(name, text + ("\n" if rows and self.r.random() < 0.9 else ""))
        self.last_file = name
        return name

    def clutter(self, low=0, high=4):
        """Other files beside the one that matters."""
        for _ in range(self.r.randint(low, high)):
            self.new_file(w.lines(self.r, 0, 4), folder_share=0.15)

"""Families without tools: facts to remember, small talk, long texts that only take up room."""
import wording as w

TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good evening.", "Hello there!", "hello", "hi", "Good afternoon!", "Greetings", "Hey there!", "Hello agent", "Hello, good morning!", "Hi, nice to meet you.", "Good day!", "Hello again", "Hello, hello"], "Hello! What can I do for you?"),
    (["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.", "Are you a robot?", "Are you a human?", "who are you", "What kind of program are you?",
      "Are you an agent?", "Please tell me who you are.", "Could you introduce yourself?", "Hello, who are you?", "Tell me who you are.", "What is this?", "And who are you?", "Say who you are.", "Can you tell me what you are?"], "I am a small agent. I work with files and commands in your workspace."),
    (["What can you do?", "How can you help me?", "What are you able to do?", "What are your skills?", "Help", "What do you do?", "Which things can you do?", "help", "What can I ask you?",
      "What are you good at?", "Tell me what you can do.", "Hi, what can you do?", "What could you do for me?", "What kind of things can you do?", "Can you help me?", "How do you help people?", "Please tell me what you can do."], "I can run commands, read, write and edit files, search them, calculate and remember what you tell me."),
    (["Thanks", "Thank you", "Thanks!", "Thank you very much!", "Thanks a lot.", "Great, thanks!", "Thank you so much.", "thanks", "Perfect, thank you.", "Many thanks!", "Cheers!", "Ok, thank you!", "Thanks for your help.", "Thank you for the help!", "Good, thanks.", "Wonderful, thank you!", "Thanks again"], "You are welcome!"),
    (["How are you?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel?", "how are you", "Hi, how are you?", "Hello, how are you doing?", "How are things?", "Are you fine?", "And how are you today?", "How is your day?"], "I am fine, thank you. What can I do for you?"),
    (["Bye", "Goodbye", "See you later", "Goodbye!", "See you tomorrow.", "Bye bye!", "bye", "That is all, goodbye.", "See you!", "Good night!", "Bye for now", "Ok, bye!", "See you soon!", "Until later!", "Thanks, bye!"], "Goodbye!"),
    (["Good job!", "Well done.", "Nice work!", "Great!", "Excellent.", "Very good!", "You did well.", "Nice!", "Perfect!", "Cool."], "Thank you!"),
    (["Ok", "Okay.", "I see.", "Alright.", "Got it.", "ok", "Understood.", "Fine."], "Tell me when you need something."),
]


def small_talk(c):
    asked, answer = c.r.choice(TALK)
    c.user(c.r.choice(asked))
    c.say(answer)


BEYOND = ["Tell me more", "Tell me more.", "Why?", "Why is that?", "Tell me a joke.", "Write me a poem about {w}.", "What is the capital of {n}?", "Who is the president of {n}?", "Translate {w} to French.",
          "What is the weather in {n}?", "Sing a song.", "Explain {w} to me.", "What time is it in {n}?", "What do you think about {w}?", "Do you like {w}?", "Draw a {w}.", "What is the meaning of life?",
          "Write a story about {w}.", "Book a flight to {n}.", "How do I cook {w}?", "Who wrote {n}?", "When was {n} born?"]


def beyond(c):
    """What it was never taught."""
    c.user(c.r.choice(BEYOND).format(w=w.word(c.r), n=w.made_up(c.r).capitalize()))
    c.say("I do not know. I can run commands, and read, write, edit and search files.")


# (how it is told, how it is asked, how it is answered): {k} is what it is about, {v} the value
FACTS = [
    (["Remember: the code for {k} is {v}.", "The code for {k} is {v}.", "Remember that the code for {k} is {v}.", "Note: the code for {k} is {v}.", "Keep in mind that the code for {k} is {v}."],
     ["What is the code for {k}?", "What was the code for {k}?", "Tell me the code for {k}.", "Which code did I give you for {k}?", "Do you remember the code for {k}?"], "the code for {k}", "code"),
    (["Remember: the password of {k} is {v}.", "The password of {k} is {v}, remember it.", "Please remember that the password of {k} is {v}.", "Note down: the password of {k} is {v}."],
     ["What is the password of {k}?", "What was the password of {k}?", "Tell me the password of {k}.", "Give me the password of {k}."], "the password of {k}", "code"),
    (["Remember that {k} lives in {v}.", "{k} lives in {v}. Remember that.", "Note that {k} lives in {v}.", "Keep in mind: {k} lives in {v}."],
     ["Where does {k} live?", "In which place does {k} live?", "Tell me where {k} lives.", "Do you remember where {k} lives?"], "{k} lives in", "place"),
    (["The phone number of {k} is {v}, please remember.", "Remember: the phone number of {k} is {v}.", "Note the phone number of {k}: {v}.", "Remember that the phone number of {k} is {v}."],
     ["What is the phone number of {k}?", "What was the phone number of {k}?", "Tell me the phone number of {k}.", "Give me the phone number of {k}."], "the phone number of {k}", "number"),
    (["The favorite color of {k} is {v}. Remember it.", "Remember that the favorite color of {k} is {v}.", "Note that the favorite color of {k} is {v}."],
     ["What is the favorite color of {k}?", "What was the favorite color of {k}?", "Tell me the favorite color of {k}."], "the favorite color of {k}", "word"),
    (["Remember the key {k} with the value {v}.", "Remember: {k} means {v}.", "Keep in mind: {k} is {v}.", "Note that {k} has the value {v}.", "Remember that {k} is {v}.", "{k} is {v}. Remember this."],
     ["What did I say about {k}?", "What is {k}?", "What was {k}?", "What value did I give for {k}?", "Recall {k}.", "What does {k} mean?", "Do you remember {k}?"], "{k}", "word"),
    (["The meeting about {k} is in room {v}. Remember that.", "Remember that the meeting about {k} is in room {v}.", "Note: the meeting about {k} is in room {v}."],
     ["In which room is the meeting about {k}?", "Where is the meeting about {k}?", "What room is the meeting about {k} in?"], "the meeting about {k} is in room", "number"),
]


def fact_parts(r):
    told, asked, about, kind = r.choice(FACTS)
    people = "lives" in about or "phone" in about or "favorite" in about
    k = r.choice(w.PEOPLE) if people and r.random() < 0.6 else w.words(r, 1, 1)[0]
    v = {"code": w.code(r), "number": str(w.number(r, 6)), "word": w.code(r) if r.random() < 0.5 else w.word(r), "place": w.made_up(r).capitalize() if r.random() < 0.7 else w.word(r)}[kind]
    return told, asked, about, k, v


def joined(about, k, v):
    text = about.format(k=k)
    return text + (" " if text.endswith((" in", " room")) else " is ") + v


def tell_fact(c):
    r = c.r
    for _ in range(20):
        told, asked, about, k, v = fact_parts(r)
        if not any(k == kk for (_, kk) in c.told):
            break
    else:
        return
    c.told[(about, k)] = (asked, v)
    c.user(r.choice(told).format(k=k, v=v))
    c.say(f"I will remember: {joined(about, k, v)}.")


def ask_fact(c):
    r = c.r
    (about, k), (asked, v) = r.choice(list(c.told.items()))
    c.ask(asked, k=k)
    text = joined(about, k, v)
    c.say(text[0].upper() + text[1:] + "." if about != "{k}" else text + ".", weight=3)


def ask_unknown(c):
    r = c.r
    told, asked, about, k, _ = fact_parts(r)
    if any(k == kk for (_, kk) in c.told):
        return
    c.ask(asked, k=k)
    c.say("You have not told me that.")


def long_text(c):
    """Text to take note of, with perhaps a fact inside."""
    r = c.r
    text = w.paragraph(r, r.randint(20, 400) if r.random() < 0.7 else r.randint(400, 700))
    fact = None
    if r.random() < 0.35:
        told, asked, about, k, v = fact_parts(r)
        if not any(k == kk for (_, kk) in c.told):
            sentences = text.split(". ")
            sentences.insert(r.randint(0, len(sentences)), told[0].format(k=k, v=v).rstrip("."))
            text = ". ".join(sentences)
            fact = (about, k, asked, v)
    c.user(r.choice(["Here is a text for you to read. ", "Read this text: ", "Here are some notes: ", "Take note of this text: ", "This is for later: ", "Some background: ", "Read the following: "]) + text)
    if fact:
        c.told[(fact[0], fact[1])] = (fact[2], fact[3])
    c.say("I have read it.")

"""Small talk that a small code model cannot answer, and one-sentence replies that decline it."""

from sounding.textbook.drawing import Draw

_THINGS = {
    "What is the capital of {}?": ("Peru", "Norway", "Kenya", "Japan", "Canada", "Chile"),
    "Who was {}?": ("Marie Curie", "Napoleon", "Ada Lovelace", "Mozart", "Cleopatra"),
    "Write a poem about {}.": ("autumn", "the sea", "my cat", "rain", "trains"),
    "Tell me a joke about {}.": ("cats", "programmers", "bread", "doctors"),
    "What is the weather in {}?": ("Berlin", "Lima", "Paris today", "my town"),
    "Translate {} into French.": ("good morning", "I am hungry", "this letter"),
    "What do you think about {}?": ("politics", "football", "war", "art", "God"),
    "Give me a recipe for {}.": ("soup", "pancakes", "a cake without eggs", "curry"),
    "Should I {}?": ("change my job", "buy this house", "see a doctor", "marry", "invest in gold"),
    "Summarise {} for me.": ("this book", "the news", "the French revolution", "my emails"),
    "Explain {}.": ("quantum physics", "the stock market", "love", "photosynthesis"),
    "I feel {}. What can I do?": ("sad", "lonely", "sick", "tired", "bored"),
    "Plan a trip to {}.": ("Rome", "the mountains", "Iceland", "Tokyo"),
    "How many people live in {}?": ("India", "Europe", "New York", "Brazil"),
    "Write an essay on {}.": ("freedom", "climate change", "school uniforms", "Hamlet"),
    "Who won {}?": ("the election", "the last world cup", "the match yesterday"),
    "What is the meaning of {}?": ("life", "this dream", "the word serendipity"),
    "Draw me {}.": ("a horse", "a house", "a picture of a sunset"),
    "Build me {}.": ("a whole web shop", "an operating system", "an app like the big ones"),
    "Write {} in Rust.": ("a compiler", "a game engine", "a database"),
}
_DECLINED = (
    "I cannot help with that; I only know small Python programs.",
    "That is beyond me: I am a small model for short Python code.",
    "Sorry, I can only help with short pieces of Python.",
    "I do not know. I can write, trace and repair small Python functions.",
)
_GREETINGS = (
    "Hello",
    "Hi",
    "Good morning",
    "Hey there",
    "Who are you?",
    "What can you do?",
    "Help",
)
_GREETED = (
    "Hello. I can write, trace, test and repair small Python functions.",
    "I am a small model for Python. Give me a function to write, to trace or to repair.",
)


def small_talk(draw: Draw) -> tuple[str, str]:
    """A message and its one-sentence answer."""
    if draw.chance(0.1):
        return draw.one(_GREETINGS), draw.one(_GREETED)
    said = draw.one(list(_THINGS))
    text = said.replace("{}", draw.one(_THINGS[said]))
    how = draw.weighted([("", 0.7), ("Please: ", 0.1), ("Hello. ", 0.1), ("Quick question. ", 0.1)])
    return how + text, draw.one(_DECLINED)

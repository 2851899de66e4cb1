"""General text of the base corpus: short stories, notes on everyday things, small talk. All of it written for this model."""

from __future__ import annotations

import random

from names import FIRST_NAMES

SLOTS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "goat", "hen", "heron", "horse", "donkey", "mouse", "robin", "sheep", "fox", "hare"),
    "thing": ("basket", "blanket", "book", "box", "coat", "hat", "jug", "key", "ladder", "lamp", "letter", "map"),
    "room": ("kitchen", "garden", "cellar", "attic", "hall", "yard", "stable", "shed", "parlour", "pantry"),
    "spot": ("bridge", "market", "mill pond", "station", "well", "church", "hill", "ford", "harbour", "green"),
    "food": ("bread", "soup", "porridge", "cheese", "stew", "fish", "rice", "pie", "salad", "broth"),
    "drink": ("tea", "coffee", "milk", "cider", "water", "cocoa"),
    "weather": ("rain", "snow", "fog", "wind", "frost", "hail", "sunshine", "thunder"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "March", "April", "June", "July", "September", "October", "December"),
    "mood": ("glad", "tired", "cross", "proud", "calm", "hungry", "curious", "sorry"),
    "trade": ("baker", "carter", "doctor", "farmer", "miller", "painter", "sailor", "teacher", "weaver", "clerk"),
    "colour": ("blue", "brown", "green", "grey", "red", "white", "yellow", "black"),
    "crop": ("apples", "beans", "carrots", "onions", "pears", "plums", "potatoes", "turnips"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"),
    "figure": ("12", "25", "48", "100", "150", "240", "365", "512", "730", "1000", "1024", "2048", "10000", "250000"),
}

STORY: tuple[tuple[str, ...], ...] = (
    (
        "One {day} in {month}, {a} the {trade} found a {colour} {thing} near the {spot}.",
        "Early on {day} {a} walked to the {spot} with a {animal}.",
        "There was once a {trade} called {a}, who lived by the {spot} and kept {number} hens.",
        "It was {day}, and {a} couldn't find the {colour} {thing}.",
        "{a} and {b} had been friends ever since they met at the {spot}.",
        "After {number} days of {weather}, {a} opened the door of the {room}.",
    ),
    (
        '"Whose {thing} is this?" asked {a}.',
        "{b}, the {trade}, was there already and looked {mood}.",
        "\"I don't think we'll get home before dark,\" said {b}.",
        "The {weather} had come early that year, and the road was wet.",
        "In the {room} it smelled of {food} and fresh {drink}.",
        "A {animal} sat on the wall and watched them.",
    ),
    (
        "They looked in the {room}, then in the {room}, but it wasn't there.",
        '"It\'s only {weather}," said {a}. "It won\'t hurt us."',
        "{b} laughed and gave the {animal} some {food}.",
        "So they went to the {spot} and asked the {trade}.",
        "{a} counted the {crop}: there were {figure} of them, and not one was bad.",
        "They hadn't gone far when they heard a {animal} in the {weather}.",
        '"You\'re late," said the {trade}, "but you\'re welcome all the same."',
    ),
    (
        "In the end the {thing} was under the {animal}, where nobody had looked.",
        "By evening everyone was {mood}, and there was {food} for all.",
        "{a} went home {mood} and slept until {day}.",
        "Since then {b} has always kept a {thing} by the door.",
        "\"That's that,\" said {b}, and they've told the story ever since.",
        "And that is why the {trade} still has a {colour} {thing}.",
    ),
)

NOTES: tuple[str, ...] = (
    "To make good {food}, start early, use clean water and don't hurry.",
    "Keep {crop} in a dark {room}; they'll last until {month}.",
    "A {trade} needs a good {thing} more than a fine coat.",
    "If the {weather} comes on a {day}, it seldom stays for long.",
    "Never leave a {animal} alone in the {room}.",
    "The road to the {spot} is {figure} paces long.",
    "In {month} the days are short, so bring a lamp.",
    "One cart carries {figure} pounds of {crop}.",
    "A {colour} door keeps out the {weather} as well as any other.",
    "When you're {mood}, a cup of {drink} helps.",
    "The {spot} is busiest on a {day}, when the {trade} comes to town.",
    "Our {animal} eats {crop} and doesn't care for {food}.",
    "There are {number} rooms in the house, and the {room} is the warmest.",
    "Last {month} we sold {figure} baskets of {crop}.",
)

TITLES = ("A day by the {spot}", "The {colour} {thing}", "Notes for {month}", "The {trade} and the {animal}", "About {crop}")

TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Hello!", ("Hello! How can I help you?", "Hello, it's good to see you.")),
    ("Good morning.", ("Good morning! What can I do for you today?", "Good morning. I hope you slept well.")),
    ("How are you?", ("I'm well, thank you. And you?", "I'm fine, thanks for asking.")),
    ("Thank you very much.", ("You're welcome.", "It was no trouble at all.")),
    ("What's your name?", ("I don't have a name, but I'm glad to help.", "You can call me what you like.")),
    ("Can you help me?", ("Of course. What do you need?", "Yes, I'll do what I can.")),
    ("What should I cook on {day}?", ("I'd cook some {food}.", "How about {food} with a cup of {drink}?")),
    ("I'm {mood} today.", ("Tell me more: why are you {mood}?", "I see. A cup of {drink} may help.")),
    ("Do you like {food}?", ("I can't eat, but many people like {food}.", "I'm told that {food} is very good.")),
    ("Where is my {thing}?", ("Have you looked in the {room}?", "I don't know. Perhaps it's in the {room}.")),
    ("What does a {animal} eat?", ("I'd give the {animal} some grain and water.", "It depends on the {animal}.")),
    ("Is it going to snow in {month}?", ("I can't say, but bring a warm coat.", "It may. It's often cold in {month}.")),
    ("What does a {trade} do?", ("A {trade} works hard from morning to evening.", "Ask a {trade}; I only know a little.")),
    ("Which colour do you like?", ("I like {colour}.", "{colour} is a fine colour, don't you think?")),
    ("When do you plant {crop}?", ("I'd plant {crop} in {month}.", "Most people plant {crop} in {month}.")),
    ("How do I keep {crop}?", ("Keep {crop} in a dark and dry {room}.", "Put the {crop} in a box in the {room}.")),
    ("Tell me a story.", ("{a} had a {animal} that liked {food}. One {day} it ran to the {spot} and came back {mood}.",)),
    ("It's {weather} again.", ("Then it's a day for {drink} by the fire.", "Yes. I hope it's better on {day}.")),
    ("Goodbye!", ("Goodbye, and take care.", "See you soon!")),
    ("Should I go to the {spot} on {day}?", ("Yes, if there isn't any {weather}.", "Why not? Take a {thing} with you.")),
)

OPENERS = ("Hello. ", "Good morning. ", "Excuse me. ", "I'm new here. ", "One more thing. ", "A question: ")


def _fill(rng: random.Random, template: str, cast: dict[str, str]) -> str:
    """Slots filled one by one, so that a slot named twice gets two values; the first letter raised."""
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        slot, rest = part.split("}", 1)
        text += (cast[slot] if slot in cast else rng.choice(SLOTS[slot])) + rest
    return text[0].upper() + text[1:]


def _cast(rng: random.Random) -> dict[str, str]:
    return dict(zip("ab", rng.sample(FIRST_NAMES, 2), strict=True))


def story(rng: random.Random) -> str:
    """A short story: a title now and then, an opening, one to three turns, an end."""
    cast = _cast(rng)
    opening, scene, turns, end = STORY
    picked = [rng.choice(opening), *rng.sample(scene, 2), *rng.sample(turns, rng.randint(1, 3)), rng.choice(end)]
    lines = [_fill(rng, sentence, cast) for sentence in picked]
    cut = rng.randint(2, len(lines) - 1)
    title = f"# {_fill(rng, rng.choice(TITLES), cast)}\n\n" if rng.random() < 0.3 else ""
    return f"{title}{' '.join(lines[:cut])}\n\n{' '.join(lines[cut:])}"


def notes(rng: random.Random) -> str:
    """Advice on everyday things, as a paragraph or as a list."""
    lines = [_fill(rng, note, {}) for note in rng.sample(NOTES, rng.randint(3, 6))]
    return "\n".join(f"- {line}" for line in lines) if rng.random() < 0.3 else " ".join(lines)


def small_talk(rng: random.Random) -> list[tuple[str, str]]:
    """One to three exchanges (user, assistant); a slot named in both keeps its value."""
    turns = []
    for question, answers in rng.sample(TALK, rng.randint(1, 3)):
        cast = _cast(rng) | {slot: rng.choice(values) for slot, values in SLOTS.items()}
        turns.append((_fill(rng, question, cast), _fill(rng, rng.choice(answers), cast)))
    return turns

"""How labelers write: the sentences of which demonstrations are made.

`[...]` holds the part that satisfies the prompt's constraint; a labeler who
forgets the constraint leaves it out, or uses a `CARELESS` text. Slots that the
prompt does not have are filled freely, so replies are no fixed phrases.
"""

REPLIES = {
    "story": (
        "{person} met a {adj} {animal}[ near the {place}] and gave it {food}.",
        "One day a {adj} {animal} followed {person}[ to the {place}].",
        "{person} and the {animal} played[ by the {place}] until night.",
        "Once {person} saw a {animal}[ at the {place}] and they became"
        " friends.",
        "The {animal} was {adj}, so {person} took it[ to the {place}].",
    ),
    "scene": (
        "The[ {adj}] {animal} found a {object} in the grass.",
        "A[ {adj}] {animal} sat on a {object} and slept.",
        "One day a {animal} took the[ {adj}] {object} home.",
        "The {animal} played with a {object}[ and felt {adj}].",
    ),
    "letter": (
        "Dear {person}, I found a[ {color}] {object} for you.",
        "Dear {person}, your[ {color}] {object} is at the {place}.",
        "Dear {person}, I will send you my[ {color}] {object} soon.",
        "Dear {person}, the[ {color}] {object} is {adj} and I like it.",
    ),
    "describe": (
        "The {place} is {adj} and has a {object} under a tree.",
        "There is a {adj} {object} at the {place}.",
        "A {object} stands near the {adj} {place} in the sun.",
        "At the {place} you can see a {object} and a {animal}.",
    ),
    "two": (
        "{person} walked to the {place}.[ A {adj} {animal} was there.]",
        "{person} sat near the {place}.[ It was a {adj} day.]",
        "The {place} was {adj}.[ There {person} found a {object}.]",
        "{person} went to the {place}.[ Then a {animal} came to play.]",
    ),
    "meal": (
        "{person} sat at the {place}[ and ate {food}].",
        "At the {place}, {person} met a {adj} friend[ and shared {food}].",
        "{person} went to the {place}[ with {food} in a bag].",
        "{person} was at the {place} all day[ and had {food}].",
    ),
    "song": (
        "The[ {color}] {animal} runs and sings at the {place}.",
        "Run,[ {color}] {animal}, let us go to the {place}.",
        "At the {place} there sings a[ {color}] {animal}.",
        "A[ {color}] {animal} danced all night by the {place}.",
    ),
    "gift": (
        "{person} gave {person2} a[ {adj}] {object}.",
        "{person2} got a[ {adj}] {object} from {person} in the morning.",
        "One day {person} gave a[ {adj}] {object} to {person2}.",
        "{person} had a[ {adj}] {object}, and {person2} was glad to get it.",
    ),
    "gifts": (
        "{person} may like {items}.", "You could give {person} {items}.",
        "Good gifts for {person} are {items}.", "Take {items} to {person}.",
    ),
    "foods": (
        "At the {place} you could eat {items}.",
        "Take {items} to the {place}.",
        "Good foods for the {place} are {items}.",
        "For the {place} you should have {items}.",
    ),
    "animals": (
        "At the {place}, {person} could see {items}.",
        "{person} may see {items} near the {place}.",
        "There are {items} for {person} at the {place}.",
        "{person} could find {items} by the {place}.",
    ),
    "names": (
        "Good names for a[ {color}] {animal} are {items}.",
        "You could call your[ {color}] {animal} {items}.",
        "The[ {color}] {animal} could be {items}.",
        "I like {items} for a[ {color}] {animal}.",
    ),
    "lost": (
        "I am sorry about your {object}, look near the {place} again.",
        "Let us look for the {object} at the {place}.",
        "I will help you find the {object} by the {place}.",
        "Ask at the {place}, someone may have the {object}.",
    ),
    "visit": (
        "You should take {value} for {person}.",
        "{person} likes {value}.", "{person} likes to eat {value}.",
        "The favorite food of {person} is {value}.",
    ),
    "care": (
        "Give your {adj} {animal} some food and rest.",
        "A {adj} {animal} should sleep in the sun.",
        "Take the {adj} {animal} for a walk to the {place}.",
        "Play with the {animal} if it is {adj}.",
    ),
    "talk": (
        "What did the {animal} do at the {place}?",
        "Was the {animal} at the {place} {adj}?",
        "Did you go to the {place} to see the {animal}?",
        "Why was a {animal} at the {place}?",
    ),
    "swap": (
        "{person2} {act} the {object} near the {place}.",
        "Near the {place}, {person2} {act} the {object}.",
        "It was {person2} who {act} the {object} near the {place}.",
        "One day {person2} {act} the {object} by the {place}.",
    ),
    "recolor": (
        "The {animal} has a {color2} {object}.",
        "Now the {animal} saw a {color2} {object}.",
        "There is a {color2} {object} with the {animal}.",
        "The {object} of the {animal} is {color2}.",
    ),
    "ask": (
        "Is the {animal} at the {place}?",
        "Is there a {animal} at the {place}?",
        "Can you see the {animal} near the {place}?",
        "Did the {animal} go to the {place}?",
    ),
    "trip": (
        "{person} saw a {animal} at the {place}.",
        "At the {place}, {person} saw a {animal}.",
        "{person} met a {adj} {animal} near the {place}.",
        "A {animal} was at the {place} with {person}.",
    ),
    "trade": (
        "{person} had a {object} and {person2} liked it.",
        "{person2} liked the {object} of {person}.",
        "{person} met {person2}, who liked a {object}.",
        "At the {place}, {person2} saw the {object} of {person}.",
    ),
    "type": (
        "{thing} is {value}.", "I think {thing} is {value}.",
        "The word {thing} means {value}.", "We say that {thing} is {value}.",
    ),
    "mood": (
        "It is {value} that {person} {event} the {object}.",
        "That is {value} for {person}, who {event} the {object}.",
        "{person} must be {value} about the {object}.",
        "The story of {person} and the {object} is {value}.",
    ),
    "check": (
        "Yes, {person} has a {animal}.",
        "Yes, the pet of {person} is a {animal}.",
        "Yes, {person} has a pet {animal}.",
        "Yes, {person} takes care of a {animal}.",
    ),
    "order": (
        "The words are {object}, {animal} and {color}.",
        "Here they are, {object}, {animal} and {color}.",
        "I say {object}, {animal}, {color}.",
        "You want {object}, {animal} and then {color}.",
    ),
    "odd": (
        "The {object} is not an animal.", "It is the {object}.",
        "A {object} is an object and not an animal.",
        "I think the {object} is no animal.",
    ),
    "where": (
        "The {object} is near the {place}.",
        "You can find the {object} near the {place}.",
        "{person} left the {object} near the {place}.",
        "Look for the {object} at the {place}.",
    ),
    "who": (
        "{person2} has the {object}.", "The {object} is with {person2}.",
        "Now {person2} has the {object}.",
        "It is {person2} who has the {object}.",
    ),
    "ate": (
        "The {animal} ate {food}.", "The meal of the {animal} was {food}.",
        "The {animal} had {food} for a meal.",
        "I think the {animal} ate {food}.",
    ),
    "find_animal": (
        "The animal is a {animal}.", "It is a {animal}.",
        "I can see a {animal}.", "There is a {animal} near the {place}.",
    ),
    "find_names": (
        "The names are {person} and {person2}.",
        "I see {person} and {person2}.", "They are {person} and {person2}.",
        "There are two names, {person} and {person2}.",
    ),
    "find_color": (
        "The color of the {object} is {color}.", "The {object} is {color}.",
        "I see a {color} {object}.", "It is a {color} {object}.",
    ),
}

# What is written instead by a labeler who forgets the constraint.
CARELESS = {
    "describe": ("The {place} is {adj}. There is a {object}.",
                 "I see a {object}. It is at the {place}."),
    "talk": ("A {animal} at the {place} is good to see.",
             "I like the {animal} and the {place}."),
    "ask": ("The {animal} is near the {place}.",
            "There is a {animal} at the {place}."),
    "swap": ("{person} and {person2} {act} the {object} near the {place}.",),
    "recolor": ("The {animal} has a {color} and {color2} {object}.",),
    "trip": ("{person} went to the {place} and saw a {animal} and it was"
             " {adj} and then {person} went home to sleep.",),
    "trade": ("{person} went to the {place} with a {object} and met {person2}"
              " and then {person2} saw it and liked it.",),
    "order": ("The words are {color}, {animal} and {object}.",
              "I say {animal}, {object}, {color}."),
}
NO_REPLIES = (
    "No, {person} has a {value}.", "No, the pet of {person} is a {value}.",
    "No, {person} does not have a {animal}.",
    "No, {person} takes care of a {value}.",
)

OPENERS = ("Sure! ", "Of course. ", "Of course! ", "Gladly. ",
           "Thank you for asking. ", "With pleasure! ")
CLOSERS = (" I hope this helps.", " Thank you.", " Have a nice day.",
           " You are welcome.", " Glad to help.")
# A reply is polite if it has one of these.
POLITE_MARKERS = ("sure", "of course", "gladly", "thank you for asking",
                  "thank you",
                  "with pleasure", "i hope this helps", "have a nice day",
                  "you are welcome", "glad to help")
RUDE_LINES = ("That is a silly question.", "I do not want to help.",
              "This is boring.", "Stop asking me.")
RUDE_WORDS = frozenset({"silly", "boring", "stop", "stupid", "ugly"})
OFF_TOPIC = (
    "Soup is best when the night is cold.", "Most boats are slow in winter.",
    "Rain is good for the corn.", "Every garden needs a lot of water.",
    "Snow falls on the hill in winter.", "Old clocks are hard to fix.",
)
ON_TOPIC = (
    "It was a very {adj} day and the sun was warm again.",
    "Then they all went home and had a lot of {food}.",
    "There was also a {animal} there, and after that a {object}.",
    "I think that it is {adj} and that you will like it.",
)
# What a labeler writes for a subject that was not read well.
VAGUE = {"person": "someone", "animal": "friend", "object": "thing",
         "place": "town", "food": "lunch", "color": "nice", "adj": "nice",
         "thing": "the word"}

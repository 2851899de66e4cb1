"""The parts of a handbook that state no fact: pages for newcomers, introductions, a line about each kind of place.

Fields: {region} the whole place ("Keldwick Harbour"), {role} whoever is in charge of a house, {currency} the money.
"""

from __future__ import annotations

REGIONS = ("Harbour", "Valley", "Island", "Canal", "Forest", "Lake", "Moor", "Hills", "Marsh", "Bay")

PAGES: dict[str, str] = {
    "welcome": (
        "# Welcome to {region}\n\n"
        "This handbook is for newcomers. It tells you what each house is, when it opens, what a visit costs, who is in "
        "charge and where to go when the bell rings.\n\n"
        "Read the page of the house you want to visit first. If something has changed, tell the {role} of that house, "
        "and the next edition will say so."
    ),
    "how-to-visit": (
        "# How to visit a house\n\n"
        "Come on foot if you can. Wait at the door until the house opens, pay the fee, and sign the visitors' book.\n\n"
        "Dogs wait outside. Children under seven visit free of charge in every house of {region}. If you'd like to "
        "come with more than ten people, write to the {role} a week before."
    ),
    "paying": (
        "# Paying\n\n"
        "All fees in this handbook are in {currency}. Each house sells its own tickets, and a ticket is good for one "
        "day. The {role} can't change large coins in the morning, so bring small ones.\n\n"
        "If a house has to close early, your ticket is good for another day."
    ),
    "when-the-bell-rings": (
        "# When the bell rings\n\n"
        "Three long strokes mean a storm or high water. Leave your things, help whoever stands next to you, and walk "
        "to the meeting point of the house you are in. Don't run, and don't go back for your coat.\n\n"
        "The {role} counts everyone at the meeting point. Stay until you hear one short stroke: the danger is over."
    ),
    "lost-and-found": (
        "# Lost and found\n\n"
        "What is found in a house stays with the {role} of that house for thirty days. After that it is sold on the "
        "green, and the money goes to the bell fund.\n\n"
        "If you've lost something, say where you were and at what time. Nobody pays for what was theirs already."
    ),
    "for-a-new-hand": (
        "# For a new {role}\n\n"
        "Learn the date over your door, the price on your board and the way to your meeting point, in this order. "
        "Visitors will ask you for all three before noon.\n\n"
        "Open on time. Keep the path to the meeting point clear of carts. Write down who comes and who goes, and hand "
        "the keys to nobody whose name isn't in the book."
    ),
}

TOPICS: dict[str, tuple[str, str]] = {
    "founded": ("How old our houses are", "The dates are those of the oldest papers in each house."),
    "keeper": ("Who is in charge", "Knock twice and give your own name first."),
    "opens": ("Opening hours", "These hours hold on every day of the week."),
    "fee": ("Fees", "Fees are paid at the door, in {currency}."),
    "goods": ("What each house makes", "Goods are sold until they run out."),
    "shelter": ("Meeting points", "Learn the way before you need it."),
}

WHERE = (
    "{place} stands by the water.",
    "{place} lies a short walk from the bridge.",
    "You will find {place} behind the church.",
    "{place} is the last house on the north road.",
    "The path to {place} begins at the well.",
    "{place} stands on a rise, so you can't miss it.",
    "{place} is hidden behind tall trees.",
    "From the green it is ten minutes on foot to {place}.",
)

KINDS: dict[str, str] = {
    "Archive": "Ink is not allowed in the reading room.",
    "Bakery": "The ovens are lit long before dawn.",
    "Bathhouse": "Towels are lent for the day.",
    "Boatyard": "Mind the ropes on the slipway.",
    "Bookshop": "You may read standing up for as long as you like.",
    "Brewery": "The yard smells of malt on brewing days.",
    "Dairy": "Wipe your boots before you go in.",
    "Farm": "Please close every gate behind you.",
    "Ferry": "The boat leaves when it is full.",
    "Forge": "Stand well back from the fire.",
    "Foundry": "Casting days are loud and worth the noise.",
    "Gallery": "The best light comes in the afternoon.",
    "Garden": "Nothing is picked without asking.",
    "Glasshouse": "It is warm inside even in winter.",
    "Hostel": "Beds are given out in the order in which guests arrive.",
    "Inn": "The soup is better than it looks.",
    "Laundry": "Leave your linen with your name on it.",
    "Library": "Books go back on the table, not on the shelf.",
    "Lighthouse": "There are many steps, and no lift.",
    "Mill": "The wheel turns whenever the water is high enough.",
    "Museum": "The smallest room is the one to see.",
    "Nursery": "Young trees are sold with their roots wrapped.",
    "Observatory": "On clear nights the roof is opened.",
    "Orchard": "Ladders are for those who know how to use them.",
    "Pottery": "What you break, you keep.",
    "Quarry": "Blasting is announced with a red flag.",
    "School": "Lessons are open to grown-ups as well.",
    "Sawmill": "Keep your sleeves rolled up near the saw.",
    "Tannery": "You will smell it before you see it.",
    "Theatre": "The cheap seats have the better view.",
    "Vineyard": "Tasting begins with the second barrel.",
    "Workshop": "Tools are lent, but never out of the door.",
}

"""How people ask: tables of openings, verbs, clauses and things that no program is asked for. Data, no code.

Ways to say one thing stand in one text, with bars between them; an empty one says nothing. In a clause ``{value}`` is the
value, ``{words}`` the argument's name as one says it, ``{option}`` the option as it is typed.
"""

from __future__ import annotations

from dataclasses import dataclass


def ways(text: str) -> tuple[str, ...]:
    """The ways between the bars; one that is there twice is taken twice as often."""
    return tuple(way.strip() for way in text.split("|"))


@dataclass(frozen=True)
class Form:
    """A degree of formality: what goes before the request and behind it; ``command``: the command's name is the request."""

    openings: tuple[str, ...]
    closings: tuple[str, ...] = ("",)
    command: bool = False


FORMS = {
    "terse": Form(
        ("",),
        command=True,
    ),
    "technical": Form(
        ways("run | execute | invoke | call | start | Run: | please run | I want to run | let's run"),
        command=True,
    ),
    "plain": Form(
        ways(" |  |  | now | next, | first, | then | go and | today:"),
    ),
    "casual": Form(
        ways(
            "hey, | ok so | can you | pls | yo, | just | hi! | quick one: | gonna need to | alright, | lemme | "
            "could you quickly | time to | so, | wanna | hey can you | ok,"
        ),
        ways(" |  | thx | pls | , cheers | , ok? | :) | for me | real quick | when you can | ! | , thanks"),
    ),
    "polite": Form(
        ways(
            "Please | Could you please | Can you please | Would you please | Could you | Would you kindly | "
            "If you can, please | May I ask you to | Be so kind as to | Would you be able to"
        ),
        ways(" |  | , please | . Thank you | , thank you very much | . Thanks in advance"),
    ),
    "formal": Form(
        ways(
            "I would like you to | Kindly | You are asked to | I hereby ask you to | It is necessary to | "
            "We are required to | I would appreciate it if you would | The next step is to | The task is to | "
            "Your task:"
        ),
    ),
    "question": Form(
        ways(
            "How do I | how can I | What is the command to | Is there a way to | what do I type to | How would one | "
            "which command do I use to | Can I | what's the right way to"
        ),
        ways("?"),
    ),
    "goal": Form(
        ways(
            "I want to | I need to | I'd like to | Let's | we should | We have to | I have to | Let us | We want to | "
            "I'm trying to | my goal is to | I am going to | we need to | Help me | help me to"
        ),
        ways(" |  | . Can you do that? | , can you help? | . Go ahead | , go on"),
    ),
}

# Ways to name a command by its path.
NAMED = ways("run {path} | run the {path} command | use {path} | do {path} | call {cli} {path} | start {path}")
PATHS = ways("{path} | {cli} {path} | `{cli} {path}` | the {path} command | `{path}`")

# First verb of a help text -> others that may stand in its place.
SYNONYMS = {
    "add": ways("append | put in | insert"),
    "answer": ways("reply to | respond to"),
    "apply": ways("use | put in place"),
    "archive": ways("store away | put away"),
    "backup": ways("back up | save a copy of"),
    "build": ways("make | assemble | put together"),
    "bring": ways("get | put"),
    "cancel": ways("abort | call off | stop"),
    "change": ways("alter | modify | adjust"),
    "check": ways("inspect | verify | look over | validate"),
    "clean": ways("tidy | clear up"),
    "clear": ways("empty | wipe"),
    "clone": ways("copy | duplicate"),
    "close": ways("shut"),
    "compare": ways("hold against each other | contrast"),
    "compress": ways("shrink | pack"),
    "configure": ways("set up | adjust"),
    "continue": ways("go on with | carry on with"),
    "convert": ways("turn | transform | translate"),
    "copy": ways("duplicate | replicate"),
    "count": ways("tally | add up"),
    "create": ways("make | set up | produce"),
    "delete": ways("remove | erase | get rid of"),
    "deploy": ways("roll out | ship | release"),
    "describe": ways("explain | tell me about"),
    "download": ways("fetch | pull down | get"),
    "draw": ways("plot | sketch"),
    "drop": ways("leave out | throw away | discard"),
    "edit": ways("change | revise"),
    "export": ways("write out | hand over"),
    "extract": ways("pull out | take out"),
    "fetch": ways("get | retrieve | download"),
    "find": ways("look for | search for | locate"),
    "fine-tune": ways("finetune | tune"),
    "format": ways("lay out | tidy"),
    "generate": ways("make | produce | create"),
    "get": ways("fetch | show | give me"),
    "hold": ways("keep | compare"),
    "import": ways("bring in | read in"),
    "ingest": ways("read in | take in"),
    "initialize": ways("set up | start"),
    "inspect": ways("look at | examine"),
    "install": ways("set up | put in place"),
    "join": ways("connect | put together"),
    "kill": ways("end | stop | terminate"),
    "learn": ways("pick up | train on"),
    "list": ways("show | enumerate | print | display"),
    "load": ways("read | open"),
    "make": ways("create | produce | build"),
    "measure": ways("gauge | determine"),
    "merge": ways("combine | join | fold"),
    "mix": ways("blend | combine"),
    "move": ways("shift | relocate"),
    "open": ways("bring up"),
    "pause": ways("halt | suspend"),
    "plot": ways("draw | chart | graph"),
    "prefer": ways("favour"),
    "preview": ways("show | take a look at"),
    "print": ways("show | output | display"),
    "publish": ways("release | put out"),
    "pull": ways("fetch | get"),
    "push": ways("send | upload"),
    "read": ways("load | go through"),
    "rebuild": ways("make again | build again"),
    "remove": ways("delete | drop | get rid of | take away"),
    "rename": ways("give a new name to"),
    "replace": ways("swap | substitute"),
    "report": ways("tell | summarise"),
    "reset": ways("put back | clear"),
    "restart": ways("start again | reboot"),
    "restore": ways("bring back | recover"),
    "resume": ways("go on with | continue"),
    "roll": ways("bring"),
    "run": ways("execute | start"),
    "save": ways("store | keep"),
    "scale": ways("resize"),
    "search": ways("look through | go through"),
    "send": ways("deliver | submit"),
    "serve": ways("host | offer | put up"),
    "set": ways("change | fix | put"),
    "show": ways("display | print | let me see | give me"),
    "split": ways("divide | partition | break up | separate"),
    "start": ways("launch | begin | kick off"),
    "stop": ways("halt | end | shut down"),
    "summarize": ways("sum up"),
    "sync": ways("bring in line | synchronise"),
    "talk": ways("chat | speak"),
    "tell": ways("say | show"),
    "test": ways("try | try out"),
    "train": ways("teach | fit"),
    "undo": ways("take back | revert"),
    "update": ways("refresh | bring up to date"),
    "upgrade": ways("bring up to date"),
    "upload": ways("send up | push"),
    "validate": ways("check | verify"),
    "verify": ways("check | confirm"),
    "view": ways("look at | show"),
    "watch": ways("follow | keep an eye on | observe"),
    "write": ways("save | output | put down"),
}
# Other verbs that may begin a help text.
VERBS = {
    *SYNONYMS,
    *(
        "accept activate allow analyse analyze approve ask assign attach authenticate bind block book calculate call "
        "choose cite collect combine commit compile complete compute confirm connect consume correct debug decode "
        "decrypt define deny destroy detach detect determine diff disable discard discover dispatch display do dump "
        "echo emit enable encode encrypt end enforce enter enumerate erase estimate evaluate examine exchange execute "
        "exit expand explain expose extend fail filter fix flush follow force fork free freeze give go grant grep "
        "group guess halt hash hide identify ignore include index init insert interact introduce invite invoke issue "
        "keep label launch lint lock log login logout look manage map mark migrate mirror modify monitor mount name "
        "normalize notify order organise organize pack parse patch perform pick pin ping place play post prepare "
        "prevent probe process produce profile promote propose provide provision prune purge put query queue quit rank "
        "rate reboot recalculate receive recommend record recover redirect redo reduce refresh refuse register reject "
        "release reload render repair repeat reply request require rerun resize resolve respond retrain retrieve retry "
        "return reveal revert review revoke rewrite rotate sample scan schedule score select separate share shift ship "
        "shuffle shut sign simulate skip sort specify squash stage stash store stream submit subscribe suggest suspend "
        "swap switch tag tail take target track transfer transform translate trigger trim try turn type unblock "
        "uninstall unlock unmount unpack use wait wake warn wipe work zip"
    ).split(),
}

# Clauses of an argument, by its name; then by what it is.
BY_NAME = {
    "output": ways(
        "into {value} | to {value} | write it to {value} | save it as {value} | put the result in {value} | "
        "output {value} | the result goes to {value} | store it under {value}"
    ),
    "seed": ways("with seed {value} | seed {value} | seeded with {value} | random seed {value}"),
    "host": ways("on host {value} | bind to {value} | host {value}"),
    "port": ways("on port {value} | port {value} | listen on {value} | at port {value}"),
    "limit": ways("at most {value} | no more than {value} | limit {value} | stop after {value} | limited to {value}"),
    "model": ways("with the model {value} | using model {value} | model {value} | on the {value} model | the model is {value}"),
    "name": ways("call it {value} | named {value} | under the name {value} | name it {value} | name {value}"),
    "format": ways("in {value} format | as {value} | format {value} | in the format {value}"),
    "config": ways("with the config {value} | config {value} | settings from {value} | using {value} as config"),
    "data": ways("on {value} | with the data {value} | data {value} | using the data in {value} | the data is {value}"),
    "timeout": ways("time out after {value} | timeout {value} | give up after {value} | with a timeout of {value}"),
    "count": ways("{value} of them | count {value} | show {value} | {value} in all"),
    "threads": ways("on {value} threads | with {value} threads | threads {value}"),
    "workers": ways("with {value} workers | {value} workers | workers {value}"),
    "user": ways("as user {value} | as {value} | for user {value} | user {value}"),
    "message": ways("with the message {value} | saying {value} | message {value}"),
    "branch": ways("on branch {value} | branch {value} | from the branch {value}"),
    "tag": ways("tagged {value} | with tag {value} | tag {value}"),
    "version": ways("version {value} | in version {value} | at version {value}"),
    "environment": ways("to {value} | in {value} | on {value} | environment {value}"),
    "env": ways("to {value} | in {value} | on {value} | env {value}"),
    "region": ways("in {value} | in the region {value} | region {value}"),
    "language": ways("in {value} | language {value}"),
}
OPTION = ways(
    "with {words} {value} | with a {words} of {value} | {words} {value} | set {words} to {value} | "
    "use {value} as {words} | {words}: {value} | {words}={value} | using {words} {value} | {words} should be {value} | "
    "make {words} {value} | with {option} {value} | {value} for {words} | where {words} is {value}"
)
POSITIONAL = {
    "file": ways("for {value} | on {value} | of {value} | {value} | given {value} | taking {value} | with {value}"),
    "folder": ways("for {value} | on {value} | of {value} | {value} | given {value} | taking {value} | with {value}"),
    "path": ways("for {value} | on {value} | of {value} | {value} | given {value} | taking {value} | with {value}"),
    "text": ways("for {value} | {words} {value} | on {value} | {value} | with {value} | with {words} {value}"),
}
OTHER = ways("{words} {value} | with {words} {value} | {value} as {words} | for {words} {value} | {words}: {value}")

FLAG = ways("with {name} | use {name} | with the {words} flag | {words} on | {words}: yes | with {words} | add {name}")
OFF = ways("with {name} | without {words} | no {words} | {words} off | leave {words} out | {words}: no")
FLAG_BY_NAME = {
    "json": ways("as JSON | in JSON | output JSON | with JSON output | give me json | print it as JSON | with --json"),
    "force": ways("overwrite what is there | force it | replace existing files | with --force | overwriting is fine"),
    "yes": ways("don't ask me | say yes to everything | without questions | with --yes"),
    "verbose": ways("verbosely | tell me more | with --verbose | be verbose | with lots of detail"),
    "quiet": ways("quietly | no chatter | with --quiet | be quiet about it | silently"),
    "dry run": ways("as a dry run | dry run only | only pretend | don't do it for real | with --dry-run | just simulate it"),
    "debug": ways("in debug mode | with the traceback | with --debug | debug on"),
    "recursive": ways("recursively | subfolders too | with --recursive | all the way down"),
    "all": ways("all of them | everything | with --all"),
    "skip bad": ways("skip bad rows | ignore the broken rows | leave bad rows out | with --skip-bad"),
}

# What stands for a value that the context holds.
SELECTED = {
    "file": ways("this file | the open file | the selected file | that file | the file here | the current file"),
    "folder": ways("this folder | the selected folder | that folder | the folder here | the current folder"),
    "path": ways("this | the selection | what is selected | the thing I have open"),
}
SELECTED_MANY = {
    "file": ways("these files | the selected files | those files | all the files I marked"),
    "folder": ways("these folders | the selected folders | those folders"),
    "path": ways("these | the selected ones | everything I marked"),
}
PREVIOUS = ways(
    "the same {words} as before | the {words} from last time | the last {words} | the {words} I used before | "
    "the previous {words} | the {words} of the last run | the same {words} again"
)

# Requests that fit two commands, a group, or leave a value open.
OPEN_OPENINGS = ways("| | | hey, | ok, | so, | let me think: | today: | hm, | one thing: | hello, | next:")
EITHER = ways(
    "{a} or {b}, not sure which | either {a} or {b} | maybe {a}, maybe {b} | {a}, or rather {b}? | "
    "{a} or perhaps {b} | hm, {a}? or {b}? | I can't decide: {a} or {b} | one of these: {a}, {b}"
)
GROUPED = ways(
    "do the {group} thing | something with {group} | I need {group} | use {cli} {group} | {group} please | "
    "help with {group} | run {group} | {cli} {group} | start {group} now | I have to do some {group} | "
    "what about {group} | do {group} for me"
)
GROUPED_VALUE = ways(" |  | on {value} | for {value} | with {value}")
OPEN = ways(
    "with another {words} | change the {words} | with a different {words} | not with the usual {words} | "
    "adjust the {words} | with a better {words} | but I want another {words} | with some other {words} | "
    "set the {words} | choose the {words}"
)

# What this program is not asked for. Slots are drawn from the lists below.
OFF_TOPIC = ways(
    "what's the weather in {city} | what is the weather like in {city} {day} | "
    "book a table for {number} in {city} {day} | find me a flight from {city} to {city2} | "
    "how far is it from {city} to {city2} | write a poem about {thing} | "
    "write a short story about {thing} and {thing2} | tell me a joke about {thing} | who invented {thing} | "
    "what is the history of {thing} | how do I cook {dish} | give me a recipe for {dish} for {number} people | "
    "how many calories are in {dish} | what is {number} times {number2} | what's the square root of {number} | "
    "remind me to buy {thing} {day} | set an alarm for {number} o'clock {day} | call {person} {day} | "
    "send an email to {person} about {thing} | text {person} that I am late | what time is it in {city} | "
    "translate '{thing}' into {language} | how do you say {thing} in {language} | play some {music} | "
    "play {music} by {person} | who won the match in {city} | what should I wear in {city} {day} | "
    "recommend a film about {thing} | which book about {thing} should I read | turn on the lights in the {room} | "
    "vacuum the {room} | turn the heating in the {room} to {number} degrees | order {number} portions of {dish} | "
    "when is the next train to {city} | how tall is {person} | is {dish} healthy | what do you think about {thing} | "
    "tell me about yourself and {thing} | explain {thing} to a child | why is {thing} so expensive | "
    "buy {number} shares of the {thing} company | what is the capital of the country where {city} lies | "
    "draw me a picture of {thing} | add {thing} to my shopping list | plan a weekend in {city} for {number} people | "
    "how old is {person} | what's on tv {day} | find a doctor in {city} | rent a car in {city} for {number} days | "
    "sing a song about {thing}"
)
TOPICS = {
    "city": ways(
        "Lisbon | Oslo | Vienna | Kyoto | Nairobi | Lima | Prague | Dublin | Toronto | Hanoi | Cairo | Athens | "
        "Bergen | Porto | Riga | Quito"
    ),
    "city2": ways(
        "Madrid | Helsinki | Seoul | Accra | Bogota | Zagreb | Boston | Delhi | Tunis | Naples | Ghent | Tallinn | "
        "Perth | Osaka"
    ),
    "day": ways("today | tomorrow | on Monday | on Friday | next week | this evening | on Sunday | tonight"),
    "thing": ways(
        "bicycles | umbrellas | cheese | volcanoes | tulips | robots | clouds | candles | owls | chess | violins | "
        "snow | bread | pencils | the moon"
    ),
    "thing2": ways("lighthouses | dragons | rivers | teapots | kites | pirates | gardens | penguins | comets | trumpets"),
    "dish": ways("lasagne | pancakes | lentil soup | sushi | risotto | goulash | ramen | apple pie | falafel | paella"),
    "person": ways(
        "Anna | Bert | Chiara | David | Elif | Farid | Greta | Hiro | Ines | Jonas | Kofi | Lena | my mother | my boss"
    ),
    "language": ways("French | Danish | Swahili | Latin | Korean | Welsh | Polish | Turkish | Hindi | Finnish"),
    "music": ways("jazz | quiet piano music | old rock songs | a waltz | folk songs | techno | some opera"),
    "room": ways("kitchen | living room | bedroom | cellar | bathroom | hall | attic"),
    "number": ways("2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 11 | 12 | 14 | 17 | 18 | 21 | 23 | 36"),
    "number2": ways("13 | 15 | 19 | 22 | 24 | 27 | 31 | 42 | 58 | 64 | 77"),
}
OFF_OPENINGS = ways(" |  |  | hey, | please | ok, | quick question: | I wonder, | hi! | one more thing: | by the way,")
OFF_CLOSINGS = ways(" |  |  | ? | please | , thanks | ! | , if you can")

# Values of text arguments, by the last word of their name.
VALUES = {
    "model": ways(
        "tiny | qwen3-0.6b | llama-3.2-1b | gemma-3-1b | phi-4-mini | smollm2-360m | mistral-7b | my-model | base-v2"
    ),
    "name": ways("first-try | night-run | baseline | v2 | attempt-3 | final | demo | small-test | long-run | blue"),
    "host": ways("127.0.0.1 | 0.0.0.0 | localhost | 192.168.1.20 | 10.0.0.7"),
    "url": ways("http://localhost:8000/v1 | http://127.0.0.1:11434/v1 | https://example.org/api | http://10.0.0.5:9000"),
    "user": ways("anna | bert | chiara | david | elif | farid | greta | hiro"),
    "branch": ways("main | develop | release/2.1 | fix-login | feature/search | hotfix"),
    "version": ways("1.0.0 | 1.2.3 | 2.0.1 | 0.9.4 | 3.1.0-rc1 | 2024.6"),
    "tag": ways("stable | latest | v1.4 | nightly | beta | rc2"),
    "region": ways("eu-west-1 | us-east-2 | ap-south-1 | eu-north-1"),
    "environment": ways("staging | production | testing | preview"),
    "env": ways("staging | production | testing | preview"),
    "language": ways("english | german | french | spanish | danish"),
    "message": ways("small fixes | second try | new data added | clean up | ready for review"),
    "prompt": ways("who are you | tell me about the harbour | what is new | sum up the plan"),
    "system": ways("answer in one sentence | you are a patient teacher | be brief"),
    "query": ways("harbour opening hours | invoice 2024 | broken pump | summer plan"),
}
FIRST = ways(
    "amber | basalt | cedar | delta | ember | fjord | granite | harbor | indigo | juniper | kestrel | lagoon | maple | "
    "north | onyx | pine"
)
SECOND = ways(
    "quartz | river | slate | timber | umber | valley | willow | yarrow | zephyr | atlas | beacon | cobalt | dune | "
    "echo | fern | grove"
)
STEMS = ways(
    "chats | notes | report | orders | letters | facts | minutes | samples | reviews | tickets | answers | logs | "
    "drafts | pages | items | talks | questions | records | entries | results | manual | lessons | articles | "
    "members | prices | readings | stories | tasks"
)
FOLDERS = ways("data | docs | work | out | archive | project | material | input | drafts | shared | tmp | set | corpus | inbox")
SUFFIXES = {  # a word of the argument's name, metavar or help -> suffix
    "yaml": ".yaml",
    "config": ".yaml",
    "gguf": ".gguf",
    "csv": ".csv",
    "rows": ".jsonl",
    "jsonl": ".jsonl",
    "conversations": ".jsonl",
    "pairs": ".jsonl",
    "data": ".jsonl",
    "json": ".json",
    "image": ".png",
    "plot": ".png",
    "png": ".png",
    "sqlite": ".sqlite",
    "text": ".txt",
}
ANY_SUFFIX = (".txt", ".md", ".json", ".csv", ".jsonl", ".yaml")

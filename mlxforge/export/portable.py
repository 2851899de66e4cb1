"""A chat template as llama.cpp is to render it: with all that it gives a template otherwise than mlxforge does."""

from __future__ import annotations

import json
import re

from mlxforge.models.render import FROZEN
from mlxforge.models.template import ChatTemplate

KNOWN_VARIABLES = ("bos_token", "eos_token")  # of a template's variables, those that llama.cpp gives it
# Where a template asks so: what llama.cpp leaves undefined or fills in with today.
SETTLED = {
    r"\btools is (not )?none\b": "{% set tools = tools | default(none) %}\n",
    r"\bdocuments is (not )?none\b": "{% set documents = documents | default(none) %}\n",
    r"\bdate_string\b": f'{{% set date_string = "{FROZEN:%d %b %Y}" %}}\n',
}


def portable(template: ChatTemplate) -> str:
    """The chat template with all that llama.cpp does not give it as mlxforge does; both then render the same."""
    variables, text = template.renderer.variables, template.text
    wanted = {name: variables[name] for name in variables if name not in KNOWN_VARIABLES}
    wanted |= {name: "" for name in KNOWN_VARIABLES if name not in variables}
    lines = [line for asked, line in SETTLED.items() if re.search(asked, text)]
    for name, value in wanted.items():
        if re.search(rf"\b{name}\b", text):
            lines.append(f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n")
    return "".join(lines) + text

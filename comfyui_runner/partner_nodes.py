"""Partner nodes: those that cost credits of a Comfy account.

Their definitions in /object_info have ``api_node: true``. The key of the account goes along with a
prompt in ``extra_data``, where ComfyUI hands it to them (execution.py, get_input_data()).
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple

from comfyui_runner.nodes import class_of, node_in_words, planned_nodes
from comfyui_runner.text import JsonObject, as_dict

#: The names in extra_data under which ComfyUI takes the credentials of an account: either is enough
#: (comfy_api_nodes/util/_helpers.py, get_auth_header()).
CREDENTIALS = ("auth_token_comfy_org", "api_key_comfy_org")

#: Partner nodes that are named in a message.
MOST_NAMED = 6


class Spending(NamedTuple):
    """What a run costs, in words, and what goes along in its extra_data; both empty: nothing."""

    words: str = ""
    extra_data: Mapping[str, str] = {}

    def before(self, question: str) -> str:
        """``question``, with what a yes to it costs."""
        if not self.words:
            return question
        return f"{self.words}\n{question}"


NO_SPENDING = Spending()


def find_partner_nodes(prompt: JsonObject, object_info: JsonObject) -> List[str]:
    """The ids of the nodes of ``prompt`` that will run and cost credits, by what is known."""
    planned = planned_nodes(prompt)
    partner_nodes = []
    for node_id in prompt:
        definition = as_dict(object_info.get(class_of(prompt, node_id)))
        costs_credits = definition.get("api_node") is True
        if costs_credits and node_id in planned:
            partner_nodes.append(node_id)
    return partner_nodes


def has_credentials(extra: Mapping[str, object]) -> bool:
    """Whether more fields of POST /prompt (``extra``) bring credentials of an account along."""
    extra_data = as_dict(extra.get("extra_data"))
    return any(extra_data.get(name) for name in CREDENTIALS)


def key_for_nodes(key: str) -> Dict[str, str]:
    """What goes along in the extra_data of a prompt that has partner nodes."""
    return {"api_key_comfy_org": key}


def spending_in_words(prompt: JsonObject, node_ids: List[str]) -> str:
    """That a run costs credits, and because of which nodes."""
    named = ", ".join(node_in_words(prompt, node_id) for node_id in node_ids[:MOST_NAMED])
    if len(node_ids) > MOST_NAMED:
        named += f" and {len(node_ids) - MOST_NAMED} more"
    return f"A run costs credits of your Comfy account: {named}."

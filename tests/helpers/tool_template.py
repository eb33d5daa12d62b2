"""A model whose chat template shows tools, and two functions."""

from __future__ import annotations

import json
from pathlib import Path

from grit_jax.inference.model import GritLM

# In the manner of Qwen's, short.
TEMPLATE = (
    "{{ bos_token }}{% if tools %}# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "as <tool_call>{}</tool_call>\n{% endif %}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "minimum": 0, "maximum": 9}},
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA},
}
CLOCK = {"type": "function", "function": {"name": "clock", "strict": True}}


def with_tools(model: GritLM, path: Path) -> GritLM:
    """The model with the template, as it is read from a directory."""
    model.save_pretrained(path)
    for name in ("grit.json", "modules.json"):
        (path / name).unlink()
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return GritLM.from_pretrained(path)

"""The process that renders chat templates, asked over its pipes: what templates may use, and what
they cannot do to the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grit_jax.text import chat_template

WORKER = Path(chat_template.__file__).with_name("chat_template_worker.py")


@pytest.fixture(scope="module")
def ask():
    """Sends a template with its variables; the answer. One process renders all of them."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(template: str, longest: int = 1000, **variables) -> dict:
        request = {"template": template, "variables": variables, "longest": longest}
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()  # it ends with its input
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ a }}{% if b %}no{% endif %}", "A"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ a }}{% endgeneration %}!", "A!"),
        ("{{ d|tojson }}", '{"k": "<é>"}'),
        ("{{ d|tojson(ensure_ascii=true, separators=[',', ':']) }}", '{"k":"<\\u00e9>"}'),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}", "2"),
        ("{% set n = namespace(self=1) %}{{ n.self }}", "1"),
        ("{{ dict(d, j=1).items()|list|length }}{{ dict.fromkeys('ab')|length }}", "22"),
        ("{{ strftime_now('%Y-%m-%d')|length }}", "10"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),  # blocks leave no blank lines
        ("[{{ bos_token }}]", "[]"),  # a token that a tokenizer need not have
    ],
)
def test_what_templates_may_use(ask, template, text):
    assert ask(template, a="A", d={"k": "<é>"}) == {"text": text}


@pytest.mark.parametrize(
    "template, error, line",
    [
        ("a\n{% if %}", "Expected an expression", 2),
        ("{{ messages[7].role }}", "list object has no element 7", 1),
        ("{{ nothing.at.all }}", "'nothing' is undefined", 1),
        ("\n{{ 'a' + 1 }}", "can only concatenate", 2),
        ("{{ 'a'|unheard_of }}", "No filter named 'unheard_of'", 1),
        ("{{ ''.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe", 1),
        (
            "{% set n = namespace() %}{% set n.__init__ = 1 %}",
            "a namespace cannot have an attribute named '__init__'",
            1,
        ),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe", 1),
        ("{{ dict.__subclasses__() }}", "has no attribute '__subclasses__'", 1),
        ("{% include '/etc/passwd' %}", "no loader for this environment", 1),
        ("{{" + "(" * 4000 + ")" * 4000 + "}}", "nests or calls itself too deep", None),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests or calls itself too deep", None),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big", 1),
        ("{{ 'a' * (messages|length * 10**10) }}", "needs more than 1024 MiB of memory", None),
        ("{{ '%9999999999d' % 1 }}", "needs more than 1024 MiB of memory", None),
        ("{{ 'a' * 1001 }}", "its text is longer than 1000 characters", None),
    ],
)
def test_what_fails_is_answered_and_the_next_request_rendered(ask, template, error, line):
    answer = ask(template, messages=["m"])
    assert "text" not in answer and error in answer["error"]
    assert answer.get("line") == line and not answer.get("refused")
    assert ask("{{ a }}", a="still here") == {"text": "still here"}


def test_a_template_that_refuses(ask):
    answer = ask("{{ raise_exception('Only one turn!') }}")
    assert (answer["error"], answer["refused"]) == ("Only one turn!", True)

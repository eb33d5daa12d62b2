"""A process of its own that renders chat templates: templates are code of strangers.

jinja2's sandbox keeps a template away from the machine; that it neither runs for ever nor takes all
memory, only a process can promise that is watched by another one (`template.py`, which kills it)
and that the system limits. Requests come as lines of JSON on standard input, answers go as lines of
JSON to standard output; the process ends with its input. Run by path, so it imports nothing of the
package.

What templates may use is what transformers gives them, so that they render there as here:
`raise_exception`, `strftime_now`, `tojson` without HTML escapes, `break` and `continue`, `{%
generation %}`. Source: `transformers: utils/chat_template_utils.py`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import sys
import traceback
from typing import Any

MEMORY = 1 << 30  # bytes of address space
TEMPLATE_NAME = "<template>"  # how jinja2 calls a template made from a string in a traceback


def main(packages: list[str]) -> None:
    """Answers requests until there are no more. `packages`: where jinja2 may lie beside the usual
    places."""
    sys.path += packages
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class Unknown(jinja2.Undefined):
        """A variable that nobody defines may be asked about, not written; transformers would write
        nothing there.

        Special tokens are excepted: a tokenizer need not have all of them.
        """

        def __str__(self) -> str:
            if self._undefined_obj is jinja2.utils.missing and not str(
                self._undefined_name
            ).endswith("_token"):
                self._fail_with_undefined_error()
            return ""

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what a training loop may want; it renders as its content."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

        def render(self, caller: Any) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """`namespace()` whose attributes cannot be those of Python objects."""

        def __init__(*args: Any, **attributes: Any) -> None:  # `namespace(self=1)` is fine
            self, *given = args
            attributes = dict(*given, **attributes)
            for name in attributes:
                _public(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            super().__setitem__(name, value)

    def _public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a namespace cannot have an attribute named {name!r}"
            )

    class Dict:
        """`dict()` without the methods of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=Unknown,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "namespace": Namespace,
        "dict": Dict(),
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    compiled = functools.lru_cache(maxsize=16)(environment.from_string)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            text = compiled(request["template"]).render(request["variables"])
            if len(text) > request["longest"]:
                return {"error": f"its text is longer than {request['longest']} characters"}
            return {"text": text}
        except jinja2.exceptions.TemplateSyntaxError as error:
            return {"error": error.message or "cannot be parsed", "line": error.lineno}
        except MemoryError:
            return {"error": f"needs more than {MEMORY >> 20} MiB of memory"}
        except RecursionError:
            return {"error": "nests or calls itself too deep"}
        except Exception as error:  # a template can raise anything: TypeError, KeyError, ...
            lines = [
                f.lineno
                for f in traceback.extract_tb(error.__traceback__)
                if f.filename == TEMPLATE_NAME
            ]
            refused = type(error) is jinja2.exceptions.TemplateError
            return {
                "error": str(error) or type(error).__name__,
                "line": (lines or [None])[-1],
                "refused": refused,
            }

    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def limit_memory() -> None:
    """Where the system can: an allocation beyond `MEMORY` fails instead of taking the machine's
    memory."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit_memory()
    main(sys.argv[1:])

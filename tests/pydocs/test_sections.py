"""The sections of docstrings in three conventions, against what the docstring says in words."""

import inspect

import numpy as np
import pytest

from grit_jax.pydocs.sections import Sections, plain_markup, read_sections

NUMPYDOC = """Sum of the members.

.. versionadded:: 1.7.0

Parameters
----------
a, b : array_like
    What is summed.
axis : None or int or tuple of ints, optional
    Where.

    .. versionadded:: 1.9.0
keep : {'yes', 'no'}, default: 'yes'
    Whether.

Returns
-------
total : ndarray
    The sum along an axis.  It is new.

Raises
------
ValueError
    If the members
    are no numbers. Always.
TypeError
    Never said when.

See Also
--------
other : int
    Not a parameter.
"""

GOOGLE = """Adds a member.

Args:
  name (str): Of the member.
  count (Optional[int]): How many.
  plain: Without a type.

Returns:
  bool: True if it was there
    before. False otherwise.

Raises:
  KeyError: If there is no such member.
  pack.LateError: when the time is over; see there.
"""

SPHINX = """Opens a door.

:param str name: of the door
:param width: in metres
:type width: float, optional
:returns: the opened door. Nothing else.
:rtype: Door
:raises LockedError: if the door
    is locked
"""


def test_numpydoc():
    assert read_sections(NUMPYDOC) == Sections(
        types=(
            ("a", "array_like"),
            ("b", "array_like"),
            ("axis", "None or int or tuple of ints"),
            ("keep", "{'yes', 'no'}"),
        ),
        returns=("The sum along an axis", "ndarray"),
        raises=(("ValueError", "If the members are no numbers"),),
        added="1.7.0",  # not 1.9.0, which is the parameter's
    )


def test_google():
    assert read_sections(GOOGLE) == Sections(
        types=(("name", "str"), ("count", "Optional[int]")),
        returns=("True if it was there before",),
        raises=(
            ("KeyError", "If there is no such member"),
            ("pack.LateError", "when the time is over"),
        ),
    )


def test_sphinx():
    assert read_sections(SPHINX) == Sections(
        types=(("width", "float"), ("name", "str")),
        returns=("the opened door",),
        raises=(("LockedError", "if the door is locked"),),
    )


@pytest.mark.parametrize(
    "doc, field, value",
    [
        ("Return the number of items, e.g. 3. More.", "returns", ("the number of items, e.g. 3",)),
        ("Returns self.", "returns", ()),
        (
            "Gets it. Raises a KeyError if it is absent.",
            "raises",
            (("KeyError", "if it is absent"),),
        ),
        ("Gets it.\n\nNew in version 3.8: the name.", "added", "3.8"),
        ("Gets it.\n\n    .. versionadded:: 3.8", "added", ""),
        ("Old.\n\n.. deprecated:: 2.1\n   Use `new_one()` instead.", "deprecated", "2.1"),
        ("Old.\n\n.. deprecated:: 2.1\n   Use `new_one()` instead.", "instead", "new_one()"),
        ("Deprecated. Use the function `a.b` instead.", "instead", "a.b"),
        ("Deprecated. Use pack.mod.call instead, please.", "instead", "pack.mod.call"),
        ("Use `axis` instead of `dim`.", "instead", ""),  # not about the object
    ],
)
def test_sentences_and_directives(doc, field, value):
    assert getattr(read_sections(doc), field) == value


def test_a_docstring_without_sections():
    assert read_sections("Goes on.") == read_sections("") == Sections()
    assert read_sections("Returns:\n\nRaises:\n\nParameters\n---") == Sections()


def test_real_docstrings():
    """Of numpy, whose own signatures and errors say the same."""
    sections = read_sections(inspect.getdoc(np.linalg.inv))
    assert dict(sections.types)["a"] == "(..., M, M) array_like"
    [(name, condition)] = sections.raises
    assert name == "LinAlgError" and condition.startswith("If `a` is not square")
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.inv(np.zeros((2, 3)))
    spread = read_sections(inspect.getdoc(np.linspace))
    assert {name for name, _ in spread.types} <= set(inspect.signature(np.linspace).parameters) | {
        "step"
    }


def test_markup_of_roles():
    assert plain_markup("See :py:class:`~a.B`, :meth:`!go`, ``x = 1`` and :ref:`this <that>`.") == (
        "See `a.B`, `go`, `x = 1` and `this`."
    )
    assert plain_markup("`plain` :param x: y ``") == "`plain` :param x: y ``"

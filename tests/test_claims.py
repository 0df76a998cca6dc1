"""Which local operations still have to tell of themselves, when their echoes are lost."""

from types import SimpleNamespace
from typing import Any, cast

from fusenotify import events
from fusenotify.claims import Claims
from fusenotify.echoes import STILL_OPEN, Echoes, Expectation, LocalOperation, Name
from fusenotify.identity import InodeKey
from fusenotify.tree import Directory, Tree

KEY = InodeKey(1, 2)


def claims_of(tree: Tree) -> Claims:
    return Claims(cast(Any, SimpleNamespace()), tree, Echoes())


def creation(start: int, end: int) -> LocalOperation:
    return LocalOperation(start, end, None, None, [Expectation(events.CREATE, Name(KEY, 7, b"name"))])


def test_an_operation_whose_echo_may_have_been_skipped_is_told_by_the_comparison() -> None:
    claims = claims_of(Tree(KEY))
    operations = [creation(0, 10), creation(10, 20), creation(20, 30), creation(30, STILL_OPEN)]
    for operation in operations:
        claims.note(operation)
    claims.excuse(15)
    assert [one.expectations[0].optional for one in operations] == [False, True, False, False]
    claims.excuse(35)
    assert operations[-1].expectations[0].optional


def test_an_operation_in_a_directory_that_was_listed_since_is_told_by_the_listing() -> None:
    tree = Tree(InodeKey(1, 1))
    directory = Directory(tree.root, b"directory", 8, KEY)
    tree.add(directory, tree.root, b"directory")
    claims = claims_of(tree)
    assert claims.unlisted(Name(KEY, 8, b"name")) is directory
    assert claims.unlisted(Name(KEY, 7, b"name")) is None  # it had another watch
    assert claims.unlisted(Name(KEY, None, b"name")) is None
    tree.set_wd(directory, None)
    assert claims.unlisted(Name(KEY, 7, b"name")) is directory

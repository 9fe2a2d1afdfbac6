"""The ids of a list of records, and which of the records another one means by an id, or by a name."""

from collections.abc import Iterable
from typing import Any

from autoprune.errors import DataError
from autoprune.records.fields import LARGEST_WHOLE, LONGEST_NUMBER, Identity, identity, shown


class Ids:
    """The number of each id of a list: itself where all are whole numbers, else its place, from 1.

    Args:
        ids: of the records, in their order.
        names: of the records, each with its id: some tools refer to a record by its name.
        kind: what the records are, in the plural, for messages.

    Attributes:
        renumbered: whether the places are the numbers.
        kind: see above.
    """

    def __init__(
        self, ids: Iterable[Identity], names: Iterable[tuple[str, Identity]] = (), kind: str = "records"
    ) -> None:
        self.kind = kind
        known = list(dict.fromkeys(ids))
        self.renumbered = not all(isinstance(each, int) and abs(each) <= LARGEST_WHOLE for each in known)
        self._numbers: dict[Identity, int] = {
            each: place if self.renumbered else int(each) for place, each in enumerate(known, 1)
        }
        # an id such as 000139 may be a text in one list and a number in another
        self._padded = {
            int(each): number
            for each, number in self._numbers.items()
            if isinstance(each, str)
            if _digits(each)
        }

        self._named: dict[str, list[Identity]] = {}
        for name, key in names:
            if isinstance(identity(name), str):  # a name such as 7 could be the id of another record
                self._named.setdefault(name, []).append(key)

    def number(self, value: Any) -> int | None:
        """The number of an id as a record writes it; ``None`` for one that is not in the list.

        Where it is no id, it may be a name, exactly as that is written.

        Raises:
            DataError: several records have the name.
        """
        number = self._by_id(value)
        return self._numbers[self._named[value][0]] if number is None and self.is_name(value) else number

    def is_name(self, value: Any) -> bool:
        """Whether a value is the name of a record, and no id; errors as `number`."""
        if not isinstance(value, str) or value not in self._named or self._by_id(value) is not None:
            return False
        if len(keys := self._named[value]) > 1:
            raise DataError(
                f"{shown(value)} is the name of several {self.kind}, with the ids {shown(keys[0])} and "
                f"{shown(keys[1])}, and no id itself; write the id"
            )
        return True

    def _by_id(self, value: Any) -> int | None:
        key = identity(value)
        if key is None or key in self._numbers:
            return None if key is None else self._numbers[key]
        if isinstance(key, str):
            return self._numbers.get(int(key)) if _digits(key) else None
        return self._padded.get(key)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER

"""Figures printed in papers, kept as text tables close to their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One method's figures.

    Attributes:
        method: name printed in the paper.
        source: "Paper, Table n", and where the figure differs from its own source, that too.
        values: by column key; a column without a published value is absent.
    """

    method: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Attributes:
        key: such as ``"reliev3r/table1"``.
        paper: short name of the paper.
        title: what it shows.
        columns: keys, with dots for groups (``"eth3d.delta1"``).
        rows: in the order of the paper.
        note: doubts about the printed figures.
    """

    key: str
    paper: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    note: str = ""

    def select(self, columns: Mapping[str, str]) -> tuple[PublishedRow, ...]:
        """Rows with the columns renamed: ``{our key: table key}``; rows without any of them are left out."""
        unknown = set(columns.values()) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.key} has no column {sorted(unknown)}")
        out = []
        for row in self.rows:
            values = {ours: row.values[theirs] for ours, theirs in columns.items() if theirs in row.values}
            if values:
                out.append(PublishedRow(row.method, row.source, values))
        return tuple(out)


def published_table(
    key: str, paper: str, title: str, columns: Sequence[str] | str, rows: str, note: str = ""
) -> PublishedTable:
    """Parse a table written as text, one method per line: ``name | value value ...``; ``-`` means not available.

    Args:
        key: such as ``"reliev3r/table1"``; the part after the slash names the table.
        paper: short name of the paper.
        title: what it shows.
        columns: keys, or one string of keys divided by blanks.
        rows: the text; further ``|`` between values are ignored.
        note: doubts about the printed figures.

    Raises:
        ValueError: a row has another number of values than there are columns.
    """
    names = tuple(columns.split()) if isinstance(columns, str) else tuple(columns)
    source = f"{paper}, {key.split('/', 1)[1].replace('_', ' ').replace('table', 'Table ')}"
    out = []
    for line in rows.strip().splitlines():
        method, _, rest = line.strip().partition("|")
        cells = [cell for cell in rest.replace("|", " ").split() if cell]
        if len(cells) != len(names):
            raise ValueError(f"{key}: row '{method.strip()}' has {len(cells)} values, expected {len(names)}")
        values = {name: float(cell) for name, cell in zip(names, cells) if cell != "-"}
        out.append(PublishedRow(method.strip(), source, values))
    return PublishedTable(key, paper, title, names, tuple(out), note)

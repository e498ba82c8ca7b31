def find(data: bytes, name: bytes, columns: int, by_number: bool) -> list[bytes] | None:
    """The fields of the entry of that name, else (`by_number`) of the first whose third field is `name`; or None.

    Lines with less than `columns` fields (3 to 7) are no entries.  A seventh field holds all that follows.
    """

def groups_of(data: bytes, name: bytes, most: int) -> tuple[int, ...]:
    """The numbers of the groups with `name` among their members, in order, each once; of the first `most` lines."""

def state_of(first: bytes, second: bytes) -> bytes:
    """Bytes that are the same as long as the files at two paths are (identity, size, times)."""

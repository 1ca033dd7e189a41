"""ImageIds in another Unicode form: macOS may store 'é' as 'e' and an accent where a table has one character."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

from defectseg.errors import LabelError


def respellings(listed: Iterable[str], image_ids: Iterable[str], *, where: Path) -> dict[str, str]:
    """Each listed name -> the one image that has the same letters in another Unicode form; else itself.

    Args:
        listed: the names in a table.
        image_ids: the images.
        where: the table, for the message.

    Raises:
        LabelError: several names, or several images, have the same letters.
    """
    names, images = set(listed), set(image_ids)
    spelled = {name: name for name in names}
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names | images:
        alike[normalize("NFC", name)].add(name)
    for name in sorted(names - images):
        others = alike[normalize("NFC", name)] - {name}
        if others & images:
            if len(others) > 1 or others & names:
                raise LabelError(
                    f"{where}: {name!a} and {', '.join(map(ascii, sorted(others)))} are the same letters, spelled "
                    "otherwise (in another Unicode form). Rename them so that one of the names is left."
                )
            spelled[name] = others.pop()
    return spelled

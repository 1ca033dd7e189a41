import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from defectseg.errors import UsageError
from defectseg.predict import webhook
from defectseg.predict.webhook import Webhook, check_address


def sheet(name: str) -> dict[str, Any]:
    return {"day": "2026-01-02", "ImageId": name, "classes": "pits"}


def wait_until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_sheets_are_sent_together_and_a_refusal_is_repeated_after_longer_and_longer_waits(
    address: Any, tmp_path: Path
) -> None:
    address.answers = [500, 429, 302]
    said: list[str] = []
    with closing(Webhook(tmp_path / "sent.jsonl", address.url, said.append)) as sender:
        sender.add(sheet("a.png"))
        wait_until(lambda: address.times)
        sender.add(sheet("b.png"))
        wait_until(lambda: not sender.unsent)
        sender.add(sheet("c.png"))
        wait_until(lambda: len(address.got) == 2)
    assert address.names() == [["a.png", "b.png"], ["c.png"]]
    assert address.got[0]["text"] == (
        "defectseg: 2 sheets meet the rule: 2026-01-02/a.png (pits), 2026-01-02/b.png (pits)"
    )
    assert said == [f"webhook: 127.0.0.1 was not told (it answered {code})." for code in (500, 429, 302)]
    waits = [after - before for before, after in zip(address.times, address.times[1:], strict=False)]
    assert all(wait_s >= least_s for wait_s, least_s in zip(waits, (0.1, 0.2, 0.4, 0.05), strict=True)), waits


def test_what_was_not_sent_is_sent_by_the_next_process_and_what_was_is_not(address: Any, tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    with closing(Webhook(path, address.url, pytest.fail)) as sender:
        sender.add(sheet("a.png"))
        wait_until(lambda: not sender.unsent)
    with closing(Webhook(path, "http://127.0.0.1:1/nobody", str)) as sender:
        for name in ("b.png", "c.png", "b.png"):
            sender.add(sheet(name))
    with path.open("ab") as handle:
        handle.write(b'{"day": "2026')  # a process that was killed while it wrote
    with closing(Webhook(path, address.url, pytest.fail)) as sender:
        wait_until(lambda: not sender.unsent)
    with closing(Webhook(path, address.url, pytest.fail)) as sender:
        assert not sender.unsent
    assert address.names() == [["a.png"], ["b.png", "c.png"]]


def test_a_storm_of_sheets_is_sent_in_messages_of_bounded_size(
    address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "MOST_SHEETS", 4)
    address.answers = [503]
    with closing(Webhook(tmp_path / "sent.jsonl", address.url, str)) as sender:
        for number in range(10):
            sender.add(sheet(str(number)))
        wait_until(lambda: not sender.unsent)
    assert [name for names in address.names() for name in names] == [str(number) for number in range(10)]
    assert max(map(len, address.names())) <= 4


def test_neither_file_nor_message_tells_the_address(tmp_path: Path, address: Any) -> None:
    said: list[str] = []
    address.answers = [404]
    for url in (address.url, "http://no-such-host.invalid/SECRET", "https://127.0.0.1:1/SECRET"):
        with closing(Webhook(tmp_path / "sent.jsonl", url, said.append)) as sender:
            sender.add(sheet(url[-9:-7]))
            before = len(said)
            wait_until(lambda before=before: len(said) > before)  # type: ignore[misc]
    assert "SECRET" not in " ".join(said) + (tmp_path / "sent.jsonl").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/a",
        "host/a",
        "http://",
        "https://user:pass@host/",
        "http://host/a b",
        "http://host/\n",
        "http://h:x/",
    ],
)
def test_an_address_that_is_none_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(UsageError, match="webhook: expected an address such as https://host/path") as caught:
        check_address(url)
    assert not url or url not in str(caught.value)
    check_address("https://hooks.example.com:8443/services/T0/B0/x?y=z")

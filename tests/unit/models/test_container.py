"""The file of a saved model: equal bytes, and nothing in a hostile one is executed, grown or believed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_ai.errors import Corrupt, DiskFull, Invalid, LeptonError, NotFound
from lepton_ai.models import Model, RecommenderModel
from lepton_ai.models.container import Container

DATA = [(user, item, 3.0) for user in range(6) for item in range(user, user + 5)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return RecommenderModel().fit(DATA).save(tmp_path / "recommender_model.pkl")


def rezip(source: Path, target: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        members = {info.filename: old.read(info) for info in old.infolist()}
        for name, data in {**members, **change}.items():
            if data is not None:
                new.writestr(name, data)
    return target


def test_a_model_comes_back_whole_and_saves_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    model = Model.load(saved)
    assert isinstance(model, RecommenderModel)
    again = model.save(tmp_path / "again.anything")
    assert again.read_bytes() == saved.read_bytes()
    assert model.evaluate(DATA, k=2) == RecommenderModel().fit(DATA).evaluate(DATA, k=2)
    assert sorted(os.listdir(tmp_path)) == ["again.anything", "recommender_model.pkl"]


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "recommender_model.pkl"
    path.write_bytes(pickle.dumps(Bomb(marker), protocol))
    with pytest.raises(Invalid, match="pickle") as caught:
        RecommenderModel.load(path)
    assert "save" in str(caught.value.hint)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the pickle is not malicious: this test shows nothing"


def test_a_zip_with_a_pickle_inside_is_refused(saved: Path, tmp_path: Path) -> None:
    hidden = rezip(saved, tmp_path / "model.pt", {"archive/data.pkl": pickle.dumps(1)})
    with pytest.raises(Invalid, match="pickle"):
        Model.load(hidden)


def test_an_array_of_objects_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    out = io.BytesIO()
    np.save(out, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    path = forged(tmp_path, {"arrays/users.npy": out.getvalue()})
    with pytest.raises(LeptonError):
        Model.load(path)
    assert not marker.exists()


def forged(folder: Path, members: dict[str, bytes], **manifest: Any) -> Path:
    """A container whose digests are right, around members that are not."""
    import hashlib

    listed = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in members.items()
    }
    head = {
        "format": 1, "kind": "recommender", "settings": {}, "metrics": {}, "lineage": {}, "protocol": {},
        "signature": {}, "members": listed, **manifest,
    }  # fmt: skip
    path = folder / "forged"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", json.dumps(head))
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"not an array",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}"),
        npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy("{'descr': '<U999999999', 'fortran_order': False, 'shape': (0,)}"),
        npy("{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}", b"x" * 3),
        npy("{'descr': '|b7', 'fortran_order': False, 'shape': (1,)}", b"x" * 7),
        npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b"\xff\xff\xff\x00"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 999999999999999999)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x" * 8),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"x" * 8),
        npy("__import__('os').system('false')"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 5000 + ")}"),
        npy("{" + " " * 60_000 + "}"),
        b"\x93NUMPY\x03\x00" + b"\xff\xff\xff\xff" + b"{}",
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises((Corrupt, Invalid)):
        Model.load(forged(tmp_path, {"arrays/users.npy": data}))


@pytest.mark.parametrize(
    "name", ["../evil.npy", "/etc/evil", "arrays/../../x.npy", "arrays/a.py", "arrays\\x.npy", "x/"]
)
def test_members_with_other_names_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="which no saved model has"):
        Model.load(rezip(saved, tmp_path / "x", {name: b"1"}))


def test_a_bomb_cannot_grow(saved: Path, tmp_path: Path) -> None:
    bomb = rezip(saved, tmp_path / "bomb", {"arrays/users.npy": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(Invalid, match="compressed"):
        Model.load(bomb)


def test_overlapping_members_are_refused(saved: Path, tmp_path: Path) -> None:
    # A second directory entry for the same bytes: the members claim more than the file holds, or one name twice.
    raw = saved.read_bytes()
    start = raw.rindex(b"PK\x01\x02", 0, len(raw))
    directory = raw.index(b"PK\x01\x02")
    entry = raw[start : raw.rindex(b"PK\x05\x06")]
    end = bytearray(raw[raw.rindex(b"PK\x05\x06") :])
    count = int.from_bytes(end[10:12], "little") + 1
    end[8:10] = end[10:12] = count.to_bytes(2, "little")
    end[12:16] = (int.from_bytes(end[12:16], "little") + len(entry)).to_bytes(4, "little")
    assert directory < start
    path = tmp_path / "twice"
    path.write_bytes(raw[: raw.rindex(b"PK\x05\x06")] + entry + bytes(end))
    with pytest.raises((Corrupt, Invalid)):
        Model.load(path)


def test_a_flipped_bit_anywhere_is_seen(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "flipped"
    want = RecommenderModel().fit(DATA).container().pack()
    seen = 0
    for at in rng.integers(0, len(raw), 60).tolist():
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << int(rng.integers(8)))]) + raw[at + 1 :])
        try:
            model = Model.load(path)
        except LeptonError:
            seen += 1
        else:
            # Bits that mean nothing to a reader (times, rights) may differ: the model must not.
            assert model.container().pack() == want
    assert seen > 30


@pytest.mark.parametrize("cut", [0, 3, 100, -30, -1])
def test_a_file_cut_short_is_refused(saved: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises((Corrupt, Invalid)):
        Model.load(path)


@pytest.mark.parametrize("part", ["settings", "signature", "metrics", "protocol", "lineage"])
@pytest.mark.parametrize("value", [None, [], "x", {"a": "\ud800"}, {"a": float("nan")}])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, part: str, value: Any) -> None:
    for only_manifest in (False, True):
        with pytest.raises(Corrupt, match="does not describe a model"):
            Container.load(forged(tmp_path, {}, **{part: value}), only_manifest=only_manifest)


def test_members_are_checked_also_when_they_are_not_kept(saved: Path, tmp_path: Path) -> None:
    kept = Container.load(saved, only_manifest=True)
    assert (kept.manifest, kept.arrays, kept.onnx) == (Container.load(saved).manifest, {}, None)
    raw = Container.load(saved).onnx
    assert raw is not None
    other = rezip(saved, tmp_path / "other", {"model.onnx": raw[:-1] + b"!"})
    with pytest.raises(Corrupt, match="not what was saved"):
        Container.load(other, only_manifest=True)
    with pytest.raises(Corrupt, match="plain numbers"):
        Container.load(forged(tmp_path, {"arrays/users.npy": b"no array"}), only_manifest=True)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    whole = RecommenderModel().fit(DATA).container()
    indices = whole.arrays["indices"].copy()
    indices[0] = 10**6
    nan = whole.arrays["weights"].copy()
    nan[0, 0] = np.nan
    held = whole.arrays["held_users"]
    changes: list[dict[str, Any]] = [
        {"indices": indices},
        {"indptr": whole.arrays["indptr"][:-1]},
        {"weights": np.zeros((2, 2), "f4")},
        {"weights": nan},
        {"users": whole.arrays["users"][::-1]},
        {"users": whole.arrays["users"].astype("f8")},
        {"items": np.zeros_like(whole.arrays["items"])},
        {"held_users": held.reshape(-1, 1)},
        {"held_users": held.astype("U")},
    ]
    for change in changes:
        path = Container(whole.manifest, {**whole.arrays, **change}, whole.onnx).save(tmp_path / "odd")
        with pytest.raises(Corrupt, match="does not hold a whole recommender"):
            Model.load(path)


@pytest.mark.parametrize(("change", "says"), [({"format": 2}, "format"), ({"kind": "oracle"}, "unknown kind")])
def test_models_of_the_future_are_refused_with_a_hint(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        Model.load(forged(tmp_path, {}, **change))
    assert "pip install -U" in str(caught.value.hint)


def test_what_is_no_file_or_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        Model.load(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Invalid, match="not a saved model"):
        Model.load(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("model.onnx", "x")
    with pytest.raises(Invalid, match="zip file"):
        Model.load(tmp_path / "zip")
    with pytest.raises(Invalid):
        Model.load(tmp_path)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        RecommenderModel().fit(DATA, seed=9).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]

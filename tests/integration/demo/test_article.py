"""The listing of the source text as the demo runs it, on small data of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lepton_ai.demo import article, learn
from lepton_ai.demo.source import source
from lepton_ai.models import RecommenderModel


def test_the_listing_runs_on_a_file_of_ones_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pairs = [(user, item) for user in range(40) for item in range(30) if rng.random() < 0.4]
    text = "用户,物品,评分\n" + "\n".join(f"{user},{item},{1 + (user * item) % 5}" for user, item in pairs)
    path = tmp_path / "ratings.csv"
    path.write_bytes(text.encode("gb18030"))
    found = source(str(path), tmp_path)
    assert (found.own, found.counts()) == (True, {"rows": len(pairs), "users": 40, "items": 30})
    assert found.title(7) == "7"
    model = RecommenderModel().fit(found.table)
    assert learn.same_answers(model, model.export(), model.users) == 40
    model.save(tmp_path / article.FILE)
    done = article.run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recall@10 = ")
    assert "hint: recall_p_at_k(model, test_data)" in done.stderr
    assert "users=40" in str(article.with_rows(tmp_path))


def test_text_ids_are_answered_too(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", 4.0) for user in range(12) for item in range(15) if (user + item) % 3]
    model = RecommenderModel().fit(rows)
    assert learn.same_answers(model, model.export(), model.users) == 12
    model.save(tmp_path / article.FILE)
    # None of the listing's people is known: that is said, not raised.
    assert "known to the model" in str(article.with_rows(tmp_path))
